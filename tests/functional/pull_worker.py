"""A process that pulls one image in many threads: ``python -m tests.functional.pull_worker STORE REFERENCE THREADS``.

Prints ``ready`` when all threads are, waits for a line of standard input, and prints the ids that the pulls gave, a line each.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from imgstore.store import ImageStore


def main(store: str, reference: str, threads: str) -> None:
    begin = threading.Barrier(int(threads) + 1)

    def pull() -> str:
        with ImageStore.open(store) as opened:
            begin.wait()
            return opened.pull(reference).image.id

    with ThreadPoolExecutor(int(threads)) as pool:
        pulls = [pool.submit(pull) for _ in range(int(threads))]
        print("ready", flush=True)
        sys.stdin.readline()
        begin.wait()
        for future in pulls:
            print(future.result())


if __name__ == "__main__":
    main(*sys.argv[1:])
