from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from imgstore.structs import prepare

for number in range(300):
    class Inner(msgspec.Struct):
        a: str
        b: tuple[int, ...]

    class Outer(msgspec.Struct):
        x: str
        y: str | None
        inner: Inner | None
        z: dict[str, str]

    prepare(Outer)
    barrier = threading.Barrier(4)

    def decode():
        barrier.wait()
        msgspec.json.decode(b'{"x":"1","y":null,"inner":{"a":"q","b":[1,2]},"z":{"k":"v"}}', type=Outer)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_decode_the_same_for_the_first_time() -> None:
    """Without `prepare` the process dies of SIGSEGV, after a few rounds as a rule."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
