"""login, logout, tags and manifest as processes, and the options of pull about registries; skopeo judges what a login leaves."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import complaint
from tests.credential_helper import install_helper
from tests.servers.authority import Authority
from tests.servers.docker_registry import PASSWORD as DEBIANS_PASSWORD
from tests.servers.docker_registry import USERNAME as DEBIANS_USERNAME
from tests.servers.docker_registry import docker_registry
from tests.servers.images import BuiltImage, build_image, make_tar, write_archive, write_docker_archive, write_layout
from tests.servers.registry import Fault, Registry
from tests.servers.token_server import Account, TokenServer
from tests.tools import need, run

ROOT = Path(__file__).parents[2]
USERNAME, PASSWORD = "robot$project+puller", "pa$$:word"
LAYERS = [make_tar({"first": b"1" * 5000})]
SIGNATURE = f"sha256-{64 * 'a'}.sig"
NO_MANIFEST = f"sha256:{64 * '0'}"


@dataclass
class User:
    """Somebody with an empty home, and the program.

    Attributes:
        settings: more of the environment.
    """

    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        place = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }
        return place | self.settings

    @property
    def config(self) -> Path:
        return self.home / ".docker/config.json"

    @property
    def store(self) -> Path:
        return self.home / ".local/share/imgstore"

    def run(self, *words: str | Path, code: int = 0, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "imgstore", *map(str, words)]
        settings = {**self.environment, "XDG_DATA_HOME": str(self.home / ".local/share")}
        done = subprocess.run(command, input=input, capture_output=True, text=True, env=settings, cwd=self.home, timeout=60)
        assert code == done.returncode, done.stderr
        return done

    def text(self, *words: str | Path, input: str = "") -> str:
        return self.run(*words, input=input).stdout

    def fails(self, code: int, *words: str | Path, input: str = "") -> str:
        """Runs what must fail in good order; returns the line that says why, and the hint."""
        done = self.run(*words, code=code, input=input)
        assert done.stdout == ""
        return complaint(done.stderr.encode()) + done.stderr.rpartition("\nhint:")[2]

    def fails_in_json(self, code: int, *words: str | Path) -> dict[str, str]:
        done = self.run(*words, "--format", "json", code=code)
        assert done.stdout == ""
        error: dict[str, str] = json.loads(done.stderr)["error"]
        return error

    def json(self, *words: str | Path, input: str = "") -> Any:
        return json.loads(self.text(*words, "--format", "json", input=input))

    def configure(self, text: str) -> None:
        """Writes config.toml."""
        path = self.home / ".config/imgstore/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def user(tmp_path: Path) -> User:
    home = tmp_path / "home"
    home.mkdir()
    return User(home)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def fill(registry: Registry) -> BuiltImage:
    """Two platforms in ``team/app:1``, one in ``:2``, and a signature."""
    image = build_image(LAYERS)
    registry.add_index("team/app", "1", [image, build_image(LAYERS, platform="linux/arm64/v8")])
    registry.add_built("team/app", "2", image)
    registry.add_built("team/app", SIGNATURE, image)
    return image


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[Registry]:
    with Registry() as registry:
        fill(registry)
        yield registry


@pytest.fixture(params=["basic", "bearer"])
def private(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with Registry(auth=request.param) as registry:
        fill(registry)
        yield registry


@pytest.fixture(scope="module")
def protected() -> Iterator[Registry]:
    with Registry(auth="basic") as registry:
        fill(registry)
        yield registry


@pytest.fixture(scope="module")
def encrypted(authority: Authority) -> Iterator[Registry]:
    with Registry(tls=authority.server_context()) as registry:
        fill(registry)
        yield registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    other = build_image([make_tar({"second": b"2"})])
    return write_layout(tmp_path / "layout", {"latest": build_image(LAYERS), "other": other})


def on_terminal(
    user: User, *words: str, answers: Sequence[tuple[bytes, bytes]], stdout_too: bool = True
) -> tuple[int, bytes, bytes]:
    """Plays at a terminal: what to wait for, what to type. Returns exit code, what the terminal saw, and what else was printed."""
    out = user.home / "stdout"
    child, controller = pty.fork()
    if child == 0:
        os.chdir(user.home)
        if not stdout_too:
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        os.execve(sys.executable, [sys.executable, "-m", "imgstore", *words], {**user.environment, "TERM": "xterm"})
    waiting, seen, new = list(answers), b"", b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([controller], [], [], 0.05)[0]:
                continue
            piece = os.read(controller, 4096)
            seen, new = seen + piece, new + piece
            if waiting and waiting[0][0] in new:
                new = b""
                if waiting[0][0].startswith(b"Password"):
                    _wait_for_silence(controller)
                os.write(controller, waiting.pop(0)[1])
        os.kill(child, signal.SIGKILL)
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(controller)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, seen, b"" if stdout_too else out.read_bytes()


def _wait_for_silence(controller: int) -> None:
    # The prompt is printed when the echo is off already, but for the flush of what was typed before.
    import termios

    deadline = time.monotonic() + 10
    while termios.tcgetattr(controller)[3] & termios.ECHO and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)


class TestLogin:
    def test_login_pull_logout(self, user: User, private: Registry) -> None:
        reference = f"{private.host}/team/app:1"
        line = user.fails(5, "pull", reference)
        assert f"pull access denied for {private.host}/team/app" in line
        assert line.endswith(f"log in with: imgstore login {private.host}\n")
        done = user.run("login", private.host, "--username", USERNAME, "--password-stdin", input=f"{PASSWORD}\n")
        assert done.stdout == "Login Succeeded\n"
        assert done.stderr == f"The login is kept in {user.config}\n"
        assert (user.config.stat().st_mode & 0o777, user.config.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert user.text("tags", f"{private.host}/team/app") == "1\n2\n"
        assert user.text("pull", "-q", reference).startswith("sha256:")
        assert user.text("logout", private.host) == f"Removed login credentials for {private.host}\n"
        assert user.text("logout", private.host) == f"Not logged in to {private.host}\n"
        user.fails(5, "tags", f"{private.host}/team/app")

    def test_a_wrong_password_is_not_kept(self, user: User, private: Registry) -> None:
        line = user.fails(5, "login", private.host, "-u", USERNAME, "--password-stdin", input="wr0ng")
        assert f"login to {private.host} failed: " in line and "unauthorized" in line
        assert "wr0ng" not in line and "hint" not in line
        assert list(user.home.iterdir()) == []

    def test_a_robot_of_another_project_is_named(self, user: User, authority: Authority) -> None:
        accounts = {"robot$other+ci": Account("s3cret", {"other/*": {"pull"}})}
        with (
            TokenServer(authority, accounts, encrypted=False) as tokens,
            Registry(auth="bearer", token_server=tokens) as registry,
        ):
            fill(registry)
            user.run("login", registry.host, "-u", "robot$other+ci", "--password-stdin", input="s3cret")
            line = user.fails(5, "pull", f"{registry.host}/team/app:1")
        assert f"pull access denied for {registry.host}/team/app: account 'robot$other+ci'" in line
        assert str(user.config) in line

    def test_json(self, user: User, protected: Registry) -> None:
        host = protected.host
        words = ("login", f"https://{host}/v2/", "-u", USERNAME, "--password-stdin")
        assert user.json(*words, input=PASSWORD) == {"registry": host, "username": USERNAME, "kept_in": str(user.config)}
        assert user.json("logout", host) == {"registry": host, "removed": True}
        assert user.json("logout", host) == {"registry": host, "removed": False}
        assert user.fails_in_json(2, "login", host, "-u", USERNAME)["code"] == "invalid"

    def test_a_password_on_the_command_line_is_warned_of(self, user: User, protected: Registry) -> None:
        done = user.run("login", protected.host, "-u", USERNAME, "-p", PASSWORD)
        assert done.stdout == "Login Succeeded\n"
        assert done.stderr.startswith("warning: others can see --password")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "no user name, and standard input is no terminal"),
            (["-u", ""], "no user name, and standard input is no terminal"),
            (["-u", "me"], "no password, and standard input is no terminal"),
            (["--password-stdin"], "--password-stdin: needs --username"),
            (["-u", "me", "-p", "x", "--password-stdin"], "only one of them"),
            (["-u", "me", "--password-stdin"], "the password is empty"),
            (["-u", "me", "-p", ""], "the password is empty"),
            (["-u", "me:you", "-p", "x"], "user name 'me'"),
            (["-u", "me", "-p", "x", "--authfile", ""], "--authfile: the name is empty"),
            (["-u", "me", "-p", "x", "--cert-dir", "nowhere"], "--cert-dir nowhere: no such directory"),
            (["-u", "me", "-p", "x", "--insecure-registry", "*"], "'*' is a pattern"),
            (["-u", "me", "-p", "x", "--insecure-registry", "10.0.0.0/33"], "'10.0.0.0/33' is no network"),
            (["-u", "me", "-p", "x", "--insecure-registry", "host:99999"], "'host:99999' is no host"),
        ],
    )
    def test_bad_words(self, user: User, protected: Registry, words: list[str], said: str) -> None:
        before = len(protected.requests)
        assert said in user.fails(2, "login", protected.host, *words)
        assert len(protected.requests) == before
        assert list(user.home.iterdir()) == []

    @pytest.mark.parametrize(
        "registry",
        ["", " ", "host:port", "harbor.example.com/project", "a b.c", "https://", "me:pa55@host.example"],
    )
    @pytest.mark.parametrize("command", ["login", "logout"])
    def test_no_registry(self, user: User, command: str, registry: str) -> None:
        words = ("-u", "me", "-p", "pa55") if command == "login" else ()
        line = user.fails(2, command, registry, *words)
        assert registry.rpartition("@")[2] in line and "pa55" not in line.replace(registry, "")

    def test_a_bare_word_never_sends_a_password_to_docker_hub(self, user: User) -> None:
        line = user.fails(2, "login", "harbor", "-u", "me", "-p", "x")
        assert "a part of Docker Hub" in line and line.endswith("write harbor:443, here and in references\n")

    @pytest.mark.parametrize("name", ["", "docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"])
    def test_docker_hub_is_the_default(self, user: User, name: str) -> None:
        user.config.parent.mkdir()
        user.config.write_text('{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6eA=="}}}')
        assert user.text("logout", *([name] if name else [])) == "Removed login credentials for docker.io\n"
        assert json.loads(user.config.read_text()) == {"auths": {}}

    def test_nobody_there(self, user: User) -> None:
        words = ("-u", "me", "--password-stdin")
        assert "no such host" in user.fails(6, "login", "registry.invalid", *words, input="x")
        assert "no port" in user.fails(2, "login", "localhost:99999", *words, input="x")
        assert "connection refused" in user.fails(6, "login", "127.0.0.1:1", *words, input="x")

    def test_no_registry_there(self, user: User, open_to_all: Registry) -> None:
        open_to_all.inject(
            "/v2/$", Fault(status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"}), times=2
        )
        line = user.fails(4, "login", open_to_all.host, "-u", "me", "--password-stdin", input="x")
        assert f"{open_to_all.host}: no registry is at " in line

    @pytest.mark.parametrize(
        ("make", "code"),
        [("directory", 2), ("file in the way", 2), ("broken", 7), ("not ours", 5)],
    )
    def test_authfiles(self, user: User, protected: Registry, make: str, code: int) -> None:
        path = user.home / "auth.json"
        if make == "directory":
            path.mkdir()
        elif make == "file in the way":
            path.write_text("{}")
            path = path / "auth.json"
        elif make == "broken":
            path.write_text('{"auths":')
        else:
            path = Path("/sys/kernel/auth.json")  # nobody may make files there
        line = user.fails(code, "login", protected.host, "-u", USERNAME, "--authfile", path, "--password-stdin", input=PASSWORD)
        assert str(path) in line
        if make == "broken":
            assert path.read_text() == '{"auths":'
            for words in (["logout", protected.host], ["tags", f"{protected.host}/team/app"]):
                assert str(path) in user.fails(7, *words, "--authfile", path)
        assert "imgstore" not in [each.name for each in user.home.rglob("*")]

    def test_an_authfile_is_the_only_one(self, user: User, protected: Registry) -> None:
        user.run("login", protected.host, "-u", USERNAME, "--authfile", "own.json", "--password-stdin", input=PASSWORD)
        assert not user.config.exists()
        repository = f"{protected.host}/team/app"
        assert user.text("tags", repository, "--authfile", "own.json") == "1\n2\n"
        user.fails(5, "tags", repository)
        user.fails(5, "tags", repository, "--authfile", "missing.json")
        assert user.text("logout", protected.host) == f"Not logged in to {protected.host}\n"
        assert (
            user.text("logout", protected.host, "--authfile", "own.json") == f"Removed login credentials for {protected.host}\n"
        )

    def test_a_helper_keeps_it(self, user: User, protected: Registry) -> None:
        install_helper(user.home / "bin")
        user.config.parent.mkdir()
        user.config.write_text('{"credsStore": "test"}')
        done = user.run("login", protected.host, "-u", USERNAME, "--password-stdin", input=PASSWORD)
        assert done.stderr == "The login is kept in credential helper docker-credential-test\n"
        assert json.loads(user.config.read_text()) == {"credsStore": "test", "auths": {protected.host: {}}}
        assert user.text("tags", f"{protected.host}/team/app") == "1\n2\n"
        assert user.text("logout", protected.host) == f"Removed login credentials for {protected.host}\n"
        user.fails(5, "tags", f"{protected.host}/team/app")

    def test_logout_names_a_login_that_is_left(self, user: User, protected: Registry) -> None:
        podmans = user.home / "run/containers/auth.json"
        user.run("login", protected.host, "-u", USERNAME, "--authfile", podmans, "--password-stdin", input=PASSWORD)
        done = user.run("logout", protected.host)
        assert done.stdout == f"Not logged in to {protected.host}\n"
        assert done.stderr.startswith(f"There is another login, in {podmans}")

    def test_skopeo_reads_our_login_and_we_skopeos(self, user: User, tmp_path: Path) -> None:
        need("skopeo")
        authfile = tmp_path / "auth.json"
        with docker_registry(tmp_path / "registry", password=True) as registry:
            image = f"{registry.host}/team/app:1"
            login = (registry.host, "--username", DEBIANS_USERNAME, "--password-stdin", "--authfile")
            user.run("login", *login, authfile, input=DEBIANS_PASSWORD)
            registry.push(f"oci:{ROOT}/testdata/three-layers:latest", "team/app:1", "--authfile", str(authfile))
            skopeo = ("skopeo", "inspect", "--raw", "--tls-verify=false", "--authfile")
            theirs = run(*skopeo, authfile, f"docker://{image}").stdout
            assert theirs.decode() == user.text("manifest", image, "--raw", "--authfile", authfile)
            assert user.text("logout", registry.host, "--authfile", authfile).startswith("Removed")
            assert run(*skopeo, authfile, f"docker://{image}", check=False).returncode != 0
            run("skopeo", "login", "--tls-verify=false", *login, authfile, input=DEBIANS_PASSWORD.encode())
            assert user.text("tags", f"{registry.host}/team/app", "--authfile", authfile) == "1\n"


class TestTerminal:
    def test_it_asks_and_does_not_echo(self, user: User, protected: Registry) -> None:
        answers = [(b"Username: ", f"{USERNAME}\n".encode()), (b"Password: ", f"{PASSWORD}\n".encode())]
        code, seen, out = on_terminal(user, "login", protected.host, answers=answers, stdout_too=False)
        assert (code, out) == (0, b"Login Succeeded\n")
        assert seen.startswith(b"Username: ") and PASSWORD.encode() not in seen
        assert user.text("tags", f"{protected.host}/team/app") == "1\n2\n"

    def test_creds_without_a_password(self, user: User, protected: Registry) -> None:
        answers = [(b"Password of robot$project+puller: ", f"{PASSWORD}\n".encode())]
        code, seen, _ = on_terminal(user, "tags", f"{protected.host}/team/app", "--creds", USERNAME, answers=answers)
        assert code == 0
        assert PASSWORD.encode() not in seen and seen.endswith(b"1\r\n2\r\n")

    @pytest.mark.parametrize("asked", [b"Username: ", b"Password: "])
    @pytest.mark.parametrize(
        ("typed", "code", "said"),
        [(b"\x03", 130, b"interrupted: nothing was changed"), (b"\x04", 2, b" is empty"), (b"\n", 2, b" is empty")],
        ids=["Ctrl-C", "Ctrl-D", "nothing"],
    )
    def test_no_answer(self, user: User, protected: Registry, asked: bytes, typed: bytes, code: int, said: bytes) -> None:
        words = ["login", protected.host, *(["-u", "me"] if asked.startswith(b"Password") else [])]
        ended, seen, _ = on_terminal(user, *words, answers=[(asked, typed)])
        assert (ended, said in seen, b"Traceback" in seen) == (code, True, False), seen
        assert b"\r\nimgstore: " in seen, "the error has a line of its own"
        assert not user.config.exists()


class TestTags:
    def test_tags(self, user: User, open_to_all: Registry) -> None:
        name = f"{open_to_all.host}/team/app"
        assert user.text("tags", name) == "1\n2\n"
        assert user.text("tags", f"docker://{name}", "--all") == f"1\n2\n{SIGNATURE}\n"
        assert user.json("tags", name) == ["1", "2"]
        assert list(user.home.iterdir()) == [], "no store is made"

    def test_layouts_and_archives(self, user: User, layout: Path) -> None:
        assert user.text("tags", f"oci:{layout}") == "latest\nother\n"
        assert user.text("tags", f"oci-archive:{write_archive(user.home / 'oci.tar', layout)}") == "latest\nother\n"
        images = {"app:1": build_image(LAYERS), "app:2": build_image([make_tar({"x": b"2"})])}
        archive = write_docker_archive(user.home / "docker.tar", images)
        assert user.json("tags", f"docker-archive:{archive}") == ["1", "2"]

    @pytest.mark.parametrize("suffix", ["/team/app:1", f"/team/app@{NO_MANIFEST}", "", "/team/APP", "/"])
    def test_no_repository(self, user: User, open_to_all: Registry, suffix: str) -> None:
        user.fails(2, "tags", f"{open_to_all.host}{suffix}")

    def test_a_layout_with_a_tag(self, user: User, layout: Path) -> None:
        assert "without a tag" in user.fails(2, "tags", f"oci:{layout}:latest")
        assert "no such directory" in user.fails(4, "tags", "oci:nowhere")
        assert "needs the name of a directory" in user.fails(2, "tags", "oci:")

    def test_no_such_repository(self, user: User, open_to_all: Registry) -> None:
        error = user.fails_in_json(4, "tags", f"{open_to_all.host}/nosuch")
        assert error["code"] == "not-found" and f"repository {open_to_all.host}/nosuch not found" in error["message"]

    def test_none_at_all(self, user: User, open_to_all: Registry) -> None:
        open_to_all.inject("/tags/list", Fault(status=200, body=b'{"name":"team/app","tags":null}'))
        assert user.text("tags", f"{open_to_all.host}/team/app") == ""

    def test_retries_are_told(self, user: User, open_to_all: Registry) -> None:
        open_to_all.inject("/tags/list", Fault(status=503, headers={"Retry-After": "0"}))
        done = user.run("tags", f"{open_to_all.host}/team/app")
        assert done.stdout == "1\n2\n"
        assert "gave 503); trying again in 0 s\n" in done.stderr


class TestManifest:
    def test_raw_is_byte_exact(self, user: User, open_to_all: Registry, layout: Path) -> None:
        name = f"{open_to_all.host}/team/app"
        for tag in ("1", "2"):
            data, _ = open_to_all.manifests["team/app", tag]
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            for reference in (f"{name}:{tag}", f"{name}@{digest}", f"docker://{name}:{tag}@{digest}"):
                assert user.text("manifest", "--raw", reference).encode() == data
                assert user.json("manifest", reference) == json.loads(data)
        digests = [entry["digest"] for entry in json.loads((layout / "index.json").read_text())["manifests"]]
        data = user.text("manifest", "--raw", f"oci:{layout}:other").encode()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digests[1]
        assert not user.store.exists()

    def test_platform(self, user: User, open_to_all: Registry) -> None:
        name = f"{open_to_all.host}/team/app:1"
        index = user.json("manifest", name)
        for platform, entry in zip(("linux/amd64", "linux/arm64"), index["manifests"], strict=True):
            data = user.text("manifest", "--raw", "--platform", platform, name).encode()
            assert entry["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        line = user.fails(4, "manifest", "--platform", "linux/s390x", name)
        assert "there are: linux/amd64, linux/arm64" in line
        assert "platform 'bogus'" in user.fails(2, "manifest", "--platform", "bogus", name)

    def test_what_has_none(self, user: User, open_to_all: Registry, layout: Path, tmp_path: Path) -> None:
        name = f"{open_to_all.host}/team/app"
        assert "not found" in user.fails(4, "manifest", f"{name}:nosuch")
        assert "not found" in user.fails(4, "manifest", f"{name}@{NO_MANIFEST}")
        assert user.fails_in_json(2, "manifest", f"{name}@sha256:12")["code"] == "invalid"
        archive = write_docker_archive(tmp_path / "docker.tar", {"app:1": build_image(LAYERS)})
        for words in ([], ["--platform", "linux/amd64"], ["--raw"]):
            assert "manifest" in user.fails(11, "manifest", f"docker-archive:{archive}", *words)
        assert "say which: latest, other" in user.fails(2, "manifest", f"oci:{layout}")


class TestOptions:
    def test_creds(self, user: User, private: Registry) -> None:
        name = f"{private.host}/team/app"
        assert user.text("tags", name, "--creds", f"{USERNAME}:{PASSWORD}") == "1\n2\n"
        user.settings["IMGSTORE_CREDS"] = f"{USERNAME}:{PASSWORD}"
        assert user.text("tags", name) == "1\n2\n"
        assert user.text("pull", "-q", f"{name}:1").startswith("sha256:")
        line = user.fails(5, "manifest", f"{name}:1", "--creds", "me:wr0ng")
        assert "'me'" in line and "wr0ng" not in line

    @pytest.mark.parametrize("creds", ["", ":", ":x"])
    def test_creds_without_a_name(self, user: User, open_to_all: Registry, creds: str) -> None:
        assert user.fails(2, "tags", f"{open_to_all.host}/team/app", "--creds", creds).startswith(
            "imgstore: --creds: no user name"
        )
        user.settings["IMGSTORE_CREDS"] = ":"
        assert user.fails(2, "tags", f"{open_to_all.host}/team/app").startswith("imgstore: IMGSTORE_CREDS: no user name")

    def test_a_login_asks_for_its_own_name(self, user: User, protected: Registry) -> None:
        user.settings["IMGSTORE_CREDS"] = "somebody else"
        user.run("login", protected.host, "-u", USERNAME, "--password-stdin", input=PASSWORD)

    def test_cert_dir(self, user: User, encrypted: Registry, authority: Authority) -> None:
        name = f"{encrypted.host}/team/app"
        line = user.fails(6, "tags", name)
        assert "certificate not trusted" in line and "--cert-dir" in line
        certificates = authority.write_cert_dir(user.home / "certificates")
        assert user.text("tags", name, "--cert-dir", certificates) == "1\n2\n"
        assert user.text("pull", "-q", f"{name}:1", "--cert-dir", "certificates").startswith("sha256:")

    def test_a_client_certificate(self, user: User, authority: Authority) -> None:
        stranger = Authority(user.home / "stranger")
        with Registry(tls=authority.server_context(client_ca=authority.ca_file)) as registry:
            fill(registry)
            name = f"{registry.host}/team/app"
            without = authority.write_cert_dir(user.home / "without")
            assert "certificate required" in user.fails(6, "tags", name, "--cert-dir", without)
            wrong = authority.write_cert_dir(user.home / "wrong", client=stranger.client)
            assert "unknown ca" in user.fails(6, "tags", name, "--cert-dir", wrong)
            right = authority.write_cert_dir(user.home / "right", client=authority.client)
            assert user.text("tags", name, "--cert-dir", right) == "1\n2\n"

    @pytest.mark.parametrize(
        ("file", "code", "said"),
        [
            ("ca.crt", 2, "ca.crt: no certificate in PEM"),
            ("client.cert", 2, "client.cert, "),
            ("client.key", 2, "no certificate and its key in PEM"),
            ("other.cert", 7, "missing key other.key"),
            ("other.key", 7, "missing client certificate other.cert"),
        ],
    )
    def test_garbage_in_cert_dir(
        self, user: User, encrypted: Registry, authority: Authority, file: str, code: int, said: str
    ) -> None:
        certificates = authority.write_cert_dir(user.home / "certificates", client=authority.client)
        (certificates / file).write_text("garbage\n")
        before = len(encrypted.requests)
        assert said in user.fails(code, "tags", f"{encrypted.host}/team/app", "--cert-dir", certificates)
        assert len(encrypted.requests) == before, "never by plain HTTP instead"

    @pytest.mark.parametrize("insecure", ["127.0.0.1", "127.0.0.0/8", "{host}"])
    def test_insecure(self, user: User, encrypted: Registry, insecure: str) -> None:
        words = ("--insecure-registry", "other.example.com", "--insecure-registry", insecure.format(host=encrypted.host))
        done = user.run("tags", f"{encrypted.host}/team/app", *words)
        assert (done.stdout, done.stderr) == ("1\n2\n", "")


class TestConfiguration:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("x =", "config.toml: Invalid value"),
            ("[registri]", "unknown table 'registri'"),
            ('[registry."a.b"]\nfoo = 1', "[registry.\"a.b\"]: 'foo' is unknown"),
            ('[registry."a.b"]\ninsecure = "yes"', "insecure is a string, not a boolean"),
            ('[registry."https://a.b"]', "has a scheme"),
            ('[registry."a.b"]\nmirrors = ["https://x"]', "has a scheme"),
            ('[registry."a.b"]\nproxy = "squid"', "proxy is no URL"),
            ("[registry]\ninsecure = true", '[registry."insecure"]'),
            ('[policy]\nallow = "a.b"', "policy: allow is a string"),
            ('[policy]\ndeny = ["a b"]', "policy: deny: 'a b'"),
            ("[policy]\nblock = []", "'block' is unknown"),
            ("policy = 3", "policy"),
        ],
    )
    def test_broken(self, user: User, open_to_all: Registry, text: str, said: str) -> None:
        user.configure(text)
        before = len(open_to_all.requests)
        for words in (["tags", f"{open_to_all.host}/team/app"], ["login", open_to_all.host, "-u", "me", "-p", "x"]):
            line = user.fails(2, *words)
            assert said in line and "config.toml" in line
        assert len(open_to_all.requests) == before
        assert user.text("images", "-q") == "", "what asks no registry does not read it"

    def test_the_file_that_was_named(self, user: User, open_to_all: Registry) -> None:
        name = f"{open_to_all.host}/team/app"
        for path in ("missing.toml", "."):
            user.settings["IMGSTORE_CONFIG"] = path
            assert user.fails(2, "tags", name).startswith(f"imgstore: {path}: ")
        (user.home / "latin.toml").write_bytes(b"# \xff\n")
        user.settings["IMGSTORE_CONFIG"] = "latin.toml"
        assert "is not UTF-8, at byte 2" in user.fails(2, "tags", name)
        user.settings["IMGSTORE_CONFIG"] = ""
        assert user.text("tags", name) == "1\n2\n"

    def test_policy(self, user: User, open_to_all: Registry) -> None:
        user.configure('[policy]\nallow = ["harbor.example.com"]')
        host, before = open_to_all.host, len(open_to_all.requests)
        said = f"Access denied to unauthorized registry ({host}) while VCH is in whitelist mode"
        for words in (
            ["pull", f"{host}/team/app:1"],
            ["tags", f"{host}/team/app"],
            ["manifest", f"{host}/team/app:1"],
            ["login", host, "-u", "me", "-p", "x"],
        ):
            error = user.fails(5, *words)
            assert error.startswith(f"imgstore: {said}") and "log in with" not in error
        assert user.fails_in_json(5, "tags", f"{host}/team/app") == {"code": "denied", "message": said, "hint": ""}
        assert len(open_to_all.requests) == before
        user.configure(f'[policy]\nallow = ["127.0.0.0/8"]\ndeny = ["{host}/team/app"]')
        assert "on the deny list" in user.fails(5, "tags", f"{host}/team/app")

    def test_a_private_authority_and_a_path_beside_the_file(self, user: User, encrypted: Registry, authority: Authority) -> None:
        user.configure(f'[registry."{encrypted.host}"]\nca = "ca.pem"\n')
        line = user.fails(2, "tags", f"{encrypted.host}/team/app")
        assert f"{user.home}/.config/imgstore/ca.pem: No such file" in line
        (user.home / ".config/imgstore/ca.pem").write_bytes(authority.ca_file.read_bytes())
        assert user.text("tags", f"{encrypted.host}/team/app") == "1\n2\n"

    def test_a_mirror_that_fails_is_named(self, user: User, open_to_all: Registry, protected: Registry) -> None:
        host = open_to_all.host
        user.configure(f'[registry."{host}"]\nmirrors = ["127.0.0.1:1", "{protected.host}"]\n')
        done = user.run("pull", f"{host}/team/app:1")
        assert done.stdout == f"{host}/team/app:1\n"
        told = [line for line in done.stderr.splitlines() if "; asking " in line]
        assert len(told) == 2, "what refused us once is left alone"
        assert "127.0.0.1:1: connection refused; asking " in told[0] and told[0].endswith(protected.host)
        assert f"{protected.host}: pull access denied" in told[1] and told[1].endswith(f"asking {host}")
        assert f"; asking {host}" in user.run("tags", f"{host}/team/app").stderr
        assert user.run("pull", "-q", f"{host}/team/app:1").stderr == ""

    def test_a_policy_of_harbor_is_no_login(self, user: User, open_to_all: Registry) -> None:
        body = b'{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":"current image with 3 vulnerabilities cannot be pulled"}]}'
        open_to_all.inject("/manifests/", Fault(status=412, body=body))
        line = user.fails(5, "pull", f"{open_to_all.host}/team/app:1")
        assert "with 3 vulnerabilities cannot be pulled" in line and "log in with" not in line
