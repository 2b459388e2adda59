"""One process, two and three train the same network: weights, queues, logs and validation."""

import os
import sys
import traceback
from functools import partial

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_runs import RECIPE, go, rows, settings

from rdcd.data.disc import open_benchmark
from rdcd.evaluation import score as evaluation
from rdcd.evaluation.score import score_descriptors
from rdcd.models.student import Student
from rdcd.retrieval.descriptors import Descriptors
from rdcd.training.launch import TeacherFile
from rdcd.training.module import CopyDetection, Optimization
from rdcd.training.objectives import RDCD, SSCD

BATCH = 12
OBJECTIVES = {"rdcd": partial(RDCD, queue_size=31, momentum=0.5),
              "rdcd_all": partial(RDCD, queue_size=31, momentum=0.5, batch_negatives=True, append_batch=True),
              "sscd": partial(SSCD, entropy_weight=2.0, mixup=0.5)}


def rank(root, teacher, folder, number, ranks, loss, *, trunk="test_convnext", augment=RECIPE,
         resume=False, **changes):
    """Train as one of several processes, and leave what this one holds at the end."""
    def on_train_end(self):
        torch.save(self.state_dict(), folder.parent / f"{folder.name}-{number}.pt")

    def score(*descriptors, **options):
        scored.append({"ids": [d.names.tolist() for d in descriptors[:3]],
                       "vectors": [torch.from_numpy(d.vectors) for d in descriptors[:3]]})
        torch.save(scored, folder.parent / f"{folder.name}-{number}-validation.pt")
        return score_descriptors(*descriptors, **options)

    scored = []
    evaluation.score_descriptors = score  # where validation takes it from
    CopyDetection.on_train_end = on_train_end
    if ranks > 1:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks),
                       "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                       "TORCHELASTIC_RUN_ID": "none"}
        dist.init_process_group("gloo", init_method=f"file://{folder.parent}/{folder.name}.meeting", rank=number,
                                world_size=ranks)
    go(root, None if resume else folder, resume=str(folder) if resume else None, augment=augment,
       teacher=TeacherFile(str(teacher)), data={"batch_size": BATCH}, loss=OBJECTIVES[loss], baselines=[],
       student=partial(Student, trunk=trunk, dim=8, kd_dim=None),
       trainer=settings(**{"epochs": 3, "devices": ranks, "validate_every": 1, "optimization": Optimization(
           algorithm="sgd", lr=0.5, warmup_epochs=1.0, clip=5.0)} | changes))


def processes(root, teacher, folder, ranks, loss, **changes):
    """Train in `ranks` processes; return the run folder and what every rank held at the end."""
    sys.stdout.flush()
    folder.with_name(f"{folder.name}.meeting").unlink(missing_ok=True)
    children = []
    for number in range(ranks):
        if (child := os.fork()) == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                rank(root, teacher, folder, number, ranks, loss, **changes)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * ranks
    return folder, [torch.load(folder.parent / f"{folder.name}-{n}.pt", weights_only=True) for n in range(ranks)]


@pytest.fixture(scope="module")
def teacher(plain_run):
    return plain_run / "teacher"


@pytest.fixture(scope="module", params=OBJECTIVES)
def runs(request, benchmark_root, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return {ranks: processes(benchmark_root, teacher, folder / str(ranks), ranks, request.param)
            for ranks in (1, 2, 3)}


def close(first, second, atol=1e-5):
    return first.keys() == second.keys() and all(torch.allclose(first[k].float(), second[k].float(), atol=atol)
                                                 for k in first)


@pytest.mark.parametrize("ranks", [2, 3])
def test_weights_are_those_of_one_process(runs, ranks):
    (alone, _), (many, held) = runs[1], runs[ranks]
    assert close(load_file(alone / "student.safetensors"), load_file(many / "student.safetensors"))
    moved = load_file(alone / "student.safetensors")["fc.weight"] - load_student_fc(alone)
    assert moved.abs().max() > 1e-3  # they have moved at all
    for other in held[1:]:
        student = {k: v for k, v in held[0].items() if k.startswith("student.")}
        assert all(torch.equal(value, other[key]) for key, value in student.items())


def load_student_fc(run):
    """The fc weights a run began with: those of its seed."""
    torch.manual_seed(0)
    return Student(trunk="test_convnext", dim=8, kd_dim=12).fc.weight.detach()


@pytest.mark.parametrize("ranks", [2, 3])
def test_queues_are_equal_on_every_rank_and_those_of_one_process(runs, ranks):
    (_, (alone,)), (_, held) = runs[1], runs[ranks]
    queues = [key for key in alone if "_queue." in key]
    for key in queues:
        assert all(torch.equal(held[0][key], other[key]) for other in held), key
        assert torch.allclose(held[0][key].float(), alone[key].float(), atol=1e-4), key
        if key.endswith("pointer"):
            assert int(alone[key]) == 6 * BATCH % 31
    assert bool(queues) == ("objective.key_encoder.momentum" in alone or any("key_encoder" in key for key in alone))


@pytest.mark.parametrize("ranks", [2, 3])
def test_logs_are_those_of_one_process(runs, ranks):
    """Losses, gradient norm, learning rate, spread: of the global batch, whatever rank writes them."""
    logs = [sorted((row for row in rows(next(run.glob("logs/csv/*/")))), key=lambda row: int(row["step"]))
            for run in (runs[1][0], runs[ranks][0])]
    names = {name for log in logs for row in log for name, value in row.items() if value} - {"step", "epoch"}
    assert {"train/loss", "train/lr", "train/gradient_norm", "train/effective_rank_h", "val/uAP_SN"} <= names
    for name in {name for name in names if name.startswith("train/")} - {"train/images_per_s", "train/data_wait"}:
        first, second = ([(row["step"], float(row[name])) for row in log if row.get(name)] for log in logs)
        assert [step for step, _ in first] == [step for step, _ in second], name
        assert [v for _, v in first] == pytest.approx([v for _, v in second], abs=1e-4, rel=1e-3), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_validation_is_that_of_one_process(runs, ranks, benchmark_root):
    """Every rank has every descriptor once, as close as queues are; the metrics logged are those of the descriptors.

    Metrics of one process and of several are not compared: rounding decides the order of near ties.
    """
    pairs = open_benchmark(benchmark_root).pairs
    held = {(many, n): torch.load(runs[many][0].parent / f"{many}-{n}-validation.pt", weights_only=True)
            for many in (1, ranks) for n in range(many)}
    assert len({len(scored) for scored in held.values()}) == 1
    for scored in held.values():
        for validation, alone in zip(scored, held[1, 0], strict=True):
            assert validation["ids"] == alone["ids"]
            assert all(torch.allclose(mine, theirs, atol=1e-4)
                       for mine, theirs in zip(validation["vectors"], alone["vectors"], strict=True))
    logged = [row for row in rows(next(runs[ranks][0].glob("logs/csv/*/"))) if row.get("val/uAP_SN")]
    for row, validation in zip(sorted(logged, key=lambda row: int(row["step"])), held[ranks, 0], strict=True):
        described = [Descriptors(names=ids, vectors=vectors.numpy())
                     for ids, vectors in zip(validation["ids"], validation["vectors"], strict=True)]
        plain, normalized = (found.metrics for found in score_descriptors(*described, pairs))
        assert float(row["val/uAP"]) == pytest.approx(plain.uAP)
        assert float(row["val/uAP_SN"]) == pytest.approx(normalized.uAP)


@pytest.mark.parametrize("ranks", [2, 3])
def test_tables_are_those_of_one_process(runs, ranks):
    first, second = rows(runs[1][0]), rows(runs[ranks][0])
    assert [row["model"] for row in first] == [row["model"] for row in second]
    for one, other in zip(first, second, strict=True):
        assert float(one["uAP"]) == pytest.approx(float(other["uAP"]), abs=1e-6)


