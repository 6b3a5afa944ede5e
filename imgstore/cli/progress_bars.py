"""Progress on a terminal: a bar a layer and a total, drawn by rich."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from imgstore.cli.output import printable
from imgstore.cli.units import format_size
from imgstore.progress import ProgressEvent, ProgressSink, State

FINISHED = (State.COMPLETE, State.EXISTS, State.PUSHED, State.MOUNTED, State.IN_REGISTRY, State.COPIED)
QUEUED = (State.PULLING, State.WAITING, State.PREPARING)
LINES_BESIDE_LAYERS = 2  # the total, and the line of the cursor


@contextmanager
def bars_shown(stream: TextIO) -> Iterator[ProgressSink]:
    """Draws bars on a terminal while the block runs, and leaves the last picture there."""
    console = Console(file=stream)
    with LayerBars(console) as bars:
        yield bars.show


@dataclass(slots=True)
class _Layer:
    """What is known of one layer. Sizes are compressed bytes; of a push, those that are compressed first."""

    task: TaskID
    state: State = State.PULLING
    size: int = 0
    first: int = 0  # bytes downloaded, or compressed
    second: int = 0  # bytes converted, or pushed: in the measure of the first

    @property
    def work_done(self) -> int:
        """What both halves of the work have done: twice the size when all is done."""
        return 2 * self.size if self.state in FINISHED else self.first + self.second


class LayerBars(Progress):
    """A bar a layer and, below them, the total. On a low terminal finished layers give way first, then queued ones."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[state]}", markup=False, table_column=Column(min_width=len(State.PULLING), no_wrap=True)),
            BarColumn(bar_width=30, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[amount]}", markup=False, table_column=Column(min_width=15, no_wrap=True)),
            TimeElapsedColumn(),
            console=console,
            redirect_stdout=False,  # it carries data
        )
        self._events = threading.Lock()
        self._layers: dict[str, _Layer] = {}
        self._total = self.add_task("Total", total=None, state="", amount="")

    def show(self, event: ProgressEvent) -> None:
        """The ProgressSink; any thread may call it."""
        if event.state is None or not event.layer:
            words = ": ".join(filter(None, (event.state, event.message)))
            self.console.print(printable(words), markup=False, highlight=False, soft_wrap=True)
            return
        with self._events:
            layer = self._layers.get(event.layer)
            if layer is None:
                layer = self._layers[event.layer] = _Layer(self.add_task(event.layer, total=None, state="", amount=""))
            self._show_layer(layer, event, event.state)
            self._show_total()

    def _show_layer(self, layer: _Layer, event: ProgressEvent, state: State) -> None:
        if state is not State.PUSHING or layer.size == 0:
            layer.size = max(layer.size, event.total or 0)
        if state is State.DOWNLOADED and layer.state is State.CONVERTING:
            return
        layer.state = state
        done, total, amount = event.current, layer.size or None, ""
        if state in (State.DOWNLOADING, State.DOWNLOADED, State.COMPRESSING):
            layer.first = event.current
        elif state is State.CONVERTING:
            layer.first, layer.second = layer.size, event.current
        elif state is State.COPYING:
            layer.first = layer.second = event.current
        elif state is State.PUSHING and event.total:
            layer.first, layer.second = layer.size, layer.size * event.current // event.total
            total = event.total
        if state in FINISHED:
            done, total = 1, 1
            self.stop_task(layer.task)
        elif state in QUEUED:
            done, total = 0, 1
        elif total is not None:
            amount = f"{format_size(done)}/{format_size(total)}"
        self.update(layer.task, completed=done, total=total, state=str(state), amount=amount)

    def _show_total(self) -> None:
        layers = self._layers.values()
        work = 2 * sum(layer.size for layer in layers)
        done = sum(layer.work_done for layer in layers)
        finished = sum(layer.state in FINISHED for layer in layers)
        if finished == len(layers):
            work = done = 1
        self.update(self._total, completed=done, total=work or None, state=f"{finished}/{len(layers)} layers", amount="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """The rows that fit, the total last."""
        tasks = self.tasks
        if tasks:  # Progress draws itself once before it has any
            yield self.make_tasks_table([*self._fitting(tasks[1:]), tasks[0]])

    def _fitting(self, rows: Sequence[Task]) -> Sequence[Task]:
        excess = len(rows) - max(1, self.console.height - LINES_BESIDE_LAYERS)
        if excess <= 0:
            return rows
        hidden: set[TaskID] = set()
        for states in (FINISHED, QUEUED[::-1]):
            for row in rows:
                if len(hidden) < excess and row.fields["state"] in states:
                    hidden.add(row.id)
        return [row for row in rows if row.id not in hidden][: len(rows) - excess]
