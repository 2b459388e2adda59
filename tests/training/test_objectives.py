"""One step of an objective against the plain losses, and its state against Python lists."""

import copy

import pytest
import torch

from rdcd.errors import UserError
from rdcd.losses import contrastive_loss, hard_negative_loss, relational_loss, sscd_loss
from rdcd.models.student import Student
from rdcd.models.teacher import Teacher
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
    assert not list(SSCD(network).state_dict())
