"""One step of an objective against the plain losses, and its state against Python lists."""

import copy
import inspect

import pytest
import torch
from config_files import CONFIGS, tree

from rdcd.errors import UserError
from rdcd.losses import contrastive_loss, hard_negative_loss, relational_loss, sscd_loss
from rdcd.models.student import Student
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
                assert torch.allclose(queue.features[slot], row, atol=1e-6)
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
        assert set(outcome.terms) == {"contrastive", "hard_negative", "nearest_negative"}
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
], ids=["no teacher", "kd_dim", "no term", "form", "appends"])
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
               for i in range(2 * BATCH)]
    assert outcome.terms["nearest_negative"] == pytest.approx(sum(nearest) / len(nearest), abs=1e-5)
    assert outcome.remember() is None
    assert not list(SSCD(network).state_dict())  # without mixing there is no state


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
        objective(recorder, *views(step), INDICES)
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
    assert given == {"probability": 0.7} | {key: options[key] for key in options if key != "mixup"}
    assert torch.equal(recorder.views[0], mixed) and not torch.equal(mixed, came)
    both = network(mixed).descriptors
    contrastive, entropy = sscd_loss(both, shown, entropy_weight=6.0)
    assert torch.allclose(outcome.total, contrastive + entropy, atol=1e-5)
    assert not torch.allclose(outcome.total, sum(sscd_loss(both, labels, entropy_weight=6.0)), atol=1e-3)
    assert torch.allclose(outcome.embedding.descriptors, both[:BATCH], atol=1e-6)
    both, sets = both.detach(), [set(row) for row in shown.tolist()]
    nearest = [max([float(both[i] @ both[j]) for j in range(2 * BATCH) if not sets[i] & sets[j]], default=-1.0)
               for i in range(2 * BATCH)]
    assert outcome.terms["nearest_negative"] == pytest.approx(sum(nearest) / len(nearest), abs=1e-5)
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
    ("cutmix_alpha", -2.0), ("switch_probability", 2), ("switch_probability", "half")])
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
    assert set(outcome.terms) - {"nearest_negative"} == ABLATIONS[name]
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
