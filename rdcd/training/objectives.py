"""What a network is trained for: the losses, with the state they need (docs/method.md §2, §3).

An objective is a module called once a step with both views; it returns the weighted total and its
terms. What spans ranks is injected: `gather(x)` returns the rows of all of them in rank order, and
`shuffle(embed, pictures)` what `embed` gives for pictures, computed among those of other ranks. So is
the timing of its parts: `momentum` (the key encoder's update and forward), `student`, `teacher`, and
`losses`, from descriptors to scalars.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdcd.errors import UserError, check_number
from rdcd.losses import contrastive_loss, hard_negative_loss, relational_loss, sscd_loss
from rdcd.losses.hard_negative import hardest_similarity
from rdcd.losses.sscd import share_picture
from rdcd.models.momentum import MomentumEncoder
from rdcd.models.queue import DescriptorQueue
from rdcd.models.student import Embedding, Student
from rdcd.models.teacher import Teacher, Unregistered
from rdcd.training import collectives
from rdcd.training.clock import Part, untimed
from rdcd.training.mixing import mix_views

Gather = Callable[[Tensor], Tensor]
Shuffle = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def alone(rows: Tensor) -> Tensor:
    """Gather of a single process: the identity."""
    return rows


def unshuffled(embed: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Shuffle of a process that keeps its pictures: none."""
    return embed(pictures)


def check_form(name: str, value: str) -> None:
    """Refuse what is no form of `cut_log`.

    Raises:
        UserError: neither `tangent` nor `clamp`.
    """
    if value not in ("tangent", "clamp"):
        raise UserError(f"{name}={value!r}: expected 'tangent' or 'clamp'")


class Outcome(NamedTuple):
    """One step's loss.

    `total` takes the gradient; `terms` are unweighted; `embedding` is of the query views; `remember` moves the state on
    (queues, the step of mixing), to be called after the backward pass, which still reads them. `similarities()`, for
    steps that are logged, as it waits for the device and all ranks, returns cosines divided by the contrastive
    temperature, fp32 without gradient: `positives` [B], of each query to its key, and `hardest_negatives` [B], to its
    nearest negative. Empty without a contrastive term; as long as a row of the global batch has no negative,
    `hardest_negatives` is left out on every rank.
    """

    total: Tensor
    terms: dict[str, Tensor]
    embedding: Embedding
    remember: Callable[[], None]
    similarities: Callable[[], dict[str, Tensor]]


def _similarities(query: Tensor, key: Tensor, hardest: Tensor, *, complete: Tensor,
                  temperature: float) -> dict[str, Tensor]:
    """Return `Outcome.similarities()`; `complete` tells whether `hardest` has a negative in each of its rows."""
    found = {"positives": (query.float() * key.float()).sum(dim=1)}
    if complete:
        found["hardest_negatives"] = hardest
    return {name: cosines / temperature for name, cosines in found.items()}


class RDCD(Unregistered, nn.Module):
    """λ_con·(L_con + λ_HN·L_HN) + λ_rel·L_rel (docs/method.md §2).

    The teacher sees the query view only; queues are read before they are written.

    Args:
        student: the network in training; its copy becomes the momentum encoder.
        teacher: frozen; None only with `relational_weight=0`.
        queue_size: K of both queues.
        momentum: of the key encoder.
        temperature: τ of the contrastive term.
        batch_negatives: the batch's other keys join the queue as negatives of both contrastive terms (published:
            the queue alone). They are of the queries' own age and BatchNorm statistics, so those cannot give
            the positive away.
        contrastive_weight, hard_negative_weight, relational_weight: λ_con, λ_HN, λ_rel; a term of
            weight 0 is not computed.
        hard_negative_form, hard_negative_epsilon: see `hard_negative_loss`.
        student_temperature, teacher_temperature, append_batch, append_own: see `relational_loss`; the batch appended is
            that of all ranks.
        teacher_train_mode: the teacher's `train_mode`, see `Teacher`; in eval mode of the objective it is in eval mode.

    Raises:
        UserError: teacher and student disagree on the size of h, there is no teacher to follow, or options
            that cannot work.
    """

    def __init__(self, student: Student, teacher: Teacher | None, *, queue_size: int = 65536, momentum: float = 0.99,
                 temperature: float = 0.07, batch_negatives: bool = False, contrastive_weight: float = 1.0,
                 hard_negative_weight: float = 5.0, relational_weight: float = 1.0,
                 hard_negative_form: str = "tangent", hard_negative_epsilon: float = 1e-3,
                 student_temperature: float = 0.04, teacher_temperature: float = 0.04, append_batch: bool = False,
                 append_own: bool = False, teacher_train_mode: bool = False) -> None:
        super().__init__()
        self.contrastive_weight, self.hard_negative_weight = contrastive_weight, hard_negative_weight
        self.relational_weight, self.batch_negatives = relational_weight, batch_negatives
        self.contrastive = {"temperature": temperature}
        self.hard_negative = {"form": hard_negative_form, "epsilon": hard_negative_epsilon}
        self.relational = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature,
                           "append_batch": append_batch, "append_own": append_own}
        kd_dim = student.architecture["kd_dim"]
        check_number("loss.queue_size", queue_size, 1)
        check_number("loss.momentum", momentum, 0, 1, whole=False)
        for name, value in (("contrastive_weight", contrastive_weight), ("hard_negative_weight", hard_negative_weight),
                            ("relational_weight", relational_weight)):
            check_number(f"loss.{name}", value, 0, whole=False)
        for name, value in (("temperature", temperature), ("student_temperature", student_temperature),
                            ("teacher_temperature", teacher_temperature),
                            ("hard_negative_epsilon", hard_negative_epsilon)):
            check_number(f"loss.{name}", value, 0, whole=False, above=True)
        for name, value in (("batch_negatives", batch_negatives), ("append_batch", append_batch),
                            ("append_own", append_own), ("teacher_train_mode", teacher_train_mode)):
            if not isinstance(value, bool):
                raise UserError(f"loss.{name}={value}: expected true or false")
        if not (contrastive_weight or relational_weight):
            raise UserError("loss.contrastive_weight=0 and loss.relational_weight=0 leave nothing to train "
                            "for: set one of them above 0")
        check_form("loss.hard_negative_form", hard_negative_form)
        if append_batch and append_own:
            raise UserError("loss.append_batch=true already contains append_own=true: set one to false")
        if relational_weight and teacher is None:
            raise UserError("loss=rdcd follows a teacher: give teacher=…, or set loss.relational_weight=0")
        if relational_weight and teacher.dim != kd_dim:
            raise UserError(f"student.kd_dim={kd_dim} but the teacher's descriptors have {teacher.dim} numbers: "
                            f"leave student.kd_dim=null to follow the teacher")
        if relational_weight:
            teacher.train_mode = teacher_train_mode
            self.use("teacher", teacher.eval())
            self.teacher_queue = DescriptorQueue(queue_size, teacher.dim)
        if contrastive_weight:
            self.key_encoder = MomentumEncoder(student, momentum=momentum)
            self.student_queue = DescriptorQueue(queue_size, student.dim)

    def forward(self, student: Callable[[Tensor], Embedding], query: Tensor, key: Tensor, pictures: Tensor,
                gather: Gather = alone, part: Part = untimed, shuffle: Shuffle = unshuffled) -> Outcome:
        """Compute the loss of one batch.

        Args:
            student: the online network (or its parallel wrapper).
            query, key: the two views, [B, 3, S, S] in [0, 1].
            pictures: int [B], which picture each row shows.
            gather: rows of all ranks.
            part: times the parts.
            shuffle: of the keys over ranks.
        """
        if self.contrastive_weight:
            with part("momentum"):
                self.key_encoder.update(getattr(student, "module", student))
                keys = shuffle(lambda views: self.key_encoder(views).descriptors, key)
        with part("student"):
            embedding = student(query)
        if self.relational_weight:
            with part("teacher"):
                if self.teacher.train_mode:  # here, as whoever restores the mode of this module does not reach it
                    self.teacher.train(self.training)
                targets = self.teacher(query)
        with part("losses"):
            total, terms, similarities = embedding.descriptors.new_zeros(()), {}, dict
            if self.contrastive_weight:
                every_key = gather(keys)
                negatives, valid = self.student_queue.features, self.student_queue.valid
                if self.batch_negatives:
                    negatives = torch.cat([negatives, every_key])
                    others = pictures[:, None] != gather(pictures)[None, :]
                    valid = torch.cat([valid.expand(len(keys), -1), others], dim=1)
                terms["contrastive"] = contrastive_loss(embedding.descriptors, keys, negatives, valid=valid,
                                                        **self.contrastive)
                total = total + self.contrastive_weight * terms["contrastive"]
                if self.hard_negative_weight:
                    terms["hard_negative"] = hard_negative_loss(embedding.descriptors, negatives, valid=valid,
                                                                **self.hard_negative)
                    total = total + self.contrastive_weight * self.hard_negative_weight * terms["hard_negative"]

                @torch.no_grad()
                def similarities() -> dict[str, Tensor]:  # a row lacks a negative where all rows do
                    hardest = hardest_similarity(embedding.descriptors, negatives, valid)
                    return _similarities(embedding.descriptors, keys, hardest, complete=valid.any(), **self.contrastive)

            if self.relational_weight:
                every_target = gather(targets)
                terms["relational"] = relational_loss(embedding.features, targets, self.teacher_queue.features,
                                                      valid=self.teacher_queue.valid, batch=every_target,
                                                      **self.relational)
                total = total + self.relational_weight * terms["relational"]

        def remember() -> None:
            if self.relational_weight:
                self.teacher_queue.enqueue(every_target)
            if self.contrastive_weight:
                self.student_queue.enqueue(every_key)

        return Outcome(total, terms, embedding, remember, similarities)


class SSCD(nn.Module):
    """InfoNCE over the batch's 2N views plus λ·KoLeo (Pizzi et al. 2022; docs/method.md §3).

    Args:
        student: the network in training.
        teacher: not used; every objective is built with the same two networks.
        temperature: τ.
        entropy_weight: λ, 30 as published, 10 for new trunks.
        entropy_form, entropy_epsilon: see `koleo_loss`.
        mixup: probability of a view to be mixed with another, 0.05 in the published recipe. What is mixed is a
            function of a seed from torch's generator, the step and the place in the global batch, whatever the number
            of ranks, and goes on as it would after a resume.
        mixup_alpha, cutmix_alpha, switch_probability: see `mix_views`.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, student: Student, teacher: Teacher | None = None, *, temperature: float = 0.05,
                 entropy_weight: float = 30.0, entropy_form: str = "tangent", entropy_epsilon: float = 1e-3,
                 mixup: float = 0.0, mixup_alpha: float = 2.0, cutmix_alpha: float = 2.0,
                 switch_probability: float = 0.5) -> None:
        super().__init__()
        check_number("loss.entropy_weight", entropy_weight, 0, whole=False)
        for name, value in (("temperature", temperature), ("entropy_epsilon", entropy_epsilon),
                            ("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            check_number(f"loss.{name}", value, 0, whole=False, above=True)
        for name, value in (("mixup", mixup), ("switch_probability", switch_probability)):
            check_number(f"loss.{name}", value, 0, 1, whole=False)
        check_form("loss.entropy_form", entropy_form)
        self.options = {"temperature": temperature, "entropy_weight": entropy_weight, "entropy_form": entropy_form,
                        "entropy_epsilon": entropy_epsilon}
        self.mixing = {"probability": mixup, "mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha,
                       "switch_probability": switch_probability}
        if mixup:
            self.register_buffer("mixing_seed", torch.randint(2**62, ()))
            self.register_buffer("mixing_step", torch.zeros((), dtype=torch.long))

    def forward(self, student: Callable[[Tensor], Embedding], query: Tensor, key: Tensor, pictures: Tensor,
                gather: Gather = alone, part: Part = untimed, shuffle: Shuffle = unshuffled) -> Outcome:
        """Compute the loss of one batch; arguments as in `RDCD.forward`. Views are mixed in training mode only; there
        is no key encoder whose batch would be shuffled.

        Raises:
            UserError: several ranks are to mix an odd number of pictures each.
        """
        views, labels = torch.cat([query, key]), torch.cat([pictures, pictures])
        ranks = len(gather(pictures)) // len(pictures)
        rank = collectives.rank() if ranks > 1 else 0
        mixing = bool(self.mixing["probability"] and self.training)
        if mixing:
            seed = (int(self.mixing_seed), int(self.mixing_step))
            views, labels = mix_views(views, labels, rank=rank, ranks=ranks, generator=np.random.default_rng(seed),
                                      **self.mixing)
        with part("student"):
            both = student(views)
        with part("losses"):
            everyone, every_label = gather(both.descriptors), gather(labels)
            contrastive, entropy = sscd_loss(both.descriptors, labels, everyone, every_label, offset=rank * len(labels),
                                             **self.options)
            terms = {"contrastive": contrastive, "entropy": entropy}
            queries, keys = both.descriptors.chunk(2)

        @torch.no_grad()
        def similarities() -> dict[str, Tensor]:
            negative = ~share_picture(labels, every_label)
            hardest = hardest_similarity(queries, everyone, negative[:len(query)])
            return _similarities(queries, keys, hardest, temperature=self.options["temperature"],
                                 complete=gather(negative.any(dim=1)).all())

        def remember() -> None:
            if mixing:
                self.mixing_step += 1

        return Outcome(contrastive + entropy, terms, Embedding(both.features[:len(query)], queries), remember,
                       similarities)
