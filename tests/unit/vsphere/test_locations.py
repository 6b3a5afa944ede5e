from __future__ import annotations

import pytest

from imgstore.config import is_vsphere_location
from imgstore.errors import InvalidError
from imgstore.vsphere.locations import DatastoreLocation, VmLocation, parse_datastore, parse_vm
from imgstore.vsphere.login import VsphereLogin

LOGIN = VsphereLogin("vc.example", 8443, "admin", "s3cret", datacenter="DC0")


class TestParseDatastore:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("vsphere://vc.example/DC0/DS", DatastoreLocation("vc.example", 443, "DC0", "DS", "")),
            (
                "vsphere://me%40corp@vc.example:8443/DC0/DS/a/b",
                DatastoreLocation("vc.example", 8443, "DC0", "DS", "a/b", "me@corp"),
            ),
            ("vsphere://[::1]:1/DC 0/D S//a b/", DatastoreLocation("::1", 1, "DC 0", "D S", "a b")),
            ("vsphere://h/east%2FDC0/DS%25/%C3%BC%5B%3F", DatastoreLocation("h", 443, "east/DC0", "DS%", "ü[?")),
            ("vsphere://h//DS/a", DatastoreLocation("h", 443, "", "DS", "a")),
            ("ds://D%20S/a", DatastoreLocation("vc.example", 8443, "DC0", "D S", "a", "admin")),
            ("[D S] a b/c", DatastoreLocation("vc.example", 8443, "DC0", "D S", "a b/c", "admin")),
            ("[DS]", DatastoreLocation("vc.example", 8443, "DC0", "DS", "", "admin")),
        ],
    )
    def test_each_form_names_a_directory(self, text: str, expected: DatastoreLocation) -> None:
        assert is_vsphere_location(text)
        assert parse_datastore(text, LOGIN) == expected
        assert parse_datastore(expected.url) == expected

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("vsphere://", "has no host"),
            ("vsphere://h", "names no datastore"),
            ("vsphere://h/DC0", "names no datastore"),
            ("vsphere://h:0/DC0/DS", "port '0' is not a number from 1 to 65535"),
            ("vsphere://h:99999999999/DC0/DS", "port '99999999999'"),
            ("vsphere://h:https/DC0/DS", "port 'https'"),
            ("vsphere://[::1/DC0/DS", "is no host with a port"),
            ("vsphere://h/DC0/DS/a?b", "has a [?] or #"),
            ("vsphere://h/DC0/DS/a/../b", "component '..' is not a name"),
            ("vsphere://h/DC0/DS/a%2Fb", "component 'a/b' is not a name"),
            ("vsphere://h/DC0/DS/%FF", "is not UTF-8"),
            ("[DS] \udcff", "is not a name"),
            ("ds://DS/\udcff", "is not UTF-8"),
            ("vsphere://h/DC0/DS/a%00b", "is not a name"),
            ("vsphere://h/DC0/DS/a%0Ab", "is not a name"),
            ("vsphere://h/DC0/DS%01", "is not a name"),
            ("vsphere://h/DC%EF%BF%BE/DS", "is not a name"),
            ("vsphere://%01@h/DC0/DS", "is not a name"),
            ("vsphere://h:/DC0/DS", "port '' is not a number"),
            ("vsphere://h?x/DC0/DS", "'h[?]x' is no host"),
            ("vsphere://h#:1/DC0/DS", "'h#' is no host"),
            ("vsphere://h\\/DC0/DS", "is no host"),
            ("vsphere://[::1#]/DC0/DS", "is no host"),
            ("ds:///vmfs/volumes/x", "names no datastore"),
            ("[DS", "is no place on a datastore"),
            ("", "is no place on a datastore"),
        ],
    )
    def test_what_is_none_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(InvalidError, match=words):
            parse_datastore(text, LOGIN)

    def test_a_name_without_a_server_needs_a_login(self) -> None:
        with pytest.raises(InvalidError, match=r"\[DS\] a: names no server"):
            parse_datastore("[DS] a")

    @pytest.mark.parametrize(
        "text",
        ["me:s3cret@h/DC0/DS", "me:s3cret/x@h/DC0/DS", "me:/s3cret@h/DC0/DS", "me:x/s3cret?y@h/DC0/DS", "me:x/s3cret@y@h/DC0/DS"],
    )
    def test_a_password_is_refused_and_not_shown(self, text: str) -> None:
        with pytest.raises(InvalidError, match=r"a password has no place|is no user name") as caught:
            parse_datastore(f"vsphere://{text}")
        assert caught.value.hint == "set GOVC_PASSWORD"
        assert "s3cret" not in str(caught.value)

    def test_one_directory_has_several_names(self) -> None:
        place = parse_datastore("vsphere://VC.example:8443/DC0/D S/a/b")
        same = ["ds://D%20S/a/b", "[D S] a//b/", "vsphere://me@vc.example:8443//D%20S/a/b"]
        others = ["ds://D%20S/a", "[DS] a/b", "vsphere://vc.example/DC0/D S/a/b", "vsphere://vc.example:8443/DC1/D S/a/b"]
        assert [place.is_same(parse_datastore(text, LOGIN)) for text in same + others] == [True] * 3 + [False] * 4


class TestParseVm:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("vsphere://h/DC0/vm/web 1", VmLocation("h", 443, "DC0", "web 1")),
            ("vsphere://me@h/DC0/vm/folder/web", VmLocation("h", 443, "DC0", "folder/web", "me")),
            ("web", VmLocation("vc.example", 8443, "DC0", "web", "admin")),
            ("/east/DC1/vm/folder/web", VmLocation("vc.example", 8443, "east/DC1", "folder/web", "admin")),
        ],
    )
    def test_each_form_names_a_machine(self, text: str, expected: VmLocation) -> None:
        assert parse_vm(text, LOGIN) == expected
        assert parse_vm(expected.url) == expected

    @pytest.mark.parametrize("text", ["vsphere://h/DC0", "vsphere://h/DC0/vm", "/DC0/web", "/DC0/vm", ""])
    def test_what_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidError, match="names no virtual machine"):
            parse_vm(text, LOGIN)

    @pytest.mark.parametrize("text", ["a\x01", "\udcff", "/DC\n/vm/a", "vsphere://h/DC0/vm/a%0Ab", "vsphere://h/DC%01/vm/a"])
    def test_letters_that_are_no_text_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidError, match="is not a name"):
            parse_vm(text, LOGIN)
