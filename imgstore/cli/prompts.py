"""Questions to a user who sits at a terminal. Standard output stays free for data."""

from __future__ import annotations

import sys
from collections.abc import Callable

from imgstore.errors import InvalidError


def ask(what: str, prompt: str, hint: str) -> str:
    """Asks for one line.

    Args:
        what: is wanted, for messages: ``user name``.
        hint: how to give it without being asked.

    Raises:
        InvalidError: there is nobody to ask, or there is no answer.
    """

    def read() -> str:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()

    return _ask(read, what, hint)


def ask_password(prompt: str, hint: str) -> str:
    """Asks for one line that does not appear on the terminal. Raises what `ask` raises."""

    def read() -> str:
        from getpass import getpass

        return getpass(prompt)

    return _ask(read, "password", hint)


def confirm(warning: str, hint: str) -> bool:
    """Asks whether to go on; anything but a yes is a no.

    Args:
        hint: how to go on without being asked.

    Raises:
        InvalidError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise InvalidError("standard input is no terminal to ask on whether to go on", hint=hint)
    print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _ask(read: Callable[[], str], what: str, hint: str) -> str:
    if not sys.stdin.isatty():
        raise InvalidError(f"no {what}, and standard input is no terminal to ask on", hint=hint)
    try:
        answer = read()
    except (EOFError, KeyboardInterrupt) as error:
        print(file=sys.stderr)  # the cursor stands behind the question
        if isinstance(error, KeyboardInterrupt):
            raise
        answer = ""
    if not answer:
        raise InvalidError(f"the {what} is empty", hint=hint)
    return answer
