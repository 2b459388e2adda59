"""Where the time of a step goes, part by part."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Part = Callable[[str], AbstractContextManager]


def untimed(name: str) -> AbstractContextManager:
    """A `Part` that measures nothing."""
    return nullcontext()


class Clock:
    """Adds up seconds by part; on a GPU by events in its stream, without waiting for it.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self._seconds = device, defaultdict(float)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as part `name`."""
        start = self.now()
        try:
            yield
        finally:
            self.since(start, name)

    def now(self) -> "float | torch.cuda.Event":
        """Return this moment, for `since`."""
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def since(self, start: "float | torch.cuda.Event", name: str) -> None:
        """Count the time from `start`, which `now` gave, as part `name`."""
        if self.device != "cuda":
            self._seconds[name] += time.perf_counter() - start
            return
        self._pending.append((name, start, self.now()))
        while len(self._pending) > 1000 and self._pending[0][2].query():
            self._take()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds of this process, such as those it waited, as part `name`."""
        self._seconds[name] += seconds

    def seconds(self) -> dict[str, float]:
        """Return part → seconds so far; on a GPU, waits for what is under way."""
        if self._pending:
            torch.cuda.synchronize()
        while self._pending:
            self._take()
        return dict(self._seconds)

    def _take(self) -> None:
        name, start, end = self._pending.popleft()
        self._seconds[name] += start.elapsed_time(end) / 1000
