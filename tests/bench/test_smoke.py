"""The bench on a small image, so that it still works when its figures are wanted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.bench import image
from tests.bench.report import BEGIN, END
from tests.tools import need, run

CONTENDERS = {"floor": 3, "imgstore": 1}  # rows of the table


def test_the_bench_measures_every_contender_and_writes_its_report(tmp_path: Path) -> None:
    need("docker-registry", "skopeo", "strace")
    report = tmp_path / "performance.md"
    report.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")

    run(sys.executable, "-m", "tests.bench", "--smoke", "--rounds", "2", "--contenders", ",".join(CONTENDERS),
        "--directory", tmp_path / "work", "--report", report)  # fmt: skip

    text = report.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old figures" not in text
    seconds = [float(row) for row in re.findall(r"^\| [^|]+ \| ([0-9.]+) \| [0-9.]+ to ", text, re.MULTILINE)]
    assert len(seconds) == sum(CONTENDERS.values())
    assert min(seconds) > 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == [image.SMOKE.tag]


def test_the_image_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    first, second = (image.build_image(image.SMOKE, tmp_path / name) for name in ("first", "second"))

    assert (second / "index.json").read_bytes() == (first / "index.json").read_bytes()
