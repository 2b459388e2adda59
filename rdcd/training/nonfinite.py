"""A loss that is not finite ends the run, names what it can, and leaves what is needed to see it again."""

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rdcd.errors import UserError
from rdcd.files import atomic_path
from rdcd.models.student import check_fit, why_unreadable
from rdcd.training import collectives
from rdcd.training.objectives import Outcome


def asked(total: Tensor) -> Callable[[], bool]:
    """Ask whether a loss is finite; what is returned waits for the answer, which a GPU gives while it does more."""
    answer = torch.isfinite(total.detach()).to("cpu", non_blocking=True)
    if not total.is_cuda:
        return lambda: bool(answer)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> bool:
        arrived.synchronize()
        return bool(answer)

    return wait


def check_finite(finite: Callable[[], bool], outcome: Outcome, batch: dict, *, module: pl.LightningModule) -> None:
    """Let a finite loss pass; write `nonfinite-….pt` into the run folder and stop at any other.

    To be called once the backward pass is under way, before weights and queues change. The file holds the views, the
    pictures' names, the terms, weights and queues before the step: tensors and plain types, for
    `torch.load(weights_only=True)`. `replay` computes the step from it once more.

    Args:
        finite: what `asked` returned.
        outcome: of the objective.
        batch: as `collate_views` makes it.
        module: the `CopyDetection` in training.

    Raises:
        UserError: naming terms, step, rank, pictures, the file, and what usually helps.
    """
    if finite():
        return
    step, rank = module.global_step, collectives.rank()
    terms = {name: float(value.detach()) for name, value in outcome.terms.items()}
    wrong = [name for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
    pictures = module.trainer.datamodule.names(batch["index"])
    path = Path(module.trainer.default_root_dir) / f"nonfinite-step{step}-rank{rank}.pt"
    with atomic_path(path) as partial:
        torch.save({"step": step, "rank": rank, "epoch": module.current_epoch, "terms": terms, "pictures": pictures,
                    "query": batch["query"].cpu(), "key": batch["key"].cpu(), "index": batch["index"].cpu(),
                    "card": module.card, "state_dict": module.state_dict()}, partial)
    values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    shown = ", ".join(pictures[:3]) + (f" and {len(pictures) - 3} more" if len(pictures) > 3 else "")
    raise UserError(f"the loss is not finite at step {step} on rank {rank}: "
                    f"{' and '.join(wrong) or 'the sum of terms'} ({values}), pictures {shown}; {path} "
                    f"holds the batch and the weights. Lower trainer.optimization.lr (now {module.optimization.lr:g}), "
                    f"lengthen trainer.optimization.warmup_epochs, or take a wider trainer.precision")


def replay(path: str | Path, *, module: pl.LightningModule) -> tuple[dict[str, float], str | None]:
    """Compute the step of a `nonfinite-….pt` once more; return its terms and the first network layer that gave no
    finite number, None where all did.

    Args:
        path: the file that `check_finite` wrote.
        module: a `CopyDetection` of the same run; it takes the file's weights and queues.

    Raises:
        UserError: the file cannot be read, or is of another run.
    """
    try:
        with open(path, "rb") as file:
            dump = torch.load(file, map_location="cpu", weights_only=True)
        state, views = dump["state_dict"], (dump["query"], dump["key"], dump["index"])
    except Exception as error:  # truncated or foreign files raise anything
        raise UserError(f"{path} is no readable record of a loss that was not finite ({why_unreadable(error)}): "
                        f"expected a nonfinite-….pt of a run") from error
    check_fit(module.state_dict(), state, path=path, what="this run's networks and queues")
    module.load_state_dict(state)
    if (keys := getattr(module.objective, "key_encoder", None)) is not None:
        keys.momentum = 1.0  # it had moved already when the file was written
    first: list[str] = []

    def look(name: str):
        def hook(layer: nn.Module, inputs: tuple, output: object) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not first and any(isinstance(t, torch.Tensor) and not t.isfinite().all() for t in tensors):
                first.append(name)
        return hook

    hooks = [layer.register_forward_hook(look(f"{kind}.{name}"))
             for kind, network in module.networks().items()
             for name, layer in network.named_modules() if not any(layer.children())]
    query, key, index = (part.to(module.device) for part in views)
    with torch.no_grad():
        outcome = module.objective(module.student, module.prepare(query), module.prepare(key), index)
    for handle in hooks:
        handle.remove()
    return {name: float(value) for name, value in outcome.terms.items()}, first[0] if first else None


def described(path: str | Path, *, module: pl.LightningModule) -> str:
    """Return in a line what `replay` found."""
    terms, layer = replay(path, module=module)
    values = ", ".join(f"{name} {value:.6g}" for name, value in terms.items())
    return f"{path}: {values}; " + (f"the first layer without a finite output is {layer}" if layer else
                                    "every layer's output is finite")
