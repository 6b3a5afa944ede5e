"""A process that is killed again and again, each time a step later, or fails there, while it does one thing to the volumes of a store.

Arguments: a store, a directory for copies of it, what to do, and what happens: ``kill``, or the name of an error. Step N is done in the
copy N; prints what became of it, a line each: ``killed``, ``done``, or the error.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgstore.errors import ImgstoreError
from imgstore.store import ImageStore

STEPS_MAX = 100

FAILING = {"EIO": ("fsync",), "ENOSPC": ("pwrite", "ftruncate", "mkdir")}
KILLING = ("fsync", "rename", "unlink", "ftruncate", "chmod", "fchmod", "mkdir")


def archive() -> io.BytesIO:
    """What an import brings."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as writer:
        for name in ("x", "new"):
            member = tarfile.TarInfo(name)
            member.size = 100_000
            writer.addfile(member, io.BytesIO(b"2" * member.size))
    out.seek(0)
    return out


ACTIONS: dict[str, Callable[[ImageStore], object]] = {
    "create": lambda store: store.create_volume("b", options={"Capacity": "64"}),
    "snapshot": lambda store: store.snapshot_volume("a", "t"),
    "clone": lambda store: store.clone_volume("a", "b"),
    "grow": lambda store: store.grow_volume("a", 100 << 20),
    "import": lambda store: store.import_volume("a", archive()),
    "remove": lambda store: store.remove_volume("a"),
    "forget": lambda store: store.remove_snapshot("a", "s"),
}


def arm(step: int, happening: str) -> None:
    """Has the call of that number, among those that count, end this process or fail."""
    left = step
    names = KILLING if happening == "kill" else FAILING[happening]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                if happening == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                number = getattr(errno, happening)
                raise OSError(number, os.strerror(number))
            return call(*args, **options)

        return counting

    for name in names:
        setattr(os, name, counted(getattr(os, name)))


def work(store: Path, action: str, step: int, happening: str) -> str:
    with ImageStore.open(str(store)) as opened:
        arm(step, happening)
        try:
            ACTIONS[action](opened)
        except ImgstoreError as error:
            return f"{error.code}: {error}"
    return "done"


def main() -> None:
    original, copies, action, happening = sys.argv[1:]
    for step in range(1, STEPS_MAX):
        store = Path(copies, str(step))
        shutil.copytree(original, store)
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                print("killed", flush=True)
            elif os.waitstatus_to_exitcode(status) == 7:
                return
        else:
            said = work(store, action, step, happening)
            print(said, flush=True)
            os._exit(7 if said == "done" else 0)


if __name__ == "__main__":
    main()
