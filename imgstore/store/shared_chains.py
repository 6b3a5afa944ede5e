"""SharedChains: chains of images that several devices show at once, each of them open once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from imgstore.vmdk.chain import Chain


@dataclass(slots=True)
class _Open:
    chain: Chain
    closing: contextlib.ExitStack
    users: int = 0


class SharedChains:
    """Chains by what they show. A hundred clients of one image have its files open once, and its tables in memory once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, ...], _Open] = {}

    def take(self, layers: tuple[str, ...], open_chain: Callable[[contextlib.ExitStack], Chain]) -> Chain:
        """The chain of these layers, to be given back by `give_back`.

        Args:
            layers: chain ids, lowest first.
            open_chain: opens it if nobody has it, and puts what closes it on the stack; one opens at a time.
        """
        with self._lock:
            found = self._open.get(layers)
            if found is None:
                with contextlib.ExitStack() as stack:
                    chain = open_chain(stack)
                    found = self._open[layers] = _Open(chain, stack.pop_all())
            found.users += 1
            return found.chain

    def give_back(self, layers: tuple[str, ...]) -> None:
        """Closes the chain with its last user."""
        with self._lock:
            found = self._open[layers]
            found.users -= 1
            if not found.users:
                del self._open[layers]
                found.closing.close()
