"""When to try again, and how long to wait before."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from registry_client.errors import RegistryError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    Attributes:
        tries: how often in all one request is sent.
        base: seconds before the second try; each further wait is twice as long.
        cap: seconds that a wait never exceeds, unless the server asks for more with Retry-After.
        patience: seconds that all tries together may take. No further one starts if it would end later, should it take as long as
            those before it did.
        wait: sleeps so many seconds between two tries; what it raises ends them.
    """

    tries: int = 5
    base: float = 0.5
    cap: float = 20.0
    patience: float = 60.0
    wait: Callable[[float], None] = time.sleep

    def for_mirror(self) -> RetryPolicy:
        """The policy where there is another place to ask: once more for bad luck, no longer."""
        return replace(self, tries=min(self.tries, 2))

    def run(self, act: Callable[[], T], on_retry: Callable[[str, float], None]) -> T:
        """Does something until it succeeds or the policy gives up; raises what it raised last."""
        failures, started = 0, time.monotonic()
        while True:
            try:
                return act()
            except RegistryError as error:
                failures += 1
                delay = self.delay(failures, error, time.monotonic() - started)
                if delay is None:
                    raise
                on_retry(str(error), delay)
                self.wait(delay)

    def delay(self, failures: int, error: RegistryError, elapsed: float = 0.0) -> float | None:
        """Seconds to wait after so many failures in a row, the last of which is ``error``; None to give up.

        Args:
            elapsed: seconds since the first of these tries began.

        The wait is a random time between half and all of the backoff, so that many clients do not come back at once.
        """
        if not error.temporary or failures >= self.tries:
            return None
        if error.retry_after is not None:
            wait = error.retry_after
        else:
            wait = min(self.cap, self.base * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        return wait if elapsed + wait + elapsed / failures <= self.patience else None


def parse_retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110 §10.2.3: seconds, or a date); None for none or nonsense."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
