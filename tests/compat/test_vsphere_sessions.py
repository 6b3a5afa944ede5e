"""Logging in to vSphere, judged by govmomi's simulator."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from urllib3.exceptions import InsecureRequestWarning

from imgstore.errors import DeniedError, ImgstoreError, InvalidError, NotFoundError, UnavailableError
from imgstore.vsphere.session import VsphereLogin, VsphereSession
from tests.servers.vcsim import DATACENTER, DATASTORE, PASSWORD, Vcsim, vcsim


@pytest.fixture(scope="module")
def vsphere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server", "-dc", "2") as server:
        yield server


@pytest.fixture
def session(vsphere: Vcsim) -> Iterator[VsphereSession]:
    with vsphere.session() as opened:
        yield opened


def make_directory(session: VsphereSession, name: str) -> None:
    datacenter = session.datacenter(DATACENTER)
    path = f"[{DATASTORE}] {name}"
    session.run(lambda: session.content.fileManager.MakeDirectory(path, datacenter, False), f"{path}: cannot make it")


def remove(session: VsphereSession, name: str) -> None:
    datacenter = session.datacenter(DATACENTER)
    path = f"[{DATASTORE}] {name}"
    task = session.run(
        lambda: session.content.fileManager.DeleteDatastoreFile_Task(path, datacenter), f"{path}: cannot remove it"
    )
    session.wait(task, f"{path}: cannot remove it")


class TestLogin:
    def test_nobody_logs_in_before_it_is_needed_and_close_logs_out(self, vsphere: Vcsim) -> None:
        with vsphere.session() as watcher:
            manager = watcher.content.sessionManager

            def sessions() -> int:
                return len(manager.sessionList)

            before = sessions()
            with vsphere.session() as session:
                assert sessions() == before
                assert session.is_vcenter
                assert sessions() == before + 1
            assert sessions() == before

    @pytest.mark.parametrize(
        ("change", "kind", "words"),
        [
            ({"password": "wrong"}, DeniedError, "cannot log in: wrong user name or password"),
            ({"username": "nobody"}, DeniedError, "cannot log in: wrong user name or password"),
            ({"password": ""}, DeniedError, "cannot log in: there is no password"),
            ({"username": ""}, DeniedError, "cannot log in: there is no user name"),
            ({"ca_file": ""}, UnavailableError, "cannot log in: certificate not trusted"),
            ({"port": 1}, UnavailableError, "cannot log in: Connection refused"),
            ({"host": "nowhere.invalid"}, UnavailableError, "cannot log in: no such host"),
        ],
    )
    def test_who_cannot_log_in_learns_why(
        self, vsphere: Vcsim, change: dict[str, str], kind: type[ImgstoreError], words: str
    ) -> None:
        with VsphereSession(replace(vsphere.login, **change)) as session, pytest.raises(kind, match=words) as caught:
            _ = session.content
        assert str(caught.value).startswith(f"vSphere {session.login.address}: ")
        assert PASSWORD not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"

    def test_an_unverified_certificate_is_taken_only_if_that_is_said(self, vsphere: Vcsim) -> None:
        login = replace(vsphere.login, ca_file="", insecure=True)
        with VsphereSession(login) as session, pytest.warns(InsecureRequestWarning):  # of urllib3
            assert session.is_vcenter

    def test_a_file_of_authorities_must_be_one(self, vsphere: Vcsim, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("")
        for name, words in (("none.pem", "cannot be read"), ("empty.pem", "holds no certificates")):
            with pytest.raises(InvalidError, match=f"{name}: {words}"):
                VsphereSession(replace(vsphere.login, ca_file=f"{vsphere.ca_file}:{tmp_path / name}"))

    def test_a_server_that_is_silent_is_given_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            login = VsphereLogin("127.0.0.1", silent.getsockname()[1], "me", PASSWORD, insecure=True)
            with (
                VsphereSession(login, timeout=0.2) as session,
                pytest.raises(UnavailableError, match="no answer within the time limit"),
            ):
                _ = session.content


class TestLostSession:
    def test_a_call_and_a_task_go_on_after_it_was_lost(self, vsphere: Vcsim, session: VsphereSession) -> None:
        make_directory(session, "lost")
        assert vsphere.end_sessions() >= 1
        remove(session, "lost")
        assert vsphere.end_sessions() >= 1
        make_directory(session, "lost")
        remove(session, "lost")

    def test_several_threads_log_in_once(self, vsphere: Vcsim, session: VsphereSession) -> None:
        make_directory(session, "threads")
        vsphere.end_sessions()
        errors: list[Exception] = []

        def work(number: int) -> None:
            try:
                make_directory(session, f"threads/{number}")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert vsphere.end_sessions() == 1

    def test_a_login_that_is_valid_no_more_is_denied(self, vsphere: Vcsim, session: VsphereSession) -> None:
        make_directory(session, "denied")
        vsphere.end_sessions()
        session.login = replace(session.login, password="changed")
        with pytest.raises(DeniedError, match="the session was lost: wrong user name or password"):
            make_directory(session, "denied/more")


class TestInventory:
    def test_datacenters_are_found_by_name(self, session: VsphereSession) -> None:
        assert session.datacenter_path(session.datacenter("DC1")) == "DC1"
        with pytest.raises(NotFoundError, match="no datacenter 'DC2'; it has DC0, DC1"):
            session.datacenter("DC2")
        with pytest.raises(InvalidError, match="a datacenter must be named: there are DC0, DC1"):
            session.datacenter()

    def test_a_datacenter_in_a_folder_has_a_path(self, session: VsphereSession) -> None:
        folder = session.content.rootFolder.CreateFolder("east 1/2")
        made = folder.CreateDatacenter("DC1")
        assert session.datacenter("east 1/2/DC1") == made
        assert session.datacenter_path(made) == "east 1%2f2/DC1"
        assert session.datacenter("DC1") != made  # one at the top is found by its path, which is its name
        made.Destroy_Task()
        folder.Destroy_Task()

    def test_datastores_are_found_by_name(self, vsphere: Vcsim, session: VsphereSession) -> None:
        datacenter = session.datacenter(DATACENTER)
        assert session.datastore(datacenter, DATASTORE).name == DATASTORE
        vsphere.add_datastore("with space")
        assert session.datastore(datacenter, "with space").name == "with space"
        with pytest.raises(NotFoundError, match=r"datacenter DC0 has no datastore 'none'; it has LocalDS_0, with space"):
            session.datastore(datacenter, "none")


class TestTasks:
    def test_a_fault_becomes_an_error_that_names_the_object(self, session: VsphereSession) -> None:
        with pytest.raises(NotFoundError, match=r"^\[LocalDS_0\] none: cannot remove it: .*FileNotFound"):
            remove(session, "none")

    def test_one_that_takes_too_long_is_given_up(self, tmp_path: Path) -> None:
        delays = "LockHandoff:0,DeleteDatastoreFile:300"
        with vcsim(tmp_path / "slow", "-method-delay", delays) as slow, slow.session() as session:
            task = session.content.fileManager.DeleteDatastoreFile_Task(f"[{DATASTORE}] none", session.datacenter())
            with pytest.raises(UnavailableError, match="none: cannot remove it: the task has not ended after 0 s, and goes on"):
                session.wait(task, "none: cannot remove it", limit=0.01)
