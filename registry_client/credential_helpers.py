"""Credential helpers: programs ``docker-credential-<name>`` that keep credentials in a keychain.

Source: docker/docker-credential-helpers, README "Development" and ``credentials/credentials.go``: the action is the argument, its
object comes on the standard input, the answer and also the words of a failure on the standard output. No secret is an argument,
and no shell takes part.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import time
from collections.abc import Mapping

from registry_client.errors import DeniedError, MalformedError
from registry_client.strict_json import parse_object

HELPER_TIMEOUT = 30.0  # seconds; some helpers ask a keychain that asks the user
HELPER_OUTPUT_MAX = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_FOUND = "credentials not found in native keychain"
_PIECE = 64 << 10
_WORDS_MAX = 200


class CredentialHelper:
    """One helper program, looked for on the PATH of the environment that it runs with.

    Every method raises DeniedError if the program is missing, fails, or gives no answer within HELPER_TIMEOUT seconds.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        """Takes the name without ``docker-credential-``.

        Raises:
            MalformedError: no name of a program, but a path or worse.
        """
        if _NAME.fullmatch(name) is None:
            raise MalformedError(f"credential helper {name[:64]!r}: not a valid name")
        self.program = f"docker-credential-{name}"
        self._environment = dict(environment)

    def get(self, server: str) -> tuple[str, str] | None:
        """User name and secret that are kept for a server, or None.

        Raises:
            MalformedError: the answer is not what the protocol says.
        """
        output = self._run("get", server, server)
        if output is None:
            return None
        answer = parse_object(output, f"answer of {self.program} for {server}", size_max=HELPER_OUTPUT_MAX)
        return answer.string("Username", ""), answer.string("Secret", "")

    def store(self, server: str, username: str, secret: str) -> None:
        """Keeps a secret, in the place of the one that was kept before."""
        self._run("store", server, json.dumps({"ServerURL": server, "Username": username, "Secret": secret}), secret)

    def erase(self, server: str) -> None:
        """Forgets what is kept for a server; nothing is no error."""
        self._run("erase", server, server)

    def _run(self, action: str, server: str, request: str, secret: str = "") -> bytes | None:
        """What the program printed; None if it said that it keeps nothing for the server."""
        try:
            process = subprocess.Popen(  # noqa: S603
                [self.program, action],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
            )
        except OSError as error:
            raise DeniedError(f"{self.program}: {error.strerror}") from None
        what = f"{self.program}: {action} for {server}"
        with process:
            try:
                output, complaint = _talk(process, request.encode(), what)
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0:
            return output
        words = (output.strip() or complaint.strip()).decode(errors="replace")
        if words.startswith(_NOT_FOUND):
            return None
        # A program that fails may still have printed the secret, and one that stores may repeat its input.
        said = "" if "{" in words or (secret and secret in words) else f": {words[:_WORDS_MAX]!r}"
        raise DeniedError(f"{what} ended with {process.returncode}{said}")


def _talk(process: subprocess.Popen[bytes], request: bytes, what: str) -> tuple[bytes, bytes]:
    """Sends the request and reads standard output and standard error to their ends, within bounds of time and size."""
    assert process.stdin and process.stdout and process.stderr  # noqa: S101 - three pipes were asked for
    deadline = time.monotonic() + HELPER_TIMEOUT
    output, complaint = bytearray(), bytearray()
    rest = memoryview(request)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, complaint)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DeniedError(f"{what}: no answer in {HELPER_TIMEOUT:.0f} seconds")
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[:_PIECE]) :]
                    except BrokenPipeError:
                        rest = rest[len(rest) :]  # it knows enough
                    ended = not rest
                else:
                    piece = os.read(key.fd, _PIECE)
                    key.data.extend(piece)
                    if len(key.data) > HELPER_OUTPUT_MAX:
                        raise DeniedError(f"{what}: printed more than {HELPER_OUTPUT_MAX} bytes")
                    ended = not piece
                if ended:
                    selector.unregister(key.fileobj)
                if ended and key.fileobj is process.stdin:
                    process.stdin.close()
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise DeniedError(f"{what}: did not end in {HELPER_TIMEOUT:.0f} seconds") from None
    return bytes(output), bytes(complaint)
