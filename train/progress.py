"""Progress on stderr: a bar of training (images per second, time left, loss terms) and of anything else that counts.

Where there is no terminal (a job's log) training says a line every half minute, and the others say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0


class StepProgress:
    """`step` after each training step, `note` for a line above the bar."""

    def __init__(self, console: Console, *, total: int, done: int, enabled: bool) -> None:
        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
        ]
        columns += [TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn()]
        self._console, self._enabled = console, enabled
        self._next_line_s = 0.0  # the first step says that training has begun
        self._bar = Progress(*columns, console=console, disable=not enabled or not console.is_terminal)
        self._task = self._bar.add_task("fit", total=total, completed=done, epoch=0, loss="", speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, losses: Mapping[str, float], speed: Mapping[str, float]) -> None:
        shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        rate = f"{speed['images_per_s']:.0f} images/s, {speed['waiting_for_data']:.0%} waiting"
        self._bar.update(self._task, advance=1, epoch=epoch, loss=shown, speed=rate)
        if not self._console.is_terminal and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            task = self._bar.tasks[0]
            left = "" if task.time_remaining is None else f", {timedelta(seconds=round(task.time_remaining))} left"
            self.note(f"step {task.completed:.0f}/{task.total:.0f}, epoch {epoch}: {shown}, {rate}{left}")

    def note(self, line: str) -> None:
        if self._enabled:
            self._console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def counting(console: Console | None, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar for `total` of `what`; yields the function that moves it on. Lines printed on `console` meanwhile stand
    above it.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=console is None or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
