"""One step of an objective against the plain losses, and its state against Python lists."""

import contextlib
import copy
import inspect
import math

import numpy as np
import pytest
import torch
from config_files import CONFIGS, tree

from rdcd.errors import UserError
from rdcd.losses import contrastive_loss, hard_negative_loss, relational_loss, sscd_loss
from rdcd.models.student import Embedding, Student
from rdcd.models.teacher import Teacher
from rdcd.training import objectives
from rdcd.training.mixing import mix_views
from rdcd.training.objectives import RDCD, SSCD

BATCH, KD_DIM, DIM = 5, 7, 3


def student(seed=0, dim=DIM, kd_dim=KD_DIM):
    torch.manual_seed(seed)
    return Student(trunk="test_efficientnet", dim=dim, kd_dim=kd_dim).train()


def teacher(seed=100, dim=KD_DIM):
    return Teacher(student(seed, dim=None, kd_dim=dim))


def views(step):
    return torch.rand(2, BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step))


INDICES = torch.arange(BATCH)


class ListQueue:
    """The queue as a Python list of slots; None where nothing was written."""

    def __init__(self, size):
        self.slots, self.next = [None] * size, 0

    def write(self, rows):
        for row in rows:
            self.slots[self.next] = row.clone()
            self.next = (self.next + 1) % len(self.slots)

    def rows(self, dim):
        kept = [row for row in self.slots if row is not None]
        return torch.stack(kept) if kept else torch.zeros(0, dim)

    def check(self, queue):
        for slot, row in enumerate(self.slots):
            assert queue.valid[slot] == (row is not None)
            if row is not None:
                assert torch.allclose(queue.features[slot], row, atol=1e-5)
        assert queue.pointer == self.next


def momentum_step(keys, online, momentum):
    for theirs, ours in zip(keys.parameters(), online.parameters(), strict=True):
        theirs.data = momentum * theirs.data + (1 - momentum) * ours.data


@pytest.mark.parametrize("batch_negatives", [False, True])
def test_six_steps_against_plain_losses_and_lists(batch_negatives):
    """Queues of 13 slots wrap around in the third step; slots not yet filled take no part."""
    network, guide = student(), teacher()
    objective = RDCD(network, guide, queue_size=13, momentum=0.6, temperature=0.11, contrastive_weight=0.7,
                     batch_negatives=batch_negatives,
                     hard_negative_weight=4.0, relational_weight=1.3, hard_negative_form="clamp",
                     hard_negative_epsilon=2e-3, student_temperature=0.05, teacher_temperature=0.06).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    keys_oracle = copy.deepcopy(network)
    student_list, teacher_list = ListQueue(13), ListQueue(13)
    for step in range(6):
        query, key = views(step)
        momentum_step(keys_oracle, network, 0.6)  # before the key forward
        with torch.no_grad():
            keys, targets = keys_oracle(key).descriptors, guide(query)
        twin = copy.deepcopy(network)
        expected = twin(query)
        negatives = [student_list.rows(DIM)] * BATCH
        if batch_negatives:  # every query has negatives of its own: all keys but its positive
            negatives = [torch.cat([rows, keys[:i], keys[i + 1:]]) for i, rows in enumerate(negatives)]
        z = expected.descriptors
        terms = {"contrastive": sum(contrastive_loss(z[i:i + 1], keys[i:i + 1], negatives[i], temperature=0.11)
                                    for i in range(BATCH)) / BATCH,
                 "hard_negative": torch.zeros(()), "relational": torch.zeros(())}
        if len(negatives[0]):
            terms["hard_negative"] = sum(hard_negative_loss(z[i:i + 1], negatives[i], form="clamp", epsilon=2e-3)
                                         for i in range(BATCH)) / BATCH
        if step:  # the lists start empty
            terms["relational"] = relational_loss(expected.features, targets, teacher_list.rows(KD_DIM),
                                                  student_temperature=0.05, teacher_temperature=0.06)
        total = 0.7 * (terms["contrastive"] + 4.0 * terms["hard_negative"]) + 1.3 * terms["relational"]

        outcome = objective(network, query, key, INDICES)
        for name, value in terms.items():
            assert torch.allclose(outcome.terms[name], value, atol=1e-5), (step, name)
        assert torch.allclose(outcome.total, total, atol=1e-5)
        assert torch.allclose(outcome.embedding.features, expected.features, atol=1e-6)
        assert torch.allclose(outcome.embedding.descriptors, expected.descriptors, atol=1e-6)

        optimizer.zero_grad()
        outcome.total.backward()
        student_list.check(objective.student_queue)  # read, not yet written
        teacher_list.check(objective.teacher_queue)
        if step or batch_negatives:
            total.backward()
            for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
                scale = theirs.grad.abs().max().clamp(min=1)
                assert torch.allclose(ours.grad, theirs.grad, atol=1e-4 * float(scale), rtol=1e-3)
        outcome.remember()
        student_list.write(keys)
        teacher_list.write(targets)
        student_list.check(objective.student_queue)
        teacher_list.check(objective.teacher_queue)
        optimizer.step()
    assert objective.student_queue.filled == 13


def test_order_within_a_step(monkeypatch):
    """Momentum update, keys, student; queues only when told to, rows of all ranks in rank order."""
    network, guide = student(), teacher()
    objective = RDCD(network, guide, queue_size=32)
    events = []

    def spy(owner, name, what):
        original = getattr(owner, name)

        def noted(*args, **kwargs):
            events.append(what)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    spy(objective.key_encoder, "update", "update")
    spy(objective.key_encoder, "forward", "keys")
    spy(network, "forward", "student")
    spy(guide, "forward", "teacher")
    spy(objective.student_queue, "enqueue", "write")
    spy(objective.teacher_queue, "enqueue", "write")
    outcome = objective(network, *views(0), INDICES, gather=lambda x: torch.cat([x, -x]))
    assert sorted(events) == ["keys", "student", "teacher", "update"]
    assert events.index("update") < events.index("keys") < events.index("student")
    outcome.total.backward()
    outcome.remember()
    assert events[4:] == ["write", "write"]
    for queue in (objective.student_queue, objective.teacher_queue):
        assert queue.filled == 2 * BATCH
        assert torch.equal(queue.features[:BATCH], -queue.features[BATCH:2 * BATCH])


def test_the_same_picture_twice_in_a_batch_is_no_negative():
    """Its second copy is left out, and keys of other ranks come in."""
    network = student()
    query, key = views(0)
    pictures = torch.tensor([0, 1, 2, 3, 0])
    objective = RDCD(network, None, queue_size=8, relational_weight=0, hard_negative_weight=0, batch_negatives=True)
    keys, z = copy.deepcopy(network)(key).descriptors.detach(), network(query).descriptors
    outcome = objective(network, query, key, pictures, gather=lambda x: torch.cat([x, x + 7 if x.ndim == 1 else -x]))
    expected = [contrastive_loss(z[i:i + 1], keys[i:i + 1], torch.cat([keys[pictures != pictures[i]], -keys]))
                for i in range(BATCH)]
    assert torch.allclose(outcome.total, sum(expected) / BATCH, atol=1e-5)


def test_the_batch_appended_is_that_of_all_ranks():
    network, guide = student(), teacher()
    query, key = views(0)
    objective = RDCD(network, guide, queue_size=8, contrastive_weight=0, append_batch=True)
    value = objective(network, query, key, INDICES, gather=lambda x: torch.cat([-x, x])).total
    targets = guide(query)
    assert torch.allclose(value, relational_loss(network(query).features, targets, torch.cat([-targets, targets])),
                          atol=1e-5)


def test_options_reach_the_relational_loss():
    network, guide = student(), teacher()
    query, key = views(0)
    for option in ("append_batch", "append_own"):
        objective = RDCD(network, guide, queue_size=8, **{option: True})
        value = objective(network, query, key, INDICES).terms["relational"]
        embedding = network(query)
        expected = relational_loss(embedding.features, guide(query), torch.zeros(0, KD_DIM), **{option: True})
        assert torch.allclose(value, expected, atol=1e-5)


def test_without_relations_there_is_no_teacher():
    guide = teacher()
    guide.forward = None  # calling it would fail
    network = student()
    for given in (guide, None):
        objective = RDCD(network, given, queue_size=8, relational_weight=0)
        outcome = objective(network, *views(0), INDICES)
        outcome.total.backward()
        outcome.remember()
        assert set(outcome.terms) == {"contrastive", "hard_negative"}
        assert not hasattr(objective, "teacher") and not hasattr(objective, "teacher_queue")
        assert objective.student_queue.filled == BATCH


def test_without_contrast_there_is_no_key_encoder():
    network, guide = student(), teacher()
    objective = RDCD(network, guide, queue_size=8, contrastive_weight=0)
    objective(network, *views(0), INDICES).remember()
    query, key = views(1)
    outcome = objective(network, query, key, INDICES)
    assert set(outcome.terms) == {"relational"} and outcome.total == outcome.terms["relational"]
    expected = relational_loss(network(query).features, guide(query), guide(views(0)[0]))
    assert torch.allclose(outcome.total, expected, atol=1e-5)
    assert {name.split(".")[0] for name in objective.state_dict()} == {"teacher_queue"}


def test_without_hard_negatives_the_term_is_gone():
    network = student()
    objective = RDCD(network, None, queue_size=8, relational_weight=0, hard_negative_weight=0)
    outcome = objective(network, *views(0), INDICES)
    assert "hard_negative" not in outcome.terms and outcome.total == outcome.terms["contrastive"]


@pytest.mark.parametrize("options, said", [
    ({"teacher": None}, "follows a teacher: give teacher="),
    ({"teacher": teacher(dim=4)}, f"student.kd_dim={KD_DIM} but the teacher's descriptors have 4 numbers"),
    ({"contrastive_weight": 0, "relational_weight": 0}, "nothing to train for"),
    ({"hard_negative_form": "soft"}, "hard_negative_form='soft': expected 'tangent' or 'clamp'"),
    ({"append_batch": True, "append_own": True}, "append_batch=true already contains append_own=true"),
    ({"teacher_train_mode": "no"}, "loss.teacher_train_mode=no: expected true or false"),
], ids=["no teacher", "kd_dim", "no term", "form", "appends", "switch"])
def test_settings_that_cannot_work_are_refused_at_once(options, said):
    options = {"teacher": teacher()} | options
    with pytest.raises(UserError, match=said):
        RDCD(student(), queue_size=8, **options)


def test_teacher_is_no_part_of_the_objective_and_does_not_change(digest):
    network, guide = student(), teacher()
    objective = RDCD(network, guide, queue_size=8)
    before = digest(guide)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for step in range(3):
        for module in (objective, network, guide):
            module.train()
        outcome = objective(network, *views(step), INDICES)
        optimizer.zero_grad()
        outcome.total.backward()
        outcome.remember()
        optimizer.step()
    assert digest(guide) == before
    assert not any(module.training for module in guide.modules())
    assert all(p.grad is None for p in guide.parameters())
    kept = {name.split(".")[0] for name in objective.state_dict()}
    assert kept == {"key_encoder", "student_queue", "teacher_queue"}
    own = {id(p) for p in objective.parameters()} | {id(b) for b in objective.buffers()}
    assert not own & {id(value) for value in (*guide.parameters(), *guide.buffers())}


def test_teacher_in_train_mode_normalizes_by_its_batch_while_the_objective_trains():
    network, guide = student(), teacher()
    twin = copy.deepcopy(guide.network).train()
    objective = RDCD(network, guide, queue_size=16, contrastive_weight=0, append_batch=True, teacher_train_mode=True)
    statistics = copy.deepcopy(dict(guide.named_buffers()))
    for step in range(2):
        query, key = views(step)
        with torch.no_grad():
            expected = twin.embed(query)
        for module in (objective, guide):
            module.training = True  # without telling its parts, as Lightning restores modes
        objective(network, query, key, INDICES).remember()
        found = objective.teacher_queue.features[step * BATCH:(step + 1) * BATCH]
        assert torch.allclose(found, expected, atol=1e-6)
    assert not all(torch.equal(value, statistics[name]) for name, value in guide.named_buffers())
    assert all(p.grad is None and not p.requires_grad for p in guide.parameters())
    assert not [name for name in objective.state_dict() if not name.startswith("teacher_queue.")]

    statistics = copy.deepcopy(dict(guide.named_buffers()))
    objective.eval()(network, *views(2), INDICES)
    assert not any(module.training for module in guide.modules())
    assert all(torch.equal(value, statistics[name]) for name, value in guide.named_buffers())
    RDCD(network, guide.train(), queue_size=8)  # the next objective without the option
    assert not any(module.training for module in guide.train().modules())


def test_the_entropy_terms_form_reaches_the_loss():
    both = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, 0.0], [1.0, 1e-4]]), dim=1)
    network = lambda views: Embedding(both, both)  # noqa: E731
    found = {form: SSCD(None, entropy_form=form, entropy_epsilon=5e-7)(network, *views(0)[:, :2], torch.arange(2))
             .terms["entropy"].item() for form in ("clamp", "tangent")}
    assert found["clamp"] == pytest.approx(-30 * math.log(1e-3), rel=1e-5) and found["tangent"] > found["clamp"]
    with pytest.raises(UserError, match="loss.entropy_form='soft': expected 'tangent' or 'clamp'"):
        SSCD(None, entropy_form="soft")


def test_gradient_reaches_the_student_alone():
    network, guide = student(), teacher()
    objective = RDCD(network, guide, queue_size=8)
    objective(network, *views(0), INDICES).remember()
    objective(network, *views(1), INDICES).total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in objective.parameters())


def test_sscd_is_the_loss_of_both_views_together():
    network = student(dim=None)
    query, key = views(0)
    pictures = torch.tensor([3, 8, 3, 1, 0])  # one picture twice
    outcome = SSCD(network, temperature=0.07, entropy_weight=6.0)(network, query, key, pictures)
    both = network(torch.cat([query, key])).descriptors
    labels = torch.cat([pictures, pictures])
    contrastive, entropy = sscd_loss(both, labels, temperature=0.07, entropy_weight=6.0)
    assert torch.allclose(outcome.terms["contrastive"], contrastive, atol=1e-5)
    assert torch.allclose(outcome.terms["entropy"], entropy, atol=1e-5)
    assert torch.allclose(outcome.total, contrastive + entropy, atol=1e-5)
    assert torch.allclose(outcome.embedding.descriptors, both[:BATCH], atol=1e-6)
    both = both.detach()
    nearest = [max(float(both[i] @ both[j]) for j in range(2 * BATCH) if labels[i] != labels[j])
               for i in range(BATCH)]
    found = outcome.similarities()["hardest_negatives"].tolist()
    assert found == pytest.approx([value / 0.07 for value in nearest], abs=1e-4)
    assert outcome.remember() is None
    assert not list(SSCD(network).state_dict())  # without mixing there is no state


def loops(z, keys, negatives):
    """Cosines of rows to their keys, and to the nearest of the negatives that each row has, by loops."""
    return ([sum(a * b for a, b in zip(z[i].tolist(), keys[i].tolist())) for i in range(len(z))],
            [max(sum(a * b for a, b in zip(z[i].tolist(), n.tolist())) for n in negatives[i]) for i in range(len(z))])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_negatives", [False, True])
def test_similarities_are_cosines_over_the_temperature(batch_negatives, precision):
    """In fp32 under autocast, too; the keys of other ranks are negatives, and no picture's own keys."""
    network, pictures = student(), torch.tensor([0, 1, 2, 3, 0])
    objective = RDCD(network, None, queue_size=8, relational_weight=0, temperature=0.11,
                     batch_negatives=batch_negatives)
    first, second = (objective(network, *views(step), pictures).remember for step in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        outcome = objective(network, *views(2), pictures)
        assert ("hardest_negatives" in outcome.similarities()) == batch_negatives  # the queue is empty
        first()
        outcome = objective(network, *views(2), pictures, gather=lambda x: torch.cat([x, x + 7 if x.ndim == 1 else -x]))
        z, keys = outcome.embedding.descriptors, objective.key_encoder(views(2)[1]).descriptors
    negatives = [objective.student_queue.features[:BATCH]] * BATCH
    if batch_negatives:
        negatives = [torch.cat([rows, keys[pictures != own], -keys]) for rows, own in zip(negatives, pictures)]
    positive, hardest = loops(z, keys, negatives)
    found = outcome.similarities()
    assert found["positives"].tolist() == pytest.approx([s / 0.11 for s in positive], abs=1e-4)
    assert found["hardest_negatives"].tolist() == pytest.approx([s / 0.11 for s in hardest], abs=1e-4)
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in found.values())
    second()


def test_similarities_of_sscd_are_of_the_gathered_batch():
    """The row's own other view, and the nearest of all ranks' rows that match it in nothing; some rows show two."""
    network, count = student(dim=None), 4
    objective, (query, key) = sscd(mixup=0.5, temperature=0.07), views(0)[:, :count]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = objective(recorder := Recorder(network), query, key, INDICES[:count],
                            gather=lambda x: torch.cat([x, -x if x.is_floating_point() else x + 100]))
        z = network(recorder.views[0]).descriptors
    generator = np.random.default_rng((int(objective.mixing_seed), 0))
    mixed, shown = mix_views(torch.cat([query, key]), INDICES[:count].repeat(2), generator=generator, ranks=2,
                             **objective.mixing)
    assert torch.equal(recorder.views[0], mixed)
    labels, everyone = [set(row) for row in [*shown.tolist(), *(shown + 100).tolist()]], torch.cat([z, -z])
    assert {len(row) for row in labels} == {1, 2}
    negatives = [[everyone[j] for j in range(4 * count) if not labels[i] & labels[j]] for i in range(2 * count)]
    positive, hardest = loops(z, z.roll(count, 0), negatives)
    found = outcome.similarities()
    assert found["positives"].tolist() == pytest.approx([s / 0.07 for s in positive[:count]], abs=1e-4)
    assert found["hardest_negatives"].tolist() == pytest.approx([s / 0.07 for s in hardest[:count]], abs=1e-4)


def test_a_batch_where_a_row_has_no_negative_tells_of_none():
    network = student(dim=None)
    outcome = SSCD(network)(network, *views(0), torch.zeros(BATCH, dtype=torch.long))
    assert set(outcome.similarities()) == {"positives"}
    objective = RDCD(student(), teacher(), queue_size=8, contrastive_weight=0)
    assert objective(student(), *views(0), INDICES).similarities() == {}


def test_parts_are_timed_each_by_name():
    names = []

    @contextlib.contextmanager
    def part(name):
        names.append(name)
        yield
        names.append(f"end of {name}")

    network = student()
    for objective, expected in ((RDCD(network, teacher(), queue_size=8), ["momentum", "student", "teacher", "losses"]),
                                (RDCD(network, None, queue_size=8, relational_weight=0),
                                 ["momentum", "student", "losses"]), (SSCD(network), ["student", "losses"])):
        names.clear()
        objective(network, *views(0), INDICES, part=part)
        assert names == [name for one in expected for name in (one, f"end of {one}")]


class Recorder:
    """A student that keeps the views it was shown."""

    def __init__(self, network):
        self.network, self.views = network, []

    def __call__(self, views):
        self.views.append(views)
        return self.network(views)


PUBLISHED = {"mixup": 0.05, "mixup_alpha": 2.0, "cutmix_alpha": 2.0, "switch_probability": 0.5}


def sscd(seed=3, **options):
    torch.manual_seed(seed)
    return SSCD(None, **options).train()


def seen(objective, steps, network=None):
    """What the student is shown at each of `steps`."""
    recorder = Recorder(network or student(dim=None))
    for step in steps:
        objective(recorder, *views(step), INDICES).remember()
    return recorder.views


def test_mixed_views_match_all_they_show(monkeypatch):
    """The loss of the views and labels that `mix_views` gives for 2N rows and the options."""
    calls = []

    def spy(pictures, labels, *, generator, **options):
        calls.append((pictures, labels, options))
        mixed = mix_views(pictures, labels, generator=generator, **options)
        calls.append(mixed)
        return mixed

    monkeypatch.setattr(objectives, "mix_views", spy)
    network, pictures = student(dim=None), torch.tensor([3, 8, 3, 1, 0])
    recorder = Recorder(network)
    options = {"mixup": 0.7, "mixup_alpha": 1.5, "cutmix_alpha": 3.0, "switch_probability": 0.4}
    outcome = sscd(entropy_weight=6.0, **options)(recorder, *views(0), pictures)
    (came, labels, given), (mixed, shown) = calls
    assert torch.equal(came, torch.cat([*views(0)])) and labels.tolist() == [3, 8, 3, 1, 0] * 2
    assert given == {"probability": 0.7, "rank": 0, "ranks": 1} | {k: options[k] for k in options if k != "mixup"}
    assert torch.equal(recorder.views[0], mixed) and not torch.equal(mixed, came)
    both = network(mixed).descriptors
    contrastive, entropy = sscd_loss(both, shown, entropy_weight=6.0)
    assert torch.allclose(outcome.total, contrastive + entropy, atol=1e-5)
    assert not torch.allclose(outcome.total, sum(sscd_loss(both, labels, entropy_weight=6.0)), atol=1e-3)
    assert torch.allclose(outcome.embedding.descriptors, both[:BATCH], atol=1e-6)
    outcome.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_mixing_goes_on_where_a_checkpoint_left_it():
    options = PUBLISHED | {"mixup": 0.5}
    whole = seen(sscd(**options), range(4))
    assert all(map(torch.equal, whole, seen(sscd(**options), range(4))))
    assert not all(map(torch.equal, whole, seen(sscd(seed=4, **options), range(4))))
    cut, resumed = sscd(**options), sscd(seed=4, **options)
    seen(cut, range(2))
    resumed.load_state_dict(cut.state_dict())
    assert all(map(torch.equal, whole[2:], seen(resumed, range(2, 4))))
    assert not torch.equal(*seen(sscd(**options), [0, 0]))  # every step has mixes of its own
    again = sscd(**options)
    for _ in range(2):  # and the same ones until it is done
        again(recorder := Recorder(student(dim=None)), *views(0), INDICES)
        assert torch.equal(recorder.views[0], whole[0])


def test_views_are_mixed_in_training_only():
    objective = sscd(mixup=1.0).eval()
    before = copy.deepcopy(objective.state_dict())
    assert torch.equal(seen(objective, [0])[0], torch.cat([*views(0)]))
    assert objective.state_dict() == before
    seen(objective.train(), [0])
    assert objective.mixing_step == 1


def test_without_mixing_options_change_nothing():
    objective = sscd(mixup=0.0, mixup_alpha=0.1, cutmix_alpha=9.0, switch_probability=1.0)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))  # nor does it use up randomness
    assert torch.equal(seen(objective, [0])[0], torch.cat([*views(0)]))


@pytest.mark.parametrize("option, value", [
    ("temperature", 0), ("entropy_weight", -1.0), ("mixup", 1.5), ("mixup", -0.1), ("mixup", None), ("mixup_alpha", 0),
    ("cutmix_alpha", -2.0), ("entropy_epsilon", 0), ("switch_probability", 2), ("switch_probability", "half")])
def test_sscd_options_out_of_range_are_said(option, value):
    with pytest.raises(UserError, match=f"loss.{option}={value}: expected a number"):
        SSCD(None, **{option: value})


def test_sscd_of_the_configuration_is_that_of_the_code():
    options = tree(CONFIGS / "loss" / "sscd.yaml")
    defaults = {name: p.default for name, p in inspect.signature(SSCD).parameters.items() if p.kind == p.KEYWORD_ONLY}
    assert {key: value for key, value in options.items() if not key.startswith("_")} == defaults
    assert options | PUBLISHED == options | {"mixup": 0.05}


ABLATIONS = {  # options of RDCD → terms that are left
    "rdcd": {"contrastive", "hard_negative", "relational"},
    "rdcd_no_relational": {"contrastive", "hard_negative"},
    "rdcd_no_hard_negative": {"contrastive", "relational"},
    "rdcd_no_contrastive": {"relational"},
    "rdcd_clamp": {"contrastive", "hard_negative", "relational"},
    "rdcd_append_batch": {"contrastive", "hard_negative", "relational"},
    "rdcd_append_own": {"contrastive", "hard_negative", "relational"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_leaves_out_what_it_says(name):
    """Values beside RDCD's published ones, of terms that the plain losses give with the option."""
    changes = {key: value for key, value in tree(CONFIGS / "loss" / f"{name}.yaml").items() if key != "defaults"}
    options = tree(CONFIGS / "loss" / "rdcd.yaml") | changes | {"queue_size": 16}
    options = {key: value for key, value in options.items() if not key.startswith("_")}
    guide = None if name == "rdcd_no_relational" else teacher()
    network = student()
    objective = RDCD(network, guide, **options)
    objective(network, *views(0), INDICES).remember()
    outcome = objective(network, *views(1), INDICES)
    assert set(outcome.terms) == ABLATIONS[name]
    weights = {"contrastive": 1.0, "hard_negative": 5.0, "relational": 1.0}
    assert torch.allclose(outcome.total, sum(weights[term] * outcome.terms[term] for term in ABLATIONS[name]))
    embedding = network(views(1)[0])
    if "hard_negative" in ABLATIONS[name]:
        form = "clamp" if name == "rdcd_clamp" else "tangent"
        queue = objective.student_queue
        expected = hard_negative_loss(embedding.descriptors, queue.features, valid=queue.valid, form=form)
        assert torch.allclose(outcome.terms["hard_negative"], expected, atol=1e-5)
        assert objective.hard_negative["form"] == form
    if "relational" in ABLATIONS[name]:
        expected = relational_loss(embedding.features, guide(views(1)[0]), guide(views(0)[0]),
                                   append_batch=name == "rdcd_append_batch", append_own=name == "rdcd_append_own")
        assert torch.allclose(outcome.terms["relational"], expected, atol=1e-5)
    outcome.total.backward()
    assert network.fc.weight.grad.abs().sum() > 0
    assert (network.projector.weight.grad is None) == (name == "rdcd_no_contrastive")  # only z passes the projector
