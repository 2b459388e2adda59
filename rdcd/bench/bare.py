"""What the training is compared with: its step written out without framework, and its networks alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rdcd.augment import on_device
from rdcd.data.views import EDITS, VIEWS
from rdcd.errors import UserError
from rdcd.losses import contrastive_loss, hard_negative_loss, relational_loss, sscd_loss
from rdcd.models.student import Student
from rdcd.training.fit import TrainerSettings
from rdcd.training.objectives import RDCD
from rdcd.training.optim import optimizer_and_schedule
from rdcd.training.parts import InParts


class Bare:
    """One training step after the other, as one would write them for these networks alone; nothing is logged.

    Args:
        student: the network to train; moved to `device`.
        objective: an `RDCD` or `SSCD` of that student: its networks, queues and options are used, not its code.
        settings: numerics and optimizer.
        device: `cpu` or `cuda`.
        batch_size: pictures a step.
        total_steps, warmup_steps: length of the schedule and of its rise.
        channels_last: memory format of pictures and weights.

    Raises:
        UserError: the objective mixes pictures, which is not written out here.
    """

    def __init__(self, student: Student, objective: nn.Module, *, settings: TrainerSettings, device: str,
                 batch_size: int, total_steps: int, warmup_steps: int, channels_last: bool) -> None:
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.student = student.to(device, memory_format=self.format)
        self.objective = objective.to(device, memory_format=self.format)
        self.device, self.clip = device, settings.optimization.clip
        self.relations = isinstance(objective, RDCD)
        if not self.relations and objective.mixing["probability"]:
            raise UserError(f"loss.mixup={objective.mixing['probability']}: the bare loop mixes no pictures; set 0")
        keys, teacher = (getattr(objective, name, None) for name in ("key_encoder", "teacher"))
        self.keys, self.momentum = (keys.network, keys.momentum) if keys else (None, None)
        self.teacher = teacher and teacher.train().network  # which stays in eval mode, unless the option says otherwise
        if settings.compile:
            for network in filter(None, (self.student, self.keys, self.teacher)):
                network.compile()
        self.call = self.student if settings.accumulate == 1 else InParts(self.student, settings.accumulate)
        o = settings.optimization
        self.optimizer, self.schedule = optimizer_and_schedule(
            self.student.parameters(), algorithm=o.algorithm, lr=o.lr, global_batch=batch_size,
            total_steps=total_steps, warmup_steps=warmup_steps, momentum=o.momentum, weight_decay=o.weight_decay)
        self.type = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(settings.precision)
        self.scaler = torch.amp.GradScaler(device, enabled=self.type is torch.float16)

    def low(self) -> torch.autocast:
        """Return the context of the networks' precision."""
        return torch.autocast(self.device, dtype=self.type, enabled=self.type is not None)

    def views(self, batch: dict) -> list[Tensor]:
        """Return query and key views [B, 3, S, S] on the device, in [0, 1]."""
        moved = [batch[name].to(self.device, non_blocking=True) for name in VIEWS]
        if EDITS[0] in batch:
            moved = [on_device.edited(view, batch[edits]) for view, edits in zip(moved, EDITS, strict=True)]
        return [(view.float() / 255).contiguous(memory_format=self.format) for view in moved]

    def step(self, batch: dict) -> None:
        """Train on one batch of `collate_views`."""
        query, key = self.views(batch)
        pictures = batch["index"].to(self.device, non_blocking=True)
        with self.low():
            loss, remember = (self.rdcd if self.relations else self.sscd)(query, key, pictures)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        remember()
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def rdcd(self, query: Tensor, key: Tensor, pictures: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """Return the loss of `RDCD`, and what writes the queues once the gradient is there."""
        o = self.objective
        with torch.no_grad():
            if self.keys is not None:
                torch._foreach_lerp_(list(self.keys.parameters()), [p.detach() for p in self.student.parameters()],
                                     1 - self.momentum)
                keys = self.keys(key).descriptors
        found = self.call(query)
        loss = 0.0
        if o.contrastive_weight:
            negatives, valid = o.student_queue.features, o.student_queue.valid
            if o.batch_negatives:
                negatives = torch.cat([negatives, keys])
                valid = torch.cat([valid.expand(len(keys), -1), pictures[:, None] != pictures[None, :]], dim=1)
            terms = contrastive_loss(found.descriptors, keys, negatives, valid=valid, **o.contrastive)
            if o.hard_negative_weight:
                terms = terms + o.hard_negative_weight * hard_negative_loss(found.descriptors, negatives, valid=valid,
                                                                            **o.hard_negative)
            loss = loss + o.contrastive_weight * terms
        if o.relational_weight:
            with torch.no_grad():
                targets = self.teacher.embed(query).float()
            loss = loss + o.relational_weight * relational_loss(
                found.features, targets, o.teacher_queue.features, valid=o.teacher_queue.valid, batch=targets,
                **o.relational)

        def remember() -> None:
            if o.relational_weight:
                o.teacher_queue.enqueue(targets)
            if o.contrastive_weight:
                o.student_queue.enqueue(keys)

        return loss, remember

    def sscd(self, query: Tensor, key: Tensor, pictures: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """Return the loss of `SSCD`, and nothing to do."""
        found, labels = self.call(torch.cat([query, key])).descriptors, torch.cat([pictures, pictures])
        contrastive, entropy = sscd_loss(found, labels, found, labels, offset=0, **self.objective.options)
        return contrastive + entropy, lambda: None

    def networks(self, query: Tensor, key: Tensor) -> None:
        """Pass views through the networks, and a gradient of ones back through the student: no losses, no update."""
        with self.low():
            with torch.no_grad():
                if self.keys is not None:
                    self.keys(key)
                if self.teacher is not None:
                    self.teacher.embed(query)
            found = self.call(query if self.relations else torch.cat([query, key]))
        self.optimizer.zero_grad()
        trained = [part for part in {id(part): part for part in found}.values() if part.requires_grad]
        torch.autograd.backward(trained, [torch.ones_like(part) for part in trained])
