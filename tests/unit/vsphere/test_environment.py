from __future__ import annotations

import pytest

from imgstore.errors import InvalidError
from imgstore.vsphere.environment import read_login
from imgstore.vsphere.login import VsphereLogin


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, VsphereLogin("")),
        ({"GOVC_URL": "vc.example"}, VsphereLogin("vc.example")),
        ({"GOVC_URL": "https://vc.example:8443/sdk"}, VsphereLogin("vc.example", 8443)),
        ({"GOVC_URL": "me%40corp:p@ss%2F@[::1]"}, VsphereLogin("::1", 443, "me@corp", "p@ss/")),
        ({"GOVC_URL": "a:b@h", "GOVC_USERNAME": "me", "GOVC_PASSWORD": "secret"}, VsphereLogin("h", 443, "me", "secret")),
        ({"GOVC_INSECURE": "True"}, VsphereLogin("", insecure=True)),
        ({"GOVC_INSECURE": "0", "GOVC_TLS_CA_CERTS": "/a:/b"}, VsphereLogin("", ca_file="/a:/b")),
        ({"GOVC_DATACENTER": "/DC0"}, VsphereLogin("", datacenter="DC0")),
    ],
)
def test_govcs_variables_say_who_logs_in_where(environment: dict[str, str], expected: VsphereLogin) -> None:
    assert read_login(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GOVC_URL": "http://h"}, "GOVC_URL: scheme 'http'"),
        ({"GOVC_URL": "https:///sdk"}, "GOVC_URL: has no host"),
        ({"GOVC_URL": "me:s3cret@"}, "GOVC_URL: has no host"),
        ({"GOVC_URL": "me:s3cret@h:x"}, "GOVC_URL: port 'x'"),
        ({"GOVC_URL": "me:s3cret/x@h"}, "GOVC_URL: has an @ behind a /"),
        ({"GOVC_URL": "https://me:/s3cret@h/sdk"}, "GOVC_URL: has an @ behind a /"),
        ({"GOVC_URL": "me:s3cret://x@h"}, "GOVC_URL: vSphere is reached by https only"),
        ({"GOVC_URL": "h\n"}, r"GOVC_URL: 'h\\n' is no host"),
        ({"GOVC_INSECURE": "maybe"}, "GOVC_INSECURE: 'maybe' is neither true nor false"),
    ],
)
def test_nonsense_is_refused_without_the_password(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        read_login(environment)
    assert "s3cret" not in str(caught.value)


def test_a_login_does_not_show_its_password() -> None:
    assert "s3cret" not in repr(VsphereLogin("h", 443, "me", "s3cret"))
