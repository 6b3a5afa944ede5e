from __future__ import annotations

import pytest

from registry_client.digest import Digest
from registry_client.errors import RegistryError
from registry_client.manifest import Descriptor
from registry_client.transport import follow
from registry_client.uploads import with_digest

HERE = "https://harbor.example.com:8443/v2/team/app/blobs/uploads/"
EMPTY = Descriptor("application/octet-stream", Digest.of(b""), 0)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/v2/team/app/blobs/uploads/1", "https://harbor.example.com:8443/v2/team/app/blobs/uploads/1"),
        ("2?_state=a%2Fb", "https://harbor.example.com:8443/v2/team/app/blobs/uploads/2?_state=a%2Fb"),
        ("?_state=x", "https://harbor.example.com:8443/v2/team/app/blobs/uploads/?_state=x"),
        ("//other.example.com/3", "https://other.example.com/3"),
        ("https://storage.example.com/bucket?sig=%2B%3D&x=1#part", "https://storage.example.com/bucket?sig=%2B%3D&x=1"),
        ("https://user:password@harbor.example.com/4", "https://harbor.example.com/4"),
        ("https://10.1.2.3/5", "https://10.1.2.3/5"),
    ],
)
def test_where_a_location_leads(location: str, url: str) -> None:
    assert follow("POST", HERE, location) == url


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://harbor.example.com:8443/v2/team/app/blobs/uploads/1?secret=x", "from HTTPS to plain HTTP at harbor.example.com"),
        ("ftp://harbor.example.com/1?secret=x", "something that is not HTTP"),
        ("file:///etc/passwd", "something that is not HTTP"),
        ("https://[::1?secret=x", "something that is not HTTP"),
        ("https://host:99999/?secret=x", "something that is not HTTP"),
        ("https://127.0.0.1/1?secret=x", "this machine's 127.0.0.1"),
        ("https://localhost/1", "this machine's localhost"),
        ("https://169.254.169.254/latest", "this machine's 169.254.169.254"),
    ],
)
def test_locations_that_are_not_followed(location: str, words: str) -> None:
    with pytest.raises(RegistryError, match=f"^POST {HERE}: the upload was sent .*{words}$") as raised:
        follow("POST", HERE, location, "the upload was sent")
    assert "secret" not in str(raised.value)


def test_a_local_registry_may_lead_to_this_machine_but_not_to_the_link() -> None:
    assert follow("POST", "http://localhost:5000/v2/", "http://127.0.0.1:5001/1") == "http://127.0.0.1:5001/1"
    with pytest.raises(RegistryError, match="169"):
        follow("POST", "http://localhost:5000/v2/", "http://169.254.169.254/")


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("https://r.io/uploads/1", f"https://r.io/uploads/1?digest={EMPTY.digest}"),
        ("https://r.io/uploads/1?", f"https://r.io/uploads/1?digest={EMPTY.digest}"),
        ("https://r.io/uploads/1?_state=a%2Fb+c==&x", f"https://r.io/uploads/1?_state=a%2Fb+c==&x&digest={EMPTY.digest}"),
    ],
)
def test_digest_in_the_query(url: str, whole: str) -> None:
    assert with_digest(url, EMPTY) == whole
