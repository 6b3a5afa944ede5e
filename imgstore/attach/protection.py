"""Keeps a vCenter from destroying a virtual machine while it has disks of a store.

To destroy a machine deletes the disks that it has, and with a disk all that it stands on: the disks of an image, and so those of every
other machine over it (vmware/vic issues 1383 and 2928). vCenter can be told to refuse the method, by name, for one machine; it then refuses
everybody but the session that said so, and its client greys the command out. VIC did the same.

The two methods, ``DisableMethods`` and ``EnableMethods`` of AuthorizationManager, are no part of the documented API and not in pyVmomi; a
vCenter has had them since 5.0, an ESXi host does not, and they need the privileges Global.DisableMethods and Global.EnableMethods.

Source of their form: govmomi ``object/authorization_manager_internal.go``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html import escape
from typing import NamedTuple

from imgstore.errors import ImgstoreError
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim
from imgstore.vsphere.transport import start_of

_METHOD = "Destroy_Task"
_REASON = "It has disks of imgstore: detach them first, or images of other machines are deleted too."
_UNKNOWN = b"InvalidRequestFault"
"""What a server answers with that does not know a method."""
_ANSWER_LIMIT = 1 << 16
"""Bytes of an answer; real ones have some hundred."""


class _Refusal(NamedTuple):
    why: str = ""
    is_unknown: bool = False


def forbid_destroy(session: VsphereSession, vm: vim.VirtualMachine, source: str) -> str:
    """Has the vCenter refuse to destroy the machine, until `allow_destroy` with the same source.

    Lasts over sessions and restarts of the vCenter; doing it again changes nothing.

    Args:
        source: who forbids, as the vCenter tells others.

    Returns:
        Why it could not be done, or an empty string.
    """
    method = f"<method><method>{_METHOD}</method><reasonId>{escape(_REASON)}</reasonId></method>"
    return _ask(session, vm, "DisableMethods", method, source).why


def allow_destroy(session: VsphereSession, vm: vim.VirtualMachine, source: str) -> str:
    """Takes back what `forbid_destroy` did for this source; others may still forbid it.

    Returns:
        Why it could not be done, or an empty string, also where nothing of that kind can have been done.
    """
    refusal = _ask(session, vm, "EnableMethods", f"<method>{_METHOD}</method>", source)
    return "" if refusal.is_unknown else refusal.why


def _ask(session: VsphereSession, vm: vim.VirtualMachine, name: str, method: str, source: str) -> _Refusal:
    if not session.is_vcenter:
        return _Refusal(f"{session.server} is no vCenter, and hosts cannot forbid it", is_unknown=True)
    manager = session.content.authorizationManager
    if manager is None:
        return _Refusal(f"{session.server} has no AuthorizationManager", is_unknown=True)
    envelope = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>'
        f'<{name} xmlns="urn:internalvim25">'
        f'<_this type="AuthorizationManager">{escape(manager._GetMoId())}</_this>'
        f'<entity type="VirtualMachine">{escape(vm._GetMoId())}</entity>'
        f"{method}<sourceId>{escape(source)}</sourceId>"
        f"</{name}></Body></Envelope>"
    ).encode()
    headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '"urn:internalvim25"'}
    try:
        with session.request("POST", "/sdk", f"{session.server}: {name}", headers=headers, body=lambda: envelope) as response:
            answer = start_of(response, _ANSWER_LIMIT)
            if response.status_code == 200:
                return _Refusal()
            return _Refusal(_fault(answer, f"{response.status_code} {response.reason}"), is_unknown=_UNKNOWN in answer)
    except ImgstoreError as error:
        return _Refusal(str(error))


def _fault(answer: bytes, status: str) -> str:
    """What a SOAP fault says."""
    # Expat of Python 3.11 and later bounds what entities may grow to.
    try:
        root = ElementTree.fromstring(answer)  # noqa: S314
    except ElementTree.ParseError:
        return status
    return next((element.text for element in root.iter("faultstring") if element.text), status)
