"""What vcsim lacks of a vCenter: methods that are disabled for one object, and tasks that are in the way. A vcsim does everything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from tests.servers.authority import Authority
from tests.servers.http_server import Answer
from tests.servers.vcsim import Vcsim
from tests.servers.vsphere_proxy import Forward, VsphereProxy

_CALL = re.compile(
    rb'<(DisableMethods|EnableMethods) xmlns="urn:internalvim25"><_this type="AuthorizationManager">(?P<manager>[^<]+)</_this>'
    rb'<entity type="VirtualMachine">(?P<entity>[^<]+)</entity>(?P<methods>.*)<sourceId>(?P<source>[^<]+)</sourceId></\1>'
)
"""As govmomi writes them."""
_DISABLED = re.compile(rb"<method><method>(\w+)</method><reasonId>([^<]+)</reasonId></method>")
_ENABLED = re.compile(rb"<method>(\w+)</method>")
_DESTROY = re.compile(rb'<Destroy_Task [^>]*><_this [^>]*type="VirtualMachine"[^>]*>([^<]+)</_this>')

_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{}</soapenv:Body></soapenv:Envelope>'
)
_FAULT = (
    "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{}</faultstring>"
    '<detail><{name}Fault xmlns="urn:vim25" xsi:type="{name}">{more}</{name}Fault></detail></soapenv:Fault>'
)


class Vcenter(VsphereProxy):
    """See the module; between ``with`` and its end, at `login`.

    Attributes:
        disabled: entity and method, to the sources that disabled it.
        forbids: refuses to disable anything, as to a user without the privilege.
        busy: how many of the next reconfigurations find another task on their machine.
    """

    def __init__(self, vcsim: Vcsim, authority: Authority) -> None:
        super().__init__(vcsim, authority, _Handler)
        self.disabled: dict[tuple[str, str], set[str]] = {}
        self.forbids = False
        self.busy = 0


class _Handler(Forward):
    @property
    def vcenter(self) -> Vcenter:
        return cast("Vcenter", self.server.service)

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        if call := _CALL.search(self.seen.body):
            return self._switch(call)
        destroyed = _DESTROY.search(self.seen.body)
        if destroyed and (sources := self.vcenter.disabled.get((destroyed[1].decode(), "Destroy_Task"))):
            return _fault(f"The method is disabled by '{min(sources)}'", "MethodDisabled")
        if self.vcenter.busy and b"<ReconfigVM_Task " in self.seen.body:
            self.vcenter.busy -= 1
            return _fault("", "TaskInProgress", '<task type="Task">task-1</task>')
        return super().serve(path, query)

    def _switch(self, call: re.Match[bytes]) -> Answer:
        name = call[1].decode()
        if self.vcenter.forbids:
            return _fault(
                "Permission to perform this operation was denied.", "NoPermission", f"<privilegeId>Global.{name}</privilegeId>"
            )
        for found in (_DISABLED if name == "DisableMethods" else _ENABLED).finditer(call["methods"]):
            sources = self.vcenter.disabled.setdefault((call["entity"].decode(), found[1].decode()), set())
            (sources.add if name == "DisableMethods" else sources.discard)(call["source"].decode())
        return Answer(200, _ENVELOPE.format(f'<{name}Response xmlns="urn:vim25"></{name}Response>').encode(), _XML)


_XML = {"Content-Type": "text/xml; charset=utf-8"}


def _fault(words: str, name: str, more: str = "") -> Answer:
    return Answer(500, _ENVELOPE.format(_FAULT.format(words, name=name, more=more)).encode(), _XML)
