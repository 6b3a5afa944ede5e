"""VsphereSession: one login to a vCenter or an ESXi host, for its SOAP API and for the files of its datastores.

Sources: the vSphere Web Services API reference (SessionManager, PropertyCollector, Task) and the vSphere Web Services SDK
programming guide, "HTTP access to vSphere Server files".
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import requests

from imgstore.errors import DeniedError, InvalidError, NotFoundError, UnavailableError
from imgstore.vsphere.faults import FAILURES, is_logged_out, translate
from imgstore.vsphere.login import VsphereLogin
from imgstore.vsphere.soap import COOKIE, SoapStubAdapter, connect, newest_version, vim, vmodl
from imgstore.vsphere.transport import make_http_session, start_of, tls_context

__all__ = ["VsphereLogin", "VsphereSession"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

TIMEOUT = 60.0
"""Seconds that the server may be silent."""

TASK_LIMIT = 3600.0
"""Seconds that a task may take: a copy of a large disk takes many."""

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
_VERSIONS_LIMIT = 1 << 16  # a real one has some KiB


class VsphereSession:
    """Logs in when it is used first, and once more when the server has dropped the session; logs out when it is closed.

    Methods may be called from several threads, and raise ImgstoreErrors only:

        DeniedError: wrong user name or password, or a privilege is missing.
        UnavailableError: the server does not answer, is none, or its certificate is not trusted.

    Args:
        timeout: seconds that the server may be silent.
    """

    def __init__(self, login: VsphereLogin, *, timeout: float = TIMEOUT) -> None:
        self.login = login
        self.http = make_http_session(login, context := tls_context(login))
        self._context = context
        self._timeout = timeout
        self._lock = threading.RLock()
        self._stub: SoapStubAdapter | None = None
        self._content: vim.ServiceInstanceContent | None = None
        self._logins = 0
        self._closed = False

    @property
    def server(self) -> str:
        """The server as messages name it."""
        return f"vSphere {self.login.address}"

    @property
    def content(self) -> vim.ServiceInstanceContent:
        """The root of the API; logs in if need be."""
        with self._lock:
            return self._content if self._content is not None else self._connect()

    @property
    def is_vcenter(self) -> bool:
        """Whether the server is a vCenter, not a single ESXi host."""
        return bool(self.content.about.apiType == "VirtualCenter")

    def now(self) -> datetime.datetime:
        """The time by the server's clock."""
        _ = self.content
        found: datetime.datetime = self.run(
            lambda: vim.ServiceInstance("ServiceInstance", self._stub).CurrentTime(), f"{self.server}: cannot tell the time"
        )
        return found

    def run(self, call: Callable[[], _T], what: str) -> _T:
        """The result of a call of the API; made once more, after a new login, if the server had dropped the session.

        That is safe for every call: who is not logged in had nothing done.

        Args:
            call: reads or calls managed objects of this session; the result must not be read lazily.
            what: what it does, for errors, beginning with the object's name: ``[DS] x.vmdk: cannot remove it``.

        Raises:
            ImgstoreError: of the kind that the fault is.
        """
        _ = self.content
        logins = self._logins
        try:
            try:
                return call()
            except FAILURES as error:
                if not is_logged_out(error):
                    raise
            self._log_in_again(logins)
            return call()
        except FAILURES as error:
            raise translate(error, what, self.server) from error

    def wait(self, task: vim.Task, what: str, *, limit: float = TASK_LIMIT) -> Any:
        """The result of a task, when it has ended.

        ``info`` as a whole is not read: pyVmomi fails on some of what servers put there. An interruption leaves the task running.

        Args:
            what: what the task does, for errors, beginning with the object's name.
            limit: seconds after which to give up; the task goes on.

        Raises:
            ImgstoreError: of the kind that the task's fault is.
            UnavailableError: it has not ended.
        """
        deadline = time.monotonic() + limit
        pause = _FIRST_PAUSE
        while True:
            info = self.properties([task], "info.state", "info.error", "info.result", what=what).get(task, {})
            match info.get("info.state"):
                case vim.TaskInfo.State.success:
                    return info.get("info.result")
                case vim.TaskInfo.State.error:
                    fault = info.get("info.error")
                    if not isinstance(fault, vmodl.MethodFault):
                        raise UnavailableError(f"{what}: the task failed, and {self.server} does not say why")
                    raise translate(fault, what, self.server) from fault
            if time.monotonic() > deadline:
                raise UnavailableError(f"{what}: the task has not ended after {limit:.0f} s, and goes on")
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def properties(
        self, objects: Sequence[vim.ManagedObject], *paths: str, what: str = "its properties cannot be read"
    ) -> dict[vim.ManagedObject, dict[str, Any]]:
        """Properties of several objects in one question, by object and path; what an object has unset, or we may not see, is missing."""
        found: dict[vim.ManagedObject, dict[str, Any]] = {each: {} for each in objects}
        if not objects:
            return found
        collector = vmodl.query.PropertyCollector
        wanted = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=each, skip=False) for each in objects],
            propSet=[collector.PropertySpec(type=kind, pathSet=list(paths)) for kind in {type(each) for each in objects}],
        )

        def ask() -> None:
            answer = self.content.propertyCollector.RetrievePropertiesEx([wanted], collector.RetrieveOptions())
            while answer is not None:
                for each in answer.objects:
                    for missing in each.missingSet:
                        if isinstance(missing.fault, vim.fault.NotAuthenticated):
                            raise missing.fault
                    found[each.obj] = {item.name: item.val for item in each.propSet}
                if not answer.token:
                    break
                answer = self.content.propertyCollector.ContinueRetrievePropertiesEx(answer.token)

        self.run(ask, what)
        return found

    def datacenter(self, name: str = "") -> vim.Datacenter:
        """A datacenter by its name or its path in the inventory; without a name the only one that there is.

        Raises:
            NotFoundError: there is none of that name.
            InvalidError: there are several.
        """
        known = dict(self._datacenters(self.content.rootFolder, ""))
        if name:
            found = [path for path in known if name in (path, path.rpartition("/")[2])]
            exact = [path for path in found if path == name]
            found = exact or found
        else:
            found = list(known)
        names = ", ".join(sorted(known)) or "none"
        if not found:
            raise NotFoundError(f"{self.server}: no datacenter {name!r}; it has {names}")
        if len(found) > 1:
            wanted = f"datacenter {name!r} is not the only one" if name else "a datacenter must be named"
            raise InvalidError(f"{self.server}: {wanted}: there are {', '.join(sorted(found))}", hint="GOVC_DATACENTER names one")
        return known[found[0]]

    def datacenter_path(self, datacenter: vim.Datacenter) -> str:
        """Where it is in the inventory, as ``dcPath`` of file access has it: names as they stand there, joined by ``/``."""
        names: list[str] = []
        current: Any = datacenter
        root = self.content.rootFolder
        while current is not None and current != root:
            facts = self.properties([current], "name", "parent")[current]
            names.append(str(facts["name"]))
            current = facts.get("parent")
        return "/".join(reversed(names))

    def datastore(self, datacenter: vim.Datacenter, name: str) -> vim.Datastore:
        """A datastore of a datacenter.

        Raises:
            NotFoundError: there is none of that name.
        """
        listed = self.properties([datacenter], "name", "datastore")[datacenter]
        names = self.properties(listed.get("datastore", []), "name")
        known = {_plain(str(facts.get("name", ""))): datastore for datastore, facts in names.items()}
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise NotFoundError(f"{self.server}: datacenter {_plain(listed['name'])} has no datastore {name!r}; it has {there}")
        return known[name]

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        timeout: float | None = None,
    ) -> Iterator[requests.Response]:
        """One request to the server beside the SOAP API, whatever its status; the answer's body is read inside the ``with`` block.

        Sent once more, after a new login, if the server had dropped the session.

        Args:
            path: percent-encoded, beginning with ``/``.
            body: gives what is sent from its start, each time it is called.
            timeout: seconds that the server may be silent, if other than usual.

        Raises:
            DeniedError: the server refuses: 401 after a new login, or 403.
            UnavailableError: it does not answer, or the connection broke.
        """
        for attempt in (1, 2):
            _ = self.content
            logins, response = self._logins, None
            try:
                response = self.http.request(
                    method,
                    f"https://{self.login.address}{path}",
                    params=parameters,
                    headers={"Cookie": self._cookie(), **(headers or {})},
                    data=body() if body is not None else None,
                    timeout=(min(self._timeout, TIMEOUT), timeout or self._timeout),
                    allow_redirects=False,
                    stream=True,
                )
                with response:
                    _log.debug("%s %s: %d", method, path, response.status_code)
                    if response.status_code in (401, 403) and (attempt == 2 or response.status_code == 403):
                        raise DeniedError(f"{what}: {self.server} refuses: {response.status_code} {response.reason}")
                    if response.status_code != 401:
                        yield response
                        return
            except FAILURES as error:
                raise translate(error, what, self.server) from error
            self._log_in_again(logins)

    def close(self) -> None:
        """Logs out. The session is unusable afterwards; a second call does nothing."""
        with self._lock:
            self._closed = True
            stub, content, self._stub, self._content = self._stub, self._content, None, None
            if stub is not None:
                with contextlib.suppress(*FAILURES):
                    if content is not None:
                        content.sessionManager.Logout()
                stub.DropConnections()
            self.http.close()

    def __enter__(self) -> VsphereSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _connect(self) -> vim.ServiceInstanceContent:
        if self._closed:
            raise ValueError(f"{self.server}: the session is closed")
        what = f"{self.server}: cannot log in"
        if not self.login.username or not self.login.password:
            missing = "password" if self.login.username else "user name"
            raise DeniedError(f"{what}: there is no {missing}", hint="set GOVC_USERNAME and GOVC_PASSWORD")
        stub = None
        try:
            version = newest_version(self._versions(), self.server)
            stub = connect(self.login.host, self.login.port, version, self._context, self._timeout)
            content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            self._log_in(stub, content)
        except BaseException as error:
            if stub is not None:
                stub.DropConnections()
            if isinstance(error, FAILURES):
                raise translate(error, what) from error
            raise
        self._stub, self._content = stub, content
        return content

    def _versions(self) -> bytes:
        url = f"https://{self.login.address}/sdk/vimServiceVersions.xml"
        with self.http.get(url, timeout=self._timeout, allow_redirects=False, stream=True) as response:
            if response.status_code != 200:
                raise UnavailableError(
                    f"{self.server}: is no vSphere server, or not ready: {response.status_code} {response.reason}"
                )
            return start_of(response, _VERSIONS_LIMIT)

    def _log_in(self, stub: SoapStubAdapter, content: vim.ServiceInstanceContent) -> None:
        stub.cookie = ""  # a session that is no more must not be shown
        content.sessionManager.Login(self.login.username, self.login.password)
        self._logins += 1
        _log.debug("%s: logged in as %s", self.server, self.login.username)

    def _log_in_again(self, logins: int) -> None:
        """Logs in, unless another thread has done so since ``logins`` was read."""
        with self._lock:
            if self._logins != logins or self._stub is None or self._content is None:
                return
            try:
                self._log_in(self._stub, self._content)
            except FAILURES as error:
                raise translate(error, f"{self.server}: the session was lost") from error

    def _cookie(self) -> str:
        with self._lock:
            cookie = str(self._stub.cookie) if self._stub is not None else ""
        return next((pair.strip() for pair in cookie.split(";") if pair.strip().startswith(f"{COOKIE}=")), "")

    def _datacenters(self, folder: vim.Folder, above: str) -> Iterator[tuple[str, vim.Datacenter]]:
        children = self.properties([folder], "childEntity")[folder].get("childEntity", [])
        for child, facts in self.properties(children, "name").items():
            path = f"{above}{_plain(str(facts.get('name', '')))}"
            if isinstance(child, vim.Datacenter):
                yield path, child
            elif isinstance(child, vim.Folder):
                yield from self._datacenters(child, f"{path}/")


def _plain(name: str) -> str:
    """A name of the inventory without the escapes of ``%``, ``/`` and ``\\`` there (ManagedEntity.name)."""
    return unquote(name)
