"""Progress of the training: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mindspeed_moe.demo.messages import Step
from mindspeed_moe.demo.settings import Settings

_LINES = 4  # per implementation, where there is no terminal
_WINDOW = 10  # steps over which the speed is averaged


class TrainingProgress:
    """Shows Steps as they come; a context manager."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._every = max(1, settings.steps // _LINES)
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, step: Step) -> None:
        """Show one step."""
        if step.implementation not in self._tasks:
            self._tasks[step.implementation] = self._bars.add_task(
                step.implementation, total=self._settings.steps, state=""
            )
            self._seconds.clear()
        self._seconds.append(step.seconds)
        speed = self._settings.tokens_per_step * len(self._seconds) / sum(self._seconds)
        state = f"loss {step.loss:.4f}  {speed:,.0f} tokens/s"
        if self._console.is_terminal:
            self._bars.update(self._tasks[step.implementation], completed=step.done, state=state)
        elif step.done in (1, self._settings.steps) or step.done % self._every == 0:
            self._console.print(f"{step.implementation:<9}  step {step.done}/{self._settings.steps}  {state}")
