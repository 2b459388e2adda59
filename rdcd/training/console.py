"""What a person sees while a network trains, and the ledgers of pictures that failed."""

import time
from pathlib import Path

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn

from rdcd.data.ledger import Ledger
from rdcd.errors import BadImage


class Console(pl.Callback):
    """Progress with images/s, share of time spent waiting for data, and time left; the speed is logged too.

    On a terminal a live bar, elsewhere a line every `every` seconds.

    Args:
        label: what the line calls this stage.
        global_batch: pictures a step over all ranks.
        every: seconds between lines.
    """

    def __init__(self, label: str, *, global_batch: int, every: float = 10.0) -> None:
        self.label, self.global_batch, self.every = label, global_batch, every
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.total, self.first = int(trainer.estimated_stepping_batches), trainer.global_step
        self.start = self.said = time.monotonic()
        self.paused = 0.0
        self.window = [0, module.waited, self.start]  # steps; seconds waited before; since when
        self.live = trainer.is_global_zero and self.bar.console.is_terminal
        if self.live:
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, text="")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        now = time.monotonic()
        self.window[0] += 1
        steps, before, since = self.window
        last = trainer.global_step == self.total
        logging = trainer.global_step % trainer.log_every_n_steps == 0
        saying = last or now - self.said > (0.5 if self.live else self.every)  # the loss waits for the device
        if not (logging or saying):
            return
        seconds = max(now - since, 1e-9)
        rate, wait = steps * self.global_batch / seconds, (module.waited - before) / seconds
        if logging:
            module.log_dict({"train/images_per_s": rate, "train/data_wait": wait})
            self.window = [0, module.waited, now]
        if saying and trainer.is_global_zero:
            self.said = now
            self._say(trainer, module, rate, wait, now)

    def _say(self, trainer, module, rate: float, wait: float, now: float) -> None:
        done, metrics = trainer.global_step, trainer.callback_metrics
        left = (now - self.start - self.paused) / max(done - self.first, 1) * (self.total - done)
        text = (f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, step {done}/{self.total}, "
                f"loss {float(module.shown_loss):.3f}, {rate:.0f} images/s, {wait:.0%} waiting for data, "
                f"{left // 60:.0f}:{left % 60:02.0f} left")
        if (value := metrics.get("val/uAP_SN")) is not None:
            text += f", µAP_SN {value:.3f}"
        if self.live:
            self.bar.update(self.task, completed=done, text=text)
        else:
            print(f"{self.label}: {text}", flush=True)

    def on_validation_start(self, trainer, module) -> None:
        self.validating = time.monotonic()

    def on_validation_end(self, trainer, module) -> None:
        pause = time.monotonic() - self.validating
        module.clock.add("validation", pause)
        if hasattr(self, "window"):  # not when validating alone
            self.paused += pause
            self.window[2] += pause

    def on_train_end(self, trainer, module) -> None:
        self._stop()

    def on_exception(self, trainer, module, exception) -> None:
        self._stop()

    def _stop(self) -> None:
        if getattr(self, "live", False):
            self.bar.stop()


class BadFiles(pl.Callback):
    """Says which pictures are unreadable, lists them in CSVs, and ends the run where they are too many.

    Training pictures go to `bad_files.csv`, those of validation to `bad_files_evaluation.csv`, beside each other.

    Args:
        folder: where these go; a resumed run goes on with what is there.
        max_bad_share: largest share of bad pictures, in training and in validation.
        epoch: pictures of an epoch, at the end of which training is judged even if there are few.
        rank: of this process, which counts its own share of the pictures; but for the first, it ends the files' names.
    """

    SAID = 10  # bad pictures; further ones are only listed

    def __init__(self, folder: Path, *, max_bad_share: float, epoch: int, rank: int = 0) -> None:
        self.epoch = epoch
        self.training, self.validation = (
            Ledger(folder / f"{name}{f'-{rank}' if rank else ''}.csv", max_bad_share=max_bad_share,
                   key="data.max_bad_share", keep=True) for name in ("bad_files", "bad_files_evaluation"))

    def on_train_batch_end(self, trainer, module, outputs, batch: dict, batch_index: int) -> None:
        bad = [error for errors in batch["bad"] for error in errors]
        new = self.training.add(bad, seen=len(batch["index"]), failed=len(batch["bad"]))
        self._say(self.training, new, "the next picture takes its place")

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.training.seen >= self.epoch:  # not after the rest of one that was interrupted
            self.training.settle()

    def on_validation_batch_end(self, trainer, module, outputs, batch: tuple[list, list], *arguments) -> None:
        found, unreadable = batch
        seen = sum(len(indices) for indices, _ in found) + len(unreadable)
        new = self.validation.add([error for _, error in unreadable], seen=seen)
        self._say(self.validation, new, "it counts as missing")

    def on_validation_epoch_end(self, trainer, module) -> None:
        self.validation.settle()

    def _say(self, ledger: Ledger, new: list[BadImage], what: str) -> None:
        before = len(ledger.bad) - len(new)
        for error in new[:max(self.SAID - before, 0)]:
            print(f"{error}; {what}, {ledger.path} lists it", flush=True)
        if before < self.SAID < len(ledger.bad):
            print(f"further pictures that cannot be read are only listed, in {ledger.path}", flush=True)
