"""How far the run is: a live bar on a terminal, a plain line now and then in a log file."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 5.0  # seconds between plain lines


class Bar:
    """Context manager; `update` once a step."""

    def __init__(self, first: int, total: int):
        self.first, self.total = first, total
        console = Console()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[rate]:.1f} it/s  eta"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=first, loss=0.0, lr=0.0, rate=0.0)

    def __enter__(self) -> "Bar":
        self._start = self._last_line = time.perf_counter()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, lr: float) -> None:
        now = time.perf_counter()
        rate = (step - self.first) / max(now - self._start, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss, lr=lr, rate=rate)
        elif now - self._last_line >= LINE_EVERY or step == self.total:
            self._last_line = now
            eta = (self.total - step) / rate
            print(
                f"step {step}/{self.total}  loss {loss:.4f}  lr {lr:.2e}  {rate:.1f} it/s  eta {eta:.0f} s", flush=True
            )
