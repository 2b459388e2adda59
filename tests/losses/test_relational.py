"""The student repeats the teacher's similarities, beside a loop in float64."""

import math

import numpy as np
import pytest
import torch

from rdcd.losses import relational_loss


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(row, anchors, temperature):
    weights = [math.exp(dot(row, anchor) / temperature) for anchor in anchors]
    return [weight / sum(weights) for weight in weights]


def oracle(student, teacher, queue, valid=None, student_t=0.04, teacher_t=0.04, batch=False, own=False):
    total = 0.0
    for i in range(len(student)):
        anchors = []
        for k in range(len(queue)):
            if valid is None or valid[k]:
                anchors.append(queue[k])
        if batch:
            for row in teacher:
                anchors.append(row)
        if own:
            anchors.append(teacher[i])
        if not anchors:
            continue
        p_teacher = softmax(teacher[i], anchors, teacher_t)
        p_student = softmax(student[i], anchors, student_t)
        for p, q in zip(p_teacher, p_student, strict=True):
            total += p * math.log(p / q)
    return total / len(student)


def lists(*tensors):
    return [tensor.double().tolist() for tensor in tensors]


APPEND = [{}, {"append_batch": True}, {"append_own": True}]


def of_oracle(options):
    return {name.removeprefix("append_"): value for name, value in options.items()}


@pytest.mark.parametrize("batch, slots, size", [(5, 11, 8), (1, 11, 8), (5, 1, 8), (1, 1, 2), (7, 3, 64)])
@pytest.mark.parametrize("student_t, teacher_t", [(0.04, 0.04), (0.07, 0.02), (0.2, 1.0)])
@pytest.mark.parametrize("options", APPEND)
def test_equals_loop(unit_rows, batch, slots, size, student_t, teacher_t, options):
    student, teacher, queue = unit_rows(0, batch, size), unit_rows(1, batch, size), unit_rows(2, slots, size)
    loss = relational_loss(
        student, teacher, queue, student_temperature=student_t, teacher_temperature=teacher_t, **options
    )
    expected = oracle(*lists(student, teacher, queue), None, student_t, teacher_t, **of_oracle(options))
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_defaults_are_published(unit_rows):
    student, teacher, queue = unit_rows(0, 4, 8), unit_rows(1, 4, 8), unit_rows(2, 9, 8)
    explicit = relational_loss(
        student,
        teacher,
        queue,
        student_temperature=0.04,
        teacher_temperature=0.04,
        append_batch=False,
        append_own=False,
    )
    assert torch.equal(relational_loss(student, teacher, queue), explicit)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", APPEND)
def test_unfilled_slots_take_no_part(unit_rows, seed, options):
    student, teacher, queue = unit_rows(seed, 4, 8), unit_rows(seed + 10, 4, 8), unit_rows(seed + 20, 9, 8)
    valid = torch.from_numpy(np.random.default_rng(seed).random(9) < 0.5)
    loss = relational_loss(student, teacher, queue, valid=valid, **options)
    expected = oracle(*lists(student, teacher, queue), valid.tolist(), **of_oracle(options))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert torch.allclose(loss, relational_loss(student, teacher, queue[valid], **options))
    garbage = torch.where(valid[:, None], queue, 50 * unit_rows(99, 9, 8))
    assert torch.equal(loss, relational_loss(student, teacher, garbage, valid=valid, **options))


@pytest.mark.parametrize("options", [{}, {"append_own": True}])
def test_nothing_to_compare_with_is_zero(unit_rows, options):
    student = unit_rows(0, 4, 8).requires_grad_()
    nothing = torch.zeros(9, dtype=torch.bool)
    loss = relational_loss(student, unit_rows(1, 4, 8), unit_rows(2, 9, 8), valid=nothing, **options)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(student.grad.numpy(), np.zeros((4, 8)), atol=1e-6)


def test_batch_alone_suffices(unit_rows):
    student, teacher, queue = unit_rows(0, 4, 8), unit_rows(1, 4, 8), unit_rows(2, 9, 8)
    loss = relational_loss(student, teacher, queue, valid=torch.zeros(9, dtype=torch.bool), append_batch=True)
    assert loss.item() == pytest.approx(oracle(*lists(student, teacher), [], batch=True), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_appended_batch_is_that_of_all_processes(unit_rows, masked):
    """The mean of what two processes have of one batch is the loss of one process with all of it."""
    student, teacher, queue = unit_rows(0, 6, 8), unit_rows(1, 6, 8), unit_rows(2, 9, 8)
    options = {"append_batch": True, "valid": torch.arange(9) < 4 if masked else None}
    whole = relational_loss(student, teacher, queue, **options)
    parts = [relational_loss(student[part], teacher[part], queue, batch=teacher, **options)
             for part in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(sum(parts) / 2, whole, rtol=1e-5)
    taken = oracle(*lists(student[:3], teacher[:3], torch.cat([queue[options["valid"]] if masked else queue, teacher])))
    assert parts[0].item() == pytest.approx(taken, rel=1e-5)


def test_agreement_is_zero_and_disagreement_positive(unit_rows):
    teacher, queue = unit_rows(1, 4, 8), unit_rows(2, 9, 8)
    student = teacher.clone().requires_grad_()
    loss = relational_loss(student, teacher, queue)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), np.zeros((4, 8)), atol=1e-5)
    assert relational_loss(teacher.roll(1, 0), teacher, queue) > 0.1


@pytest.mark.parametrize("options", APPEND)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_finite_differences(unit_rows, slope, options, masked):
    student, teacher, queue = unit_rows(0, 3, 5).requires_grad_(), unit_rows(1, 3, 5), unit_rows(2, 6, 5)
    valid = torch.tensor([True, False, True, True, False, True]) if masked else None
    relational_loss(
        student, teacher, queue, valid=valid, student_temperature=0.1, teacher_temperature=0.05, **options
    ).backward()
    teachers, anchors = lists(teacher, queue)
    expected = slope(
        lambda rows: oracle(rows, teachers, anchors, valid, 0.1, 0.05, **of_oracle(options)),
        student.detach().double().tolist(),
    )
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", APPEND)
def test_no_gradient_into_the_teacher(unit_rows, options):
    student, teacher = unit_rows(0, 4, 8).requires_grad_(), unit_rows(1, 4, 8).requires_grad_()
    relational_loss(student, teacher, unit_rows(2, 9, 8), **options).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None or not teacher.grad.any()


@pytest.mark.parametrize("options", APPEND)
def test_no_gradient_into_the_queue(unit_rows, options):
    student, queue = unit_rows(0, 4, 8).requires_grad_(), unit_rows(2, 9, 8).requires_grad_()
    relational_loss(student, unit_rows(1, 4, 8), queue, **options).backward()
    assert queue.grad is None or not queue.grad.any()


def test_order_of_pictures_and_slots_is_free(unit_rows):
    student, teacher, queue = unit_rows(0, 5, 8), unit_rows(1, 5, 8), unit_rows(2, 9, 8)
    valid = torch.arange(9) % 3 > 0
    rows, slots = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([8, 2, 5, 0, 1, 7, 4, 3, 6])
    for options in APPEND:
        loss = relational_loss(student, teacher, queue, valid=valid, **options)
        shuffled = relational_loss(student[rows], teacher[rows], queue[slots], valid=valid[slots], **options)
        assert torch.allclose(loss, shuffled, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("options", APPEND)
def test_extreme_similarities(at_similarity, dtype, similarity, options):
    student = at_similarity(1.0, dtype).requires_grad_()
    teacher = at_similarity(0.5, dtype, axis=2)
    queue = torch.cat([at_similarity(similarity, dtype, axis=1), at_similarity(0.6, dtype, axis=3)])
    loss = relational_loss(student, teacher, queue, **options)
    loss.backward()
    expected = oracle(*lists(student.detach(), teacher, queue), **of_oracle(options))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0  # student and teacher see the anchors differently


def test_two_ways_of_appending_at_once_are_refused(unit_rows):
    with pytest.raises(ValueError):
        relational_loss(
            unit_rows(0, 2, 4), unit_rows(1, 2, 4), unit_rows(2, 3, 4), append_batch=True, append_own=True
        )
