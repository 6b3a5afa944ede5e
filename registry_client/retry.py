"""When to try again, and how long to wait before."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass

from registry_client.errors import RegistryError

RETRY_AFTER_MAX = 120.0
"""Seconds; a server that asks for more gets this much patience and no more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    Attributes:
        tries: how often in all one request is sent.
        base: seconds before the second try; each further wait is twice as long.
        cap: seconds that a wait never exceeds, unless the server asks for more with Retry-After.
    """

    tries: int = 5
    base: float = 0.5
    cap: float = 20.0

    def delay(self, failures: int, error: RegistryError) -> float | None:
        """Seconds to wait after so many failures in a row, the last of which is ``error``; None to give up.

        The wait is a random time between half and all of the backoff, so that many clients do not come back at once.
        """
        if not error.temporary or failures >= self.tries:
            return None
        if error.retry_after is not None:
            return min(error.retry_after, RETRY_AFTER_MAX)
        backoff: float = min(self.cap, self.base * 2 ** (failures - 1))
        return backoff * float(random.uniform(0.5, 1.0))  # noqa: S311


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
