"""Credentials in the files of docker, podman and skopeo: looked up, written and erased."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from registry_client.credentials import ANONYMOUS, Credential, erase_credential, find_credential, store_credential
from registry_client.errors import DeniedError, InvalidError, MalformedError, RegistryError
from tests.credential_helper import install_helper

ROBOT = Credential("robot$team+puller", "pa$$:wörd")
OTHER = Credential("other", "x")
HUB = "https://index.docker.io/v1/"


def auth(credential: Credential) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "explicit.json"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": str(tmp_path / "bin"),
    }


@pytest.fixture
def authfile(tmp_path: Path) -> Path:
    return tmp_path / "auth.json"


# Where they are looked for.


def test_the_first_place_that_knows_wins(tmp_path: Path, environment: dict[str, str]) -> None:
    assert find_credential("r.io", "a", environment=environment) == ANONYMOUS
    places = [".dockercfg", ".docker/config.json", ".config/containers/auth.json"]
    paths = [tmp_path / "home" / place for place in places] + [tmp_path / "run/containers/auth.json", tmp_path / "explicit.json"]
    for number, path in enumerate(paths):
        entry = {"r.io": auth(Credential(f"user{number}", "x"))}
        write(path, entry if path.name == ".dockercfg" else {"auths": entry})
        found = find_credential("r.io", "a", environment=environment)
        assert found == Credential(f"user{number}", "x")
        assert found.origin == f"{path}: r.io"
        assert find_credential("other.io", "a", environment=environment) == ANONYMOUS
    environment["DOCKER_AUTH_CONFIG"] = json.dumps({"auths": {"r.io": auth(ROBOT)}})
    assert find_credential("r.io", "a", environment=environment) == ROBOT
    assert find_credential("r.io", "a", environment=environment).origin == "$DOCKER_AUTH_CONFIG: r.io"


def test_directories_that_the_environment_names(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "DOCKER_CONFIG": str(tmp_path / "docker")}
    for path in (tmp_path / "docker/config.json", tmp_path / "xdg/containers/auth.json"):
        write(path, {"auths": {"r.io": auth(Credential(path.parent.name, "x"))}})
        assert find_credential("r.io", "a", environment=environment).username == path.parent.name


def test_an_authfile_is_the_only_place(tmp_path: Path, authfile: Path, environment: dict[str, str]) -> None:
    environment["DOCKER_AUTH_CONFIG"] = json.dumps({"auths": {"r.io": auth(OTHER)}})
    write(tmp_path / "explicit.json", {"auths": {"r.io": auth(OTHER)}})
    assert find_credential("r.io", "a", environment=environment) == OTHER
    assert find_credential("r.io", "a", authfile=authfile, environment=environment) == ANONYMOUS
    authfile.write_text(" \n")
    assert find_credential("r.io", "a", authfile=authfile, environment=environment) == ANONYMOUS
    assert find_credential("r.io", "a", authfile=Path("/dev/null"), environment=environment) == ANONYMOUS
    write(authfile, {"auths": {"r.io": auth(ROBOT)}})
    assert find_credential("r.io", "a", authfile=authfile, environment=environment) == ROBOT


def test_a_file_that_cannot_be_read(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(RegistryError, match="Is a directory"):
        find_credential("r.io", "a", authfile=tmp_path, environment=environment)
    (tmp_path / "explicit.json").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(MalformedError, match="more than 1048576"):
        find_credential("r.io", "a", environment=environment)


# Which entry of a file counts.


@pytest.mark.parametrize(
    ("registry", "key"),
    [
        ("docker.io", HUB),
        ("docker.io", "docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("docker.io", "index.docker.io/team"),
        ("r.io:5000", "https://r.io:5000/v2/"),
        ("r.io:5000", "http://r.io:5000"),
        ("r.io", "r.io/team/app"),
        ("r.io", "r.io/team"),
        ("r.io", "r.io:443"),
        ("r.io", "https://r.io:443/v1/"),
        ("r.io", "r.io:443/team"),
        ("r.io:443", "r.io"),
        ("r.io:443", "r.io/team/app"),
        ("R.io", "r.IO"),
    ],
)
def test_keys(registry: str, key: str, authfile: Path) -> None:
    write(authfile, {"auths": {"other.io": auth(OTHER), key: auth(ROBOT), f"not-{registry}": auth(OTHER)}})
    assert find_credential(registry, "team/app", authfile=authfile) == ROBOT


@pytest.mark.parametrize("key", ["r.io/tea", "r.io/team/app/x", "r.io:80", "io", "xr.io", "https://r.io.evil"])
def test_keys_of_others(key: str, authfile: Path) -> None:
    write(authfile, {"auths": {key: auth(ROBOT)}})
    assert find_credential("r.io", "team/app", authfile=authfile) == ANONYMOUS


def test_the_longest_key_wins(authfile: Path) -> None:
    keys = ["r.io", "r.io/team", "r.io/team/app", "r.io:5000"]
    write(authfile, {"auths": {key: auth(Credential("x", key)) for key in keys}})
    for registry, repository, key in [
        ("r.io", "team/app", "r.io/team/app"),
        ("r.io", "team/app2", "r.io/team"),
        ("r.io", "teams", "r.io"),
        ("r.io", "", "r.io"),
        ("r.io:443", "team", "r.io/team"),
        ("r.io:5000", "team", "r.io:5000"),
    ]:
        assert find_credential(registry, repository, authfile=authfile).password == key


def test_dockers_spelling_wins_and_empty_entries_are_passed_over(authfile: Path) -> None:
    keys = ["https://r.io", "r.io:443", "r.io", "docker.io", HUB]
    write(authfile, {"auths": {"r.io/team": {}, **{key: auth(Credential("x", key)) for key in keys}}})
    for registry, key in [("r.io", "r.io"), ("r.io:443", "r.io:443"), ("docker.io", HUB)]:
        assert find_credential(registry, "team/app", authfile=authfile).password == key


def test_what_an_entry_can_hold(authfile: Path) -> None:
    wrapped = auth(ROBOT)["auth"]
    write(
        authfile,
        {
            "auths": {
                "a.io": {"identitytoken": "t", **auth(Credential("0000", ""))},
                "b.io": {"username": "u", "password": "p", "email": "e@b.io"},
                "c.io": {},
                "d.io": {"registrytoken": "bearer"},
                "e.io": {"auth": f"{wrapped[:8]}\r\n{wrapped[8:]}\n"},
                "f.io": {"auth": base64.b64encode(b"user:pad\0\0").decode()},
            }
        },
    )
    found = {host: find_credential(f"{host}.io", "x", authfile=authfile) for host in "abcdef"}
    assert found == {
        "a": Credential("0000", identity_token="t"),
        "b": Credential("u", "p"),
        "c": ANONYMOUS,
        "d": Credential(registry_token="bearer"),
        "e": ROBOT,
        "f": Credential("user", "pad"),
    }
    assert [host for host in found if not found[host]] == ["c"]


BROKEN: list[Any] = [5, [], {"auth": "%%%"}, {"auth": "YWJj"}, {"auth": "/////w=="}, {"auth": "é"}, {"identitytoken": 5}]


@pytest.mark.parametrize("entry", BROKEN)
def test_a_broken_entry_hurts_only_its_registry(entry: Any, authfile: Path) -> None:
    write(authfile, {"auths": {"broken.io": entry, "r.io": auth(ROBOT)}, "credHelpers": {"x.io": entry}})
    assert find_credential("r.io", "a", authfile=authfile) == ROBOT
    with pytest.raises(MalformedError, match=r"auth\.json: auths: broken\.io: ") as caught:
        find_credential("broken.io", "a", authfile=authfile)
    for word in ("YWJj", "%%%", "abc"):
        assert word not in str(caught.value)
    with pytest.raises(MalformedError, match=r"auth\.json: credHelpers: x\.io is "):
        find_credential("x.io", "a", authfile=authfile)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"auths": []}', '{"credHelpers": 5}', '{"credsStore": {}}', '{"auths": {}, "auths": {}}']
)
def test_broken_files(content: str, authfile: Path, environment: dict[str, str]) -> None:
    authfile.write_text(content)
    with pytest.raises(MalformedError, match=r"auth\.json"):
        find_credential("r.io", "a", authfile=authfile)
    environment["DOCKER_AUTH_CONFIG"] = content
    with pytest.raises(MalformedError, match="DOCKER_AUTH_CONFIG"):
        find_credential("r.io", "a", environment=environment)


# Helpers.


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return install_helper(tmp_path / "bin")


def test_which_helper_is_asked(tmp_path: Path, authfile: Path, environment: dict[str, str]) -> None:
    for name in ("one", "two"):
        script = f"""read -r server; printf '{{"Username": "{name}", "Secret": "%s"}}' "$server" """
        install_helper(tmp_path / "bin", name, script)
    install_helper(tmp_path / "bin", "token", """echo '{"Username": "<token>", "Secret": "refresh"}'""")
    install_helper(tmp_path / "bin", "none", "echo 'credentials not found in native keychain'; exit 1")
    install_helper(tmp_path / "bin", "bad", "echo 'the keychain is locked'; exit 1")
    helpers = {"a.io": "one", HUB: "one", "b.io:443": "token", "c.io": "none", "d.io": "bad", "e.io": "", "f.io": "../x"}
    content = {
        "auths": {"a.io": auth(ROBOT), "c.io": auth(OTHER), "e.io": auth(OTHER)},
        "credHelpers": helpers,
        "credsStore": "two",
    }
    write(authfile, content)

    def find(registry: str) -> Credential:
        return find_credential(registry, "x", authfile=authfile, environment=environment)

    assert find("a.io") == Credential("one", "a.io")
    assert find("a.io").origin == "credential helper docker-credential-one"
    assert find("docker.io") == Credential("one", HUB)
    assert find("b.io") == Credential(identity_token="refresh")
    assert find("c.io") == OTHER
    assert find("e.io") == OTHER
    assert find("g.io") == Credential("two", "g.io")
    with pytest.raises(DeniedError, match=r"docker-credential-bad: get for d\.io ended with 1: 'the keychain is locked'"):
        find("d.io")
    with pytest.raises(MalformedError, match="not a valid name"):
        find("f.io")


def test_a_helper_knows_the_other_spelling(kept: Path, authfile: Path, environment: dict[str, str]) -> None:
    write(authfile, {"credsStore": "test"})
    for registry, other in [("r.io:443", "r.io"), ("s.io", "s.io:443")]:
        assert store_credential(registry, ROBOT, authfile=authfile, environment=environment) == (
            "credential helper docker-credential-test"
        )
        assert find_credential(other, "a", authfile=authfile, environment=environment) == ROBOT
    assert json.loads(authfile.read_text()) == {"credsStore": "test", "auths": {"r.io:443": {}, "s.io": {}}}
    assert erase_credential("r.io", authfile=authfile, environment=environment)
    assert erase_credential("s.io:443", authfile=authfile, environment=environment)
    assert json.loads(authfile.read_text())["auths"] == {}
    assert [path.name for path in kept.iterdir()] == ["arguments"]


def test_what_a_helper_keeps_leaves_the_file(kept: Path, authfile: Path, environment: dict[str, str]) -> None:
    write(authfile, {"auths": {HUB: auth(OTHER), "r.io": auth(OTHER)}, "credHelpers": {"docker.io": "test"}})
    token = Credential("user", "x", identity_token="refresh")
    store_credential("docker.io", token, authfile=authfile, environment=environment)
    assert json.loads(authfile.read_text())["auths"] == {HUB: {}, "r.io": auth(OTHER)}
    assert find_credential("docker.io", "a", authfile=authfile, environment=environment) == Credential(identity_token="refresh")
    assert json.loads((kept / "https___index.docker.io_v1_.json").read_text())["Username"] == "<token>"
    store_credential("r.io", ROBOT, authfile=authfile, environment=environment)
    assert json.loads(authfile.read_text())["auths"]["r.io"] == auth(ROBOT)
    with pytest.raises(InvalidError, match=r"knows no namespaces such as docker\.io/team"):
        store_credential("docker.io/team", ROBOT, authfile=authfile, environment=environment)
    with pytest.raises(InvalidError, match="cannot keep a registry token"):
        store_credential("docker.io", Credential(registry_token="t"), authfile=authfile, environment=environment)


def test_a_helper_that_fails_leaves_the_file(tmp_path: Path, authfile: Path, environment: dict[str, str]) -> None:
    install_helper(tmp_path / "bin", script="echo 'locked'; exit 1")
    before = write(authfile, {"auths": {"r.io": auth(ROBOT)}, "credsStore": "test"}).read_bytes()
    with pytest.raises(DeniedError, match="locked"):
        store_credential("r.io", OTHER, authfile=authfile, environment=environment)
    with pytest.raises(DeniedError, match="locked"):
        erase_credential("r.io", authfile=authfile, environment=environment)
    assert authfile.read_bytes() == before


# Writing.


def test_where_it_is_written(tmp_path: Path, authfile: Path, environment: dict[str, str]) -> None:
    assert store_credential("r.io", ROBOT, authfile=authfile, environment=environment) == str(authfile)
    assert store_credential("r.io", ROBOT, environment=environment) == str(tmp_path / "explicit.json")
    del environment["REGISTRY_AUTH_FILE"]
    home = tmp_path / "home/.docker/config.json"
    assert store_credential("r.io", ROBOT, environment=environment) == str(home)
    assert (home.stat().st_mode & 0o777, home.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    environment["DOCKER_CONFIG"] = str(tmp_path / "elsewhere")
    assert store_credential("r.io", ROBOT, environment=environment) == str(tmp_path / "elsewhere/config.json")
    assert find_credential("r.io", "a", environment=environment) == ROBOT


def test_it_looks_as_docker_writes_it(authfile: Path) -> None:
    store_credential("docker.io", Credential("u", "p"), authfile=authfile)
    assert authfile.read_text() == '{\n\t"auths": {\n\t\t"https://index.docker.io/v1/": {\n\t\t\t"auth": "dTpw"\n\t\t}\n\t}\n}'


def test_an_identity_token_has_no_password_beside_it(authfile: Path) -> None:
    store_credential("r.io", Credential("user", "canary", identity_token="t"), authfile=authfile)
    store_credential("s.io", Credential(identity_token="t", registry_token="b"), authfile=authfile)
    assert json.loads(authfile.read_text())["auths"] == {
        "r.io": {"auth": base64.b64encode(b"user:").decode(), "identitytoken": "t"},
        "s.io": {"identitytoken": "t", "registrytoken": "b"},
    }
    assert find_credential("r.io", "a", authfile=authfile) == Credential("user", identity_token="t")


@pytest.mark.parametrize("indent", ["\t", "  ", "    "])
def test_all_else_in_the_file_stays(indent: str, authfile: Path) -> None:
    content = {
        "HttpHeaders": {"X-Meta": "wörd <&> \u2028"},
        "auths": {"z.io": {**auth(OTHER), "email": "e"}, "r.io": auth(OTHER), "a.io": 5},
        "psFormat": "table {{.ID}}\\t{{.Image}}",
        "unknown": [1, 2.5, True, None, {}, [], 12345678901234567],
        "credHelpers": {"x.io": "ecr-login"},
    }
    authfile.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
    store_credential("r.io", ROBOT, authfile=authfile)
    content["auths"]["r.io"] = auth(ROBOT)  # type: ignore[call-overload, index]
    assert authfile.read_text() == json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    assert erase_credential("r.io", authfile=authfile)
    del content["auths"]["r.io"]  # type: ignore[attr-defined]
    assert authfile.read_text() == json.dumps(content, indent=indent, ensure_ascii=False) + "\n"


def test_a_second_login_replaces_the_first_and_the_same_one_writes_nothing(authfile: Path) -> None:
    for credential in (OTHER, ROBOT):
        store_credential("r.io", credential, authfile=authfile)
        assert find_credential("r.io", "a", authfile=authfile) == credential
    before = authfile.stat()
    store_credential("r.io", ROBOT, authfile=authfile)
    assert (authfile.stat().st_ino, authfile.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_namespaces(authfile: Path) -> None:
    store_credential("r.io", OTHER, authfile=authfile)
    store_credential("r.io/team", ROBOT, authfile=authfile)
    assert find_credential("r.io", "team/app", authfile=authfile) == ROBOT
    assert find_credential("r.io", "teams/app", authfile=authfile) == OTHER
    assert erase_credential("r.io", authfile=authfile)
    assert find_credential("r.io", "team/app", authfile=authfile) == ROBOT
    assert erase_credential("r.io/team", authfile=authfile)
    assert find_credential("r.io", "team/app", authfile=authfile) == ANONYMOUS


@pytest.mark.parametrize("dangling", [False, True])
def test_behind_a_link_it_is_the_target_that_changes(dangling: bool, tmp_path: Path, authfile: Path) -> None:
    target = tmp_path / "dotfiles/docker.json"
    if not dangling:
        write(target, {"auths": {"z.io": auth(OTHER)}})
    authfile.symlink_to(target)
    store_credential("r.io", ROBOT, authfile=authfile)
    assert authfile.readlink() == target
    assert "r.io" in json.loads(target.read_text())["auths"]
    assert erase_credential("r.io", authfile=authfile)
    assert authfile.readlink() == target


def test_modes(authfile: Path) -> None:
    write(authfile, {}).chmod(0o644)
    store_credential("r.io", ROBOT, authfile=authfile)
    assert authfile.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in authfile.parent.iterdir()) == [".auth.json.lock", "auth.json"]
    assert (authfile.parent / ".auth.json.lock").stat().st_mode & 0o777 == 0o600


def test_the_old_format_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / ".dockercfg", {"https://r.io/v1/": {**auth(OTHER), "email": "e"}})
    store_credential("s.io", ROBOT, authfile=path)
    assert json.loads(path.read_text()) == {"https://r.io/v1/": {**auth(OTHER), "email": "e"}, "s.io": auth(ROBOT)}
    assert erase_credential("r.io", authfile=path)
    assert json.loads(path.read_text()) == {"s.io": auth(ROBOT)}


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": []}', '{"auths": {"r.io": {}, "r.io": {}}}'])
def test_a_broken_file_is_not_written_over(content: str, authfile: Path) -> None:
    authfile.write_text(content)
    with pytest.raises(MalformedError, match=r"auth\.json"):
        store_credential("r.io", ROBOT, authfile=authfile)
    with pytest.raises(MalformedError, match=r"auth\.json"):
        erase_credential("r.io", authfile=authfile)
    assert authfile.read_text() == content


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(RegistryError, match="Is a directory"):
        store_credential("r.io", ROBOT, authfile=tmp_path / "directory")
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(InvalidError, match="null: not a regular file"):
        store_credential("r.io", ROBOT, authfile=tmp_path / "null")
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match=r"file/auth\.json: "):
        store_credential("r.io", ROBOT, authfile=tmp_path / "file/auth.json")


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        (Credential("user:canary", "canary"), "user name 'user'…: holds ':'"),
        (Credential("us\ner", "canary"), "holds a control character"),
        (Credential("<token>", "canary"), "mark for an identity token"),
        (Credential("", "canary"), "no user name"),
        (Credential("user", "canary\0"), "zero byte"),
        (Credential("user", "canary\udcff"), "not valid UTF-8"),
        (ANONYMOUS, "is empty"),
    ],
)
def test_what_cannot_be_kept(credential: Credential, words: str, authfile: Path) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        store_credential("r.io", credential, authfile=authfile)
    assert "canary" not in repr(caught.value)
    assert not authfile.exists()


def test_a_file_that_would_be_too_big_to_read(authfile: Path) -> None:
    with pytest.raises(InvalidError, match="more than 1048576"):
        store_credential("r.io", Credential("user", "canary" * 200_000), authfile=authfile)
    assert not authfile.exists()


# Erasing.


def test_all_spellings_of_a_host_are_erased(authfile: Path) -> None:
    spellings = ["r.io", "https://r.io", "http://r.io/v1/", "r.io:443", "R.IO"]
    others = {"r.io:5000": auth(OTHER), "r.io/team": auth(OTHER), "xr.io": auth(OTHER)}
    write(authfile, {"auths": {**{key: auth(ROBOT) for key in spellings}, **others}})
    assert erase_credential("https://r.io", authfile=authfile)
    assert json.loads(authfile.read_text()) == {"auths": others}
    assert not erase_credential("r.io", authfile=authfile)


def test_nothing_to_erase(tmp_path: Path, authfile: Path) -> None:
    assert not erase_credential("r.io", authfile=tmp_path / "no/auth.json")
    assert not (tmp_path / "no").exists()
    write(authfile, {"auths": {"r.io": {}, "s.io": auth(OTHER)}})
    assert not erase_credential("t.io", authfile=authfile)
    assert [path.name for path in tmp_path.iterdir()] == ["auth.json"]
    assert not erase_credential("r.io", authfile=authfile)
    assert json.loads(authfile.read_text()) == {"auths": {"s.io": auth(OTHER)}}


def test_secrets_are_not_printed() -> None:
    assert "pa$$" not in repr(ROBOT)
    assert "canary" not in repr(Credential(identity_token="canary", registry_token="canary"))
