"""What goes wrong on the way to a vSphere datastore, and on it: what is said, and what is left."""

from __future__ import annotations

import errno
import itertools
import logging
import random
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.datastores.vsphere import VsphereDatastore
from imgstore.datastores.vsphere_files import DatastoreFiles
from imgstore.errors import CorruptError, DeniedError, ImgstoreError, NoSpaceError, UnavailableError, UnsupportedError
from imgstore.progress import ProgressEvent, State
from imgstore.store import ImageStore
from imgstore.vsphere.environment import login_for
from imgstore.vsphere.locations import parse_datastore
from tests.command_line import REFERENCE
from tests.servers.authority import Authority
from tests.servers.cutting_proxy import CuttingProxy
from tests.servers.faults import Fault
from tests.servers.http_server import Answer
from tests.servers.images import build_image, make_tar, write_layout
from tests.servers.vcsim import DATACENTER, PASSWORD, Vcsim, vcsim
from tests.servers.vsphere_proxy import Forward, VsphereProxy
from tests.tools import need, need_root, run

_NUMBERS = itertools.count()
_CAPACITY = 64 << 20


@pytest.fixture(scope="module")
def vsphere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def proxy(vsphere: Vcsim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VsphereProxy]:
    with VsphereProxy(vsphere, Authority(tmp_path_factory.mktemp("authority"))) as server:
        yield server


@pytest.fixture
def datastore(proxy: VsphereProxy) -> Iterator[VsphereDatastore]:
    with VsphereDatastore(parse_datastore(proxy.url(f"faults {next(_NUMBERS)}")), proxy.login) as made:
        yield made
    proxy.clear_faults()


def publish(datastore: VsphereDatastore, name: str, data: bytes) -> None:
    with datastore.stage("disks", "test") as staging:
        staging.create(name).pwrite(0, data)
        staging.publish()


class TestFull:
    @pytest.fixture
    def small(self, vsphere: Vcsim, tmp_path: Path) -> Iterator[str]:
        """URL of a directory on a datastore of 4 MiB."""
        need("mount", "umount")
        need_root()
        name = f"small {next(_NUMBERS)}"
        (tmp_path / "small").mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "small")
        try:
            vsphere.add_datastore(name, tmp_path / "small")
            yield vsphere.url("store", name)
        finally:
            run("umount", tmp_path / "small")

    def test_a_file_that_does_not_fit_is_not_there(self, vsphere: Vcsim, small: str, tmp_path: Path) -> None:
        with VsphereDatastore(parse_datastore(small), vsphere.login) as datastore:
            with pytest.raises(NoSpaceError, match=r"disks/a.vmdk: only \d+ of 6291456 bytes were kept"):
                publish(datastore, "a.vmdk", random.Random(1).randbytes(6 << 20))
            assert datastore.list("disks") == []
            datastore.write_atomic("a.json", b"old")
            ballast = tmp_path / "small/ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as full:
                while file.write(bytes(4096)):
                    pass
            assert full.value.errno == errno.ENOSPC
            with pytest.raises(NoSpaceError, match=r"only \d+ of 5000 bytes were kept"):
                datastore.write_atomic("a.json", bytes(5000))
            assert (datastore.read_bytes("a.json"), datastore.list()) == (b"old", ["a.json", "disks"])
            ballast.unlink()
            publish(datastore, "a.vmdk", bytes(1 << 20))
            assert datastore.list("disks") == ["a.vmdk"]

    def test_an_image_that_does_not_fit_leaves_the_store_as_it_was(self, vsphere: Vcsim, small: str, tmp_path: Path) -> None:
        big = make_tar({"big": random.Random(2).randbytes(5 << 20)})
        layout = write_layout(tmp_path / "layout", {"big": build_image([make_tar({"file": b"data"}), big])})
        ImageStore.create(small, disk_size=_CAPACITY, vsphere=vsphere.login).close()
        with ImageStore.open(small, vsphere=vsphere.login) as store:
            store.pull(REFERENCE)
            with pytest.raises(NoSpaceError):
                store.pull(f"oci:{layout}:big")
            assert len(store.images()) == 1
        with ImageStore.open(small, create=False, vsphere=vsphere.login) as store:
            assert list(store.check(read_data=True)) == []
            assert len(store.images()) == 1

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(status=507),
            Fault(status=500, body=b"<html>Failed to write: No space left on device</html>"),
        ],
    )
    def test_a_server_that_says_so_is_understood(self, datastore: VsphereDatastore, proxy: VsphereProxy, fault: Fault) -> None:
        proxy.inject("/folder/", fault, method="PUT")
        with pytest.raises(NoSpaceError, match=r"^\[LocalDS_0\] faults \d+/disks/a: cannot upload it: the datastore is full$"):
            publish(datastore, "a", b"data")
        assert datastore.list("disks") == []

    def test_a_server_that_hangs_up_since_it_is_full_is_asked(
        self, datastore: VsphereDatastore, proxy: VsphereProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy.inject("/folder/", Fault(cut_request=1000, hang_up=True), method="PUT")
        monkeypatch.setattr(DatastoreFiles, "free_space", lambda files: 4096)  # vcsim's datastores have terabytes
        with pytest.raises(NoSpaceError, match="cannot upload 1048576 bytes: 4096 are free"):
            publish(datastore, "a", bytes(1 << 20))


class TestCutUpload:
    def test_nothing_of_it_is_left(self, vsphere: Vcsim) -> None:
        with CuttingProxy(f"127.0.0.1:{vsphere.port}") as cutting:
            port = int(cutting.host.rpartition(":")[2])
            url = vsphere.url("cut").replace(f":{vsphere.port}/", f":{port}/")
            with VsphereDatastore(parse_datastore(url), parse_datastore(url).login(vsphere.login)) as datastore:
                datastore.write_atomic("a.json", b"old")
                with datastore.stage("disks", "test") as staging:
                    staging.create("a.vmdk").pwrite(0, b"first")
                    staging.create("b.vmdk").pwrite(0, random.Random(3).randbytes(4 << 20))
                    cutting.cut_after(1 << 20)
                    with pytest.raises(UnavailableError, match=r"\[LocalDS_0\] cut/disks/b.vmdk: cannot upload it: "):
                        staging.publish()
                assert cutting.cuts == 1
                assert datastore.list("disks") == []
                assert (datastore.read_bytes("a.json"), list(datastore.parts(""))) == (b"old", [])

    def test_what_cannot_be_removed_is_not_taken_for_whole(self, proxy: VsphereProxy, vsphere: Vcsim) -> None:
        """As after a crash: half of a disk lies under its name."""
        url = proxy.url(f"store {next(_NUMBERS)}")
        ImageStore.create(url, disk_size=_CAPACITY, vsphere=proxy.login).close()
        with ImageStore.open(url, vsphere=proxy.login) as store:
            store.pull(REFERENCE)
            paths = store.disk_paths("three-layers")
        top = vsphere.directory().joinpath(*paths[-1].partition("] ")[2].split("/"))
        top.with_suffix(".json").unlink()
        with top.open("r+b") as file:
            file.truncate(top.stat().st_size - GRAIN)
        with ImageStore.open(url, vsphere=proxy.login) as store:
            assert store.images() == []
            store.pull(REFERENCE)
            assert store.disk_paths("three-layers") == paths
            assert list(store.check(read_data=True)) == []


class TestLostSession:
    def test_file_access_logs_in_once_more(self, datastore: VsphereDatastore, proxy: VsphereProxy) -> None:
        data = random.Random(4).randbytes(100_000)
        publish(datastore, "a", b"data")
        before = proxy.logins
        for number, method in enumerate(("PUT", "GET", "HEAD")):
            refused = proxy.inject("/folder/", Fault(status=401), method=method)
            publish(datastore, f"{number}.vmdk", data)
            assert datastore.read_bytes(f"disks/{number}.vmdk") == data
            assert refused.hits == 1
        assert proxy.logins == before + 3

    def test_who_is_refused_again_is_denied(self, datastore: VsphereDatastore, proxy: VsphereProxy) -> None:
        publish(datastore, "a", b"data")
        for status, times in ((401, 2), (403, 1)):
            proxy.inject("/folder/", Fault(status=status), method="GET", times=times)
            with pytest.raises(DeniedError, match=rf"disks/a: cannot open it: vSphere 127.0.0.1:\d+ refuses: {status}"):
                datastore.open("disks/a")

    def test_who_comes_after_the_end_does_not_log_in_again(self, proxy: VsphereProxy) -> None:
        with VsphereDatastore(parse_datastore(proxy.url(f"faults {next(_NUMBERS)}")), proxy.login) as datastore:
            publish(datastore, "a", bytes(1 << 20))
            file = datastore.open("disks/a")
        before = len(proxy.requests)
        with pytest.raises(ValueError, match="the session is closed"):
            file.pread(1 << 19, 10)
        assert len(proxy.requests) == before

    def test_a_pull_goes_on(self, vsphere: Vcsim) -> None:
        url = vsphere.url(f"pull {next(_NUMBERS)}")
        ended = []

        def end_sessions(event: ProgressEvent) -> None:
            if event.state in (State.CONVERTING, State.COMPLETE):
                ended.append(vsphere.end_sessions())

        ImageStore.create(url, disk_size=_CAPACITY, vsphere=vsphere.login).close()
        with ImageStore.open(url, vsphere=vsphere.login) as store:
            store.pull(REFERENCE, progress=end_sessions)
            assert sum(ended) >= 2
            assert list(store.check()) == []


class TestSecrets:
    def test_neither_password_nor_session_is_logged(self, proxy: VsphereProxy, caplog: pytest.LogCaptureFixture) -> None:
        """By anybody: us, pyVmomi, requests, urllib3, http.client."""
        caplog.set_level(logging.DEBUG)
        said = []
        before = len(proxy.requests)
        url = proxy.url(f"secrets {next(_NUMBERS)}")
        with VsphereDatastore(parse_datastore(url), proxy.login) as datastore:
            publish(datastore, "a", b"data")
            for fault in (Fault(status=500, body=b"no"), Fault(status=403), Fault(hang_up=True)):
                proxy.inject("/folder/", fault, method="GET")
                with pytest.raises(ImgstoreError) as caught:
                    datastore.open("disks/a")
                said += traceback.format_exception(caught.value)
        wrong = replace(proxy.login, password=f"{PASSWORD}-no")
        with pytest.raises(DeniedError) as denied, VsphereDatastore(parse_datastore(url), wrong) as datastore:
            datastore.list()
        said += [*traceback.format_exception(denied.value), repr(wrong), caplog.text]
        cookies = {request.headers.get("Cookie", "") for request in proxy.requests[before:]}
        keys = {key for cookie in cookies for key in re.findall(r"[0-9a-f-]{36}", cookie)}
        assert keys
        assert [secret for secret in (*keys, PASSWORD) if secret in "".join(said)] == []

    def test_a_password_goes_to_the_server_of_its_url_only(self) -> None:
        environment = {"GOVC_URL": "https://me:s3cret@vc.example/sdk"}
        elsewhere = parse_datastore("vsphere://other.example/DC0/DS")
        assert login_for(elsewhere, environment).password == ""
        assert login_for(parse_datastore("vsphere://VC.example/DC0/DS"), environment).password == "s3cret"


class _Blind(Forward):
    """Does not let anybody see what a datastore is, as where System.Read is missing."""

    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        answer = super().serve(path, query)
        return replace(answer, body=re.sub(rb"<propSet><name>info</name>.*?</propSet>", b"", answer.body, flags=re.DOTALL))


class TestBadAnswers:
    def test_what_may_not_be_seen_is_denied(self, vsphere: Vcsim, tmp_path: Path) -> None:
        with (
            VsphereProxy(vsphere, Authority(tmp_path / "authority"), _Blind) as blind,
            VsphereDatastore(parse_datastore(blind.url()), blind.login) as datastore,
            pytest.raises(DeniedError, match=r"^\[LocalDS_0\]: what the datastore is cannot be read"),
        ):
            datastore.space()

    @pytest.mark.parametrize(
        ("fault", "kind", "words"),
        [
            (Fault(cut_after=100), UnavailableError, "cannot read it: "),
            (Fault(headers={"Content-Range": "bytes 5-9/100000"}), CorruptError, "got Content-Range 'bytes 5-9/100000'"),
            (Fault(headers={"Content-Range": "bytes */x"}), CorruptError, "got Content-Range"),
            (Fault(status=503), UnavailableError, "says 503 Service Unavailable"),
            (Fault(hang_up=True), UnavailableError, "the connection was cut"),
            (Fault(raw=b"nonsense\r\n\r\n"), UnavailableError, "cannot read it: "),
        ],
    )
    def test_reading_says_what_is_wrong(
        self, datastore: VsphereDatastore, proxy: VsphereProxy, fault: Fault, kind: type[ImgstoreError], words: str
    ) -> None:
        publish(datastore, "a", random.Random(5).randbytes(300_000))
        with datastore.open("disks/a") as file:
            proxy.inject("/folder/", fault, method="GET", times=2)
            with pytest.raises(kind, match=words):
                file.pread(200_000, 50_000)
            proxy.clear_faults()
            assert len(file.pread(200_000, 50_000)) == 50_000

    def test_a_redirect_is_not_followed(
        self, datastore: VsphereDatastore, proxy: VsphereProxy, vsphere: Vcsim, tmp_path: Path
    ) -> None:
        """Whoever is named there would get our session; nor is the file missing, which would have it made again."""
        publish(datastore, "a", b"data")
        with VsphereProxy(vsphere, Authority(tmp_path / "authority")) as stranger:
            location = f"https://127.0.0.1:{stranger.port}/folder/a"
            for status in (301, 307):
                proxy.inject("/folder/", Fault(status=status, headers={"Location": location}), method="GET")
                with pytest.raises(UnavailableError, match=f"cannot open it: .* says {status} "):
                    datastore.open("disks/a")
            assert stranger.requests == []

    def test_answers_in_chunks_are_read_to_their_end(self, proxy: VsphereProxy) -> None:
        document = b"<namespaces><namespace><name>urn:vim25</name><version>6.5</version></namespace></namespaces>"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (document[:20], document[20:], b""))
        chunked = proxy.inject("vimServiceVersions", Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks))
        with VsphereDatastore(parse_datastore(proxy.url("chunks")), proxy.login) as datastore:
            assert datastore.space().free > 0
        assert chunked.hits == 1

    def test_a_server_without_ranges_is_refused(self, datastore: VsphereDatastore, proxy: VsphereProxy) -> None:
        publish(datastore, "a", b"data")
        proxy.inject("/folder/", Fault(status=200, body=b"data"), method="GET")
        with pytest.raises(UnsupportedError, match="gives no parts of files"):
            datastore.open("disks/a")

    def test_a_server_that_is_not_ready_says_so(self, proxy: VsphereProxy) -> None:
        proxy.inject("vimServiceVersions", Fault(status=503))
        with VsphereDatastore(parse_datastore(proxy.url()), proxy.login) as datastore:
            with pytest.raises(UnavailableError, match="is no vSphere server, or not ready: 503"):
                datastore.list()
            proxy.inject("vimServiceVersions", Fault(status=200, body=b"<html>"))
            with pytest.raises(CorruptError, match=r"vimServiceVersions\.xml is no XML"):
                datastore.list()
            proxy.inject("/sdk$", Fault(status=503))
            with pytest.raises(UnavailableError, match="503 Service Unavailable"):
                datastore.list()
            proxy.inject("/sdk$", Fault(status=200, body=b"<html>"))
            with pytest.raises(UnavailableError, match="cannot log in"):
                datastore.list()
            assert DATACENTER in datastore.location
            assert "store" not in datastore.list()
