"""Listeners: the sockets that ``--host`` names, and who may reach them.

Source: moby ``cmd/dockerd/daemon.go`` and ``daemon/listeners``; go-connections ``sockets/unix_socket_unix.go``; sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgstore.errors import DeniedError, ImgstoreError, InUseError, InvalidError

PLAIN_PORT = 2375
TLS_PORT = 2376
"""What Docker's clients take where a tcp:// address names no port."""

_UNIX_PATH_MAX = 107  # bytes, without the NUL; see unix(7)
_FIRST_ACTIVATED = 3  # see sd_listen_fds(3)

_KINDS: dict[int, type[ImgstoreError]] = {
    errno.EADDRINUSE: InUseError,
    errno.EACCES: DeniedError,
    errno.EPERM: DeniedError,
    errno.EROFS: DeniedError,
}


@dataclass(frozen=True)
class Listener:
    """A socket that listens.

    Attributes:
        address: as users write it: ``unix:///run/imgstore.sock``, ``tcp://127.0.0.1:2375``.
        tls: how its connections are encrypted, or None.
    """

    socket: socket.socket
    address: str
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Access:
    """How the listeners are protected.

    Attributes:
        group: id of the group that may use Unix sockets, beside our own user; None for our own group.
        tls: for all TCP listeners; None for plain HTTP.
        allow_anyone: TCP listeners may be reached from other machines although nobody has to prove who he is.
        port: where a ``tcp://`` address names none; None for Docker's.
    """

    group: int | None = None
    tls: ssl.SSLContext | None = None
    allow_anyone: bool = False
    port: int | None = None

    @property
    def demands_certificates(self) -> bool:
        """Whether TCP clients have to prove who they are."""
        return self.tls is not None and self.tls.verify_mode is ssl.CERT_REQUIRED


@dataclass
class Listeners:
    """Open sockets; leaving the ``with`` block closes them, and removes the Unix sockets that it made.

    Attributes:
        names: by which hosts were named, in the place of addresses.
    """

    all: list[Listener] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    _made: list[tuple[Path, tuple[int, int]]] = field(default_factory=list)

    def close(self) -> None:
        """Closes and removes them. A Unix socket that somebody else has put in our place stays."""
        for listener in self.all:
            listener.socket.close()
        while self._made:
            path, identity = self._made.pop()
            with contextlib.suppress(OSError):
                if _identify(path) == identity:
                    path.unlink()

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def warnings(self) -> list[str]:
        """What ``docker info`` is to say of them, in Docker's words."""
        return [
            f"WARNING: API is accessible on {listener.address} without encryption."
            for listener in self.all
            if listener.tls is None and listener.socket.family != socket.AF_UNIX and not _is_loopback(listener.socket)
        ]

    def open(self, host: str, access: Access, activated: Mapping[str, Sequence[socket.socket]]) -> None:
        """Opens what one ``--host`` names.

        Args:
            host: ``unix://PATH``, ``tcp://ADDRESS[:PORT]``, ``fd://`` for all sockets that were passed to us, ``fd://NAME`` for some.
            activated: sockets that were passed to us, by name and by number.

        Raises:
            InvalidError: it is none of these, cannot be, or could be reached by anyone.
            InUseError: somebody listens there.
            DeniedError: we may not.
        """
        scheme, separator, rest = host.partition("://")
        if not separator or scheme not in ("unix", "tcp", "fd"):
            raise InvalidError(f"--host {host}: is none of unix://PATH, tcp://ADDRESS:PORT, fd://")
        if scheme == "unix":
            self._open_unix(rest, access)
        elif scheme == "tcp":
            self._open_tcp(host, rest, access)
        else:
            self._take(host, rest, access, activated)

    def _open_unix(self, text: str, access: Access) -> None:
        path = Path(text)
        address = f"unix://{text}"
        if not path.is_absolute() or len(os.fsencode(text)) > _UNIX_PATH_MAX:
            raise InvalidError(f"--host {address}: must be an absolute path of at most {_UNIX_PATH_MAX} bytes")
        listening = socket.socket(socket.AF_UNIX)
        try:
            with _named(address), _alone_in(path.parent):
                _remove_stale(path)
                before = os.umask(0o117)
                try:
                    listening.bind(text)
                finally:
                    os.umask(before)
                self._made.append((path, _identify(path)))
                if access.group is not None:
                    os.chown(path, -1, access.group)
                listening.listen()
        except BaseException:
            listening.close()
            raise
        self.all.append(Listener(listening, address))

    def _open_tcp(self, host: str, text: str, access: Access) -> None:
        name, port = _parse_address(host, text, access.port or (TLS_PORT if access.tls else PLAIN_PORT))
        self.names.add(name.lower().removesuffix("."))
        for address in _resolve(host, name):
            _check_reach(host, address, access)
            try:
                listening = _bind_tcp(address, port)
            except InvalidError:
                if address.version == 6 and name in ("", "localhost"):
                    continue  # not every machine has IPv6
                raise
            port = listening.getsockname()[1]  # of 0 the first makes a number, which the others take too
            self.all.append(Listener(listening, f"tcp://{_show(address, port)}", access.tls))

    def _take(self, host: str, name: str, access: Access, activated: Mapping[str, Sequence[socket.socket]]) -> None:
        found = activated.get(name or "*", ())
        if not found:
            raise InvalidError(f"--host {host}: no such socket was passed to us, as a systemd.socket(5) unit does")
        for passed in found:
            if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise InvalidError(f"--host {host}: descriptor {passed.fileno()} is no stream socket that listens")
            if passed.family == socket.AF_UNIX:
                self.all.append(Listener(passed, f"unix://{os.fsdecode(passed.getsockname())}"))
            elif passed.family in (socket.AF_INET, socket.AF_INET6):
                place = passed.getsockname()
                address = ipaddress.ip_address(place[0])
                _check_reach(f"tcp://{_show(address, place[1])}", address, access)
                self.all.append(Listener(passed, f"tcp://{_show(address, place[1])}", access.tls))
            else:
                raise InvalidError(f"--host {host}: descriptor {passed.fileno()} is neither a Unix nor a TCP socket")


def activated_sockets(environment: Mapping[str, str], process: int) -> dict[str, list[socket.socket]]:
    """The sockets that the service manager passed to this process: all as ``*``, and each by its name and its number.

    Args:
        process: our own id: what the variables say is for one process alone, and not for its children.
    """
    if environment.get("LISTEN_PID") != str(process):
        return {}
    count = environment.get("LISTEN_FDS", "")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for position in range(min(int(count), 1024) if count.isdecimal() else 0):
        number = _FIRST_ACTIVATED + position
        try:
            passed = socket.socket(fileno=number)
        except OSError as error:
            raise InvalidError(f"LISTEN_FDS={count}: descriptor {number}: {error.strerror}") from None
        passed.set_inheritable(False)
        for name in {"*", str(number), *names[position : position + 1]} - {""}:
            found.setdefault(name, []).append(passed)
    return found


def create_tls(certificate: Path, key: Path, authority: Path | None, protocols: Sequence[str] = ()) -> ssl.SSLContext:
    """TLS 1.2 or newer, for a server.

    Args:
        certificate, key: our own, PEM.
        authority: clients must have a certificate of one of these authorities, PEM; None: clients need none.
        protocols: what is offered by ALPN.

    Raises:
        InvalidError: a file cannot be read, or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(list(protocols))
    with _read(f"certificate {certificate} with key {key}"):
        context.load_cert_chain(certificate, key, password=_no_password)
    if authority is not None:
        with _read(f"authority {authority}"):
            context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    return ""  # else OpenSSL would ask for it on the terminal


@contextlib.contextmanager
def _read(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise InvalidError(f"TLS: {what}: {error.reason or error}") from None
    except OSError as error:
        raise InvalidError(f"TLS: {what}: {error.strerror}") from None


def find_group(text: str) -> int:
    """The id of a group, by name or number. Raises InvalidError if there is none."""
    with contextlib.suppress(KeyError):
        return grp.getgrnam(text).gr_gid
    if text.isdecimal() and int(text) < 2**32 - 1:
        return int(text)
    raise InvalidError(f"--group {text}: there is no such group")


def _parse_address(host: str, text: str, default_port: int) -> tuple[str, int]:
    name, bracket, rest = text.removesuffix("/").rpartition("]") if text.startswith("[") else ("", "", text.removesuffix("/"))
    if bracket:
        name, colon, port = name.removeprefix("["), rest[:1], rest[1:]
    else:
        name, colon, port = rest.partition(":")
    if colon not in ("", ":") or (colon and not (port.isascii() and port.isdecimal() and int(port) < 2**16)):
        raise InvalidError(f"--host {host}: is not tcp://ADDRESS:PORT; an IPv6 address stands in brackets")
    return name, int(port) if colon else default_port


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
_EVERYWHERE = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))  # noqa: S104 - what tcp://:PORT says


def _resolve(host: str, name: str) -> Sequence[Address]:
    """The addresses of a name; ``localhost`` without asking anybody, who might say something else."""
    if name.lower() == "localhost":
        return _LOOPBACK
    if not name:
        return _EVERYWHERE
    with contextlib.suppress(ValueError):
        return (ipaddress.ip_address(name),)
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InvalidError(f"--host {host}: {error.strerror}") from None
    return tuple(dict.fromkeys(ipaddress.ip_address(place[0]) for *_, place in found))


def _bind_tcp(address: Address, port: int) -> socket.socket:
    with _named(f"tcp://{_show(address, port)}"), contextlib.ExitStack() as undo:
        listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
        undo.callback(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.version == 6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((str(address), port))
        listening.listen()
        undo.pop_all()
        return listening


def _check_reach(host: str, address: Address, access: Access) -> None:
    if address.is_loopback or access.demands_certificates or access.allow_anyone:
        return
    how = "is encrypted, but anyone could use it" if access.tls else "anyone could read along, and use it"
    raise InvalidError(
        f"--host {host}: {how}, and who uses it can read and change the whole store",
        hint="--tlsverify lets only those in who have a certificate; --insecure-no-auth lets in everybody",
    )


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def _show(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _remove_stale(path: Path) -> None:
    """Removes a Unix socket on which nobody listens.

    Raises:
        InUseError: somebody does.
        InvalidError: something else is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidError(f"unix://{path}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # its queue is full: it lives
    raise InUseError(f"unix://{path}: address already in use: a service listens there")


def _identify(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Waits until no other of our processes is between looking for a socket in the directory and listening on its own."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, InvalidError)
        raise kind(f"{address}: {(error.strerror or str(error)).lower()}") from error
