"""The bench on a small image, so that it still works when its figures are wanted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.bench import image, nbd
from tests.bench.loop import PROGRAMS
from tests.bench.report import CONTAINERS, COPIES, IMAGES, NBD, marker_lines
from tests.tools import need, need_root, run

CONTENDERS = "floor,imgstore,qemu,kernel"
ROWS_OF_IMAGES = [3 + 2, 2 + 1, 3 + 1, 3 + 1]  # of pull, save, load and push: modes of the floor, and ours
ROWS_OF_CONTAINERS = [3 + 3, 4 + 1, 2, 2, 2, 2, 4, 2, 2 + 1]  # of create, diff, copies in and out, volumes, growth and commit
ROWS_OF_COPIES = [3 + 3]  # ours, and modes of cp
ROWS_OF_NBD = [2] * 6  # of reads at random, one after the other, and nbdcopy, at two depths
SECTIONS = {
    IMAGES: (ROWS_OF_IMAGES, ("recipe", "images()", "GET /images/json", "/_ping", "requests", "--help")),
    CONTAINERS: (
        ROWS_OF_CONTAINERS,
        ("`qemu-img create -b`", "small image", "durable", "the last", "both trees", "`tar`", "clone_volume"),
    ),
    COPIES: (ROWS_OF_COPIES, ("`imgstore copy`",)),
    NBD: (ROWS_OF_NBD, ("one disk: speed, to `qemu-nbd`", "a chain of 30: speed, to `qemu-nbd`")),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def test_the_bench_measures_every_contender_and_writes_its_report(work: Path, tmp_path: Path) -> None:
    need("docker-registry", "skopeo", "strace", "qemu-img", *PROGRAMS, *nbd.PROGRAMS)
    need_root()
    report = tmp_path / "performance.md"
    pages = [f"{first}\nold figures\n{last}\n" for first, last in map(marker_lines, SECTIONS)]
    report.write_text("before\n" + "between\n".join(pages) + "after\n")

    run(sys.executable, "-m", "tests.bench", "--smoke", "--rounds", "1", "--contenders", CONTENDERS,
        "--directory", work, "--report", report)  # fmt: skip

    text = report.read_text()
    assert text.startswith("before\n") and "\nbetween\n" in text and text.endswith("\nafter\n")
    assert "old figures" not in text
    for (rows, checks), section in zip(SECTIONS.values(), text.split("\nbetween\n"), strict=True):
        tables = [part for part in section.split("\n\n") if part.startswith("| ")]
        seconds = [re.findall(r"^\| [^|]+ \| ([0-9.]+) \| [0-9.]+ to ", table, re.MULTILINE) for table in tables[:-1]]
        assert [len(table) for table in seconds] == rows
        assert min(float(figure) for table in seconds for figure in table) > 0
        assert [check for check in checks if check not in tables[-1]] == []
    assert [path.name for path in work.iterdir()] == [image.SMOKE.tag]


def test_the_image_is_the_same_whenever_it_is_made(work: Path, tmp_path: Path) -> None:
    first, second = (image.build_image(image.SMOKE, directory) for directory in (work, tmp_path))

    assert (second / "index.json").read_bytes() == (first / "index.json").read_bytes()
