"""Progress of anything that takes more than a few seconds: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def track(total: int, label: str, *, unit: str = "images",
          every: float = 5.0) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`; away from a terminal, print a line every few seconds.

    Args:
        total: how many there are.
        label: what is being done.
        unit: what is counted.
        every: seconds between lines.
    """
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), transient=True)
    task = bar.add_task(label, total=total, rate="")
    start = said = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal said, done
        done += count
        now = time.monotonic()
        rate = done / max(now - start, 1e-9)
        bar.update(task, completed=done, rate=f"{rate:.0f} {unit}/s")
        if not bar.console.is_terminal and now - said > every:
            said = now
            left = (total - done) / rate
            print(f"{label}: {done}/{total}, {rate:.0f} {unit}/s, {left:.0f} s left", flush=True)

    if not bar.console.is_terminal:
        yield advance
    else:
        with bar:
            yield advance
