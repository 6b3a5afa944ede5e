from __future__ import annotations

import pytest

from imgstore.device_names import DeviceName, parse_device_name
from imgstore.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image/alpine", DeviceName("image", "alpine")),
        ("image/harbor.example:5000/library/app:1", DeviceName("image", "harbor.example:5000/library/app:1")),
        (f"image/app@sha256:{'a' * 64}", DeviceName("image", f"app@sha256:{'a' * 64}")),
        ("container/web?snapshot", DeviceName("container", "web", True)),
        ("volume/data", DeviceName("volume", "data")),
    ],
)
def test_names_are_read_and_written(text: str, expected: DeviceName) -> None:
    assert parse_device_name(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "device '': has no kind"),
        ("web", "device 'web': has no kind"),
        ("disk/web", "device 'disk/web': has no kind"),
        ("/web", "has no kind"),
        ("Image/alpine", "has no kind"),
        ("image", "has no kind"),
        ("image/", "nothing comes behind image/"),
        ("image/?snapshot", "nothing comes behind image/"),
        ("image/alpine?", "'' is no option, only 'snapshot' is"),
        ("image/alpine?writable", "'writable' is no option"),
        ("image/alpine?snapshot?snapshot", r"'snapshot\?snapshot' is no option"),
        ("x" * 5000, f"^device '{'x' * 200}': has no kind"),
    ],
)
def test_what_is_no_name_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        parse_device_name(text)
