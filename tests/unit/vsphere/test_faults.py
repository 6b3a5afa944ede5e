from __future__ import annotations

import pytest

pytest.importorskip("pyVmomi")

from imgstore.errors import ImgstoreError, NotFoundError, UnavailableError
from imgstore.vsphere.faults import translate
from imgstore.vsphere.soap import vim, vmodl


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (vim.fault.FileNotFound(), NotFoundError),
        (vim.fault.InvalidDatastore(), NotFoundError),
        (vim.fault.InaccessibleDatastore(), UnavailableError),  # to take it for empty would lose what it has
        (vmodl.fault.HostCommunication(), UnavailableError),
    ],
)
def test_what_cannot_be_reached_is_not_missing(fault: vmodl.MethodFault, kind: type[ImgstoreError]) -> None:
    assert type(translate(fault, "[DS] x: cannot list it")) is kind
