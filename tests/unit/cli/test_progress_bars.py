"""What the bars show, drawn on a terminal that is a string."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from imgstore.cli.progress_bars import LayerBars
from imgstore.progress import ProgressEvent, State


@pytest.fixture
def bars() -> LayerBars:
    return LayerBars(Console(file=io.StringIO(), force_terminal=True, width=100, height=8, color_system=None))


def picture(bars: LayerBars) -> list[str]:
    """Returns the rows as they are drawn now, bars and times left out."""
    console = Console(file=io.StringIO(), width=100)
    for renderable in bars.get_renderables():
        console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [re.sub(r"\s+", " ", re.sub(r"[━╸╺-]+|\d+:\d\d:\d\d", "", line)).strip() for line in text.splitlines()]


def test_a_layer_goes_through_its_states(bars: LayerBars) -> None:
    steps = [
        (ProgressEvent("a", State.PULLING), "a Pulling fs layer", "Total 0/1 layers"),
        (ProgressEvent("a", State.DOWNLOADING, 500_000, 2_000_000), "a Downloading 500kB/2MB", "Total 0/1 layers"),
        (ProgressEvent("a", State.CONVERTING, 1_000_000, 2_000_000), "a Converting 1MB/2MB", "Total 0/1 layers"),
        (ProgressEvent("a", State.COMPLETE), "a Pull complete", "Total 1/1 layers"),
    ]
    for event, layer, total in steps:
        bars.show(event)
        assert [layer, total] == picture(bars)


def test_the_total_counts_downloads_and_conversions(bars: LayerBars) -> None:
    total = bars.tasks[0]
    bars.show(ProgressEvent("a", State.DOWNLOADING, 50, 100))
    bars.show(ProgressEvent("b", State.CONVERTING, 100, 300))
    assert (total.completed, total.total) == (50 + 300 + 100, 2 * 400)
    bars.show(ProgressEvent("c", State.EXISTS))
    bars.show(ProgressEvent("a", State.COMPLETE))
    assert (total.completed, total.total) == (200 + 300 + 100, 2 * 400)
    bars.show(ProgressEvent("b", State.COMPLETE))
    assert total.finished


def test_a_layer_of_unknown_size_has_no_amount(bars: LayerBars) -> None:
    bars.show(ProgressEvent("a", State.DOWNLOADING, 7))
    assert picture(bars) == ["a Downloading", "Total 0/1 layers"]


def test_on_a_low_terminal_finished_layers_give_way_then_queued_ones(bars: LayerBars) -> None:
    for name in "abcdefgh":
        bars.show(ProgressEvent(name, State.PULLING))
    assert len(picture(bars)) == 7
    bars.show(ProgressEvent("b", State.EXISTS))
    bars.show(ProgressEvent("h", State.DOWNLOADING, 1, 2))
    expected = [*(f"{name} Pulling fs layer" for name in "defg"), "h Downloading 1B/2B", "Total 1/8 layers"]
    assert expected == [row for row in picture(bars) if not row.startswith("c")]


def test_a_retry_of_a_manifest_belongs_to_no_layer(bars: LayerBars) -> None:
    bars.show(ProgressEvent("", State.RETRYING, message="503; trying again in 2 s"))
    assert picture(bars) == ["Total"]
    assert bars.console.file.getvalue() == "Retrying: 503; trying again in 2 s\n"  # type: ignore[attr-defined]


def test_messages_stand_above_the_bars_and_cannot_steer_the_terminal(bars: LayerBars) -> None:
    bars.show(ProgressEvent("", message="[bold]\x1b[2Jthree layers"))
    assert bars.console.file.getvalue() == "[bold]\\x1b[2Jthree layers\n"  # type: ignore[attr-defined]


def test_a_push_counts_what_is_compressed_and_what_is_sent(bars: LayerBars) -> None:
    total = bars.tasks[0]
    bars.show(ProgressEvent("a", State.PREPARING))
    assert picture(bars) == ["a Preparing", "Total 0/1 layers"]
    bars.show(ProgressEvent("a", State.COMPRESSING, 500_000, 2_000_000))
    assert picture(bars) == ["a Compressing 500kB/2MB", "Total 0/1 layers"]
    assert (total.completed, total.total) == (500_000, 4_000_000)
    bars.show(ProgressEvent("a", State.PUSHING, 250_000, 1_000_000))
    assert picture(bars) == ["a Pushing 250kB/1MB", "Total 0/1 layers"]
    assert (total.completed, total.total) == (2_500_000, 4_000_000)
    bars.show(ProgressEvent("b", State.PUSHING, 30, 100))  # it was never compressed
    assert (total.completed, total.total) == (2_500_000 + 130, 4_000_000 + 200)
    for layer, state in (("a", State.PUSHED), ("b", State.PUSHED), ("c", State.MOUNTED), ("d", State.IN_REGISTRY)):
        bars.show(ProgressEvent(layer, state))
    assert total.finished
