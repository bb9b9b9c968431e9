"""The progress bar of a training."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slimfast.distillation.recipe import EpochRecord, Recipe
from slimfast.errors import Cancelled


class TrainingBar:
    """Show a bar over all steps on stderr, while its block runs.

    ``shown`` None means: where stderr is a terminal. A function is called with the steps done and of all
    instead; ``cancelled`` is the :class:`slimfast.Cancelled` that it raised. Only the ``main`` process shows
    or calls anything.
    """

    def __init__(
        self, recipe: Recipe, *, done: int, shown: bool | Callable[[int, int], None] | None, main: bool
    ) -> None:
        console = Console(stderr=True)
        self._call = shown if callable(shown) and main else None
        shown = False if callable(shown) else shown
        self.cancelled: Cancelled | None = None
        self._main = main
        self._recipe = recipe
        self._score = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
            disable=not main or not (console.is_terminal if shown is None else shown),
        )
        self._total = recipe.epochs * recipe.steps_per_epoch
        self._task = self._bar.add_task("distill", total=self._total, completed=done)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, steps: int, loss: float) -> None:
        """Move to ``steps`` steps in all, with the mean loss of the epoch so far."""
        epoch = min((steps - 1) // self._recipe.steps_per_epoch + 1, self._recipe.epochs)
        text = f"epoch {epoch}/{self._recipe.epochs}  loss {loss:.4f}{self._score}"
        self._bar.update(self._task, completed=steps, description=text)
        if self._call is not None:
            try:
                self._call(steps, self._total)
            except Cancelled as cancelled:
                # Raised when the processes have agreed to stop and what is done is saved.
                self.cancelled = cancelled

    def show_record(self, record: EpochRecord) -> None:
        """Remember a finished epoch's score for the text of the bar."""
        if record.score is not None:
            self._score = f"  score {record.score:.4f}"

    def announce_stop(self) -> None:
        """Tell that Ctrl-C was heard."""
        if self._main:
            self._bar.console.print("stopping after this step and saving; Ctrl-C again stops at once")
