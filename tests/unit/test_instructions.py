"""What docker itself makes of the same instructions is compared in ``tests/compat/test_archives.py``."""

from __future__ import annotations

from typing import Any

import pytest

from imgstore.errors import InvalidError
from imgstore.instructions import apply_changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], {}),
        (["CMD a b"], {"Cmd": ["/bin/sh", "-c", "a b"]}),
        (["CMD"], {"Cmd": ["/bin/sh", "-c"]}),
        (["CMD []"], {"Cmd": []}),
        (['cmd ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (['CMD ["a", "b c]'], {"Cmd": ["/bin/sh", "-c", '["a", "b c]']}),
        (["CMD a", "ENTRYPOINT b"], {"Cmd": ["/bin/sh", "-c", "a"], "Entrypoint": ["/bin/sh", "-c", "b"]}),
        (["ENTRYPOINT b"], {"Entrypoint": ["/bin/sh", "-c", "b"]}),
        (["ENTRYPOINT []"], {}),
        (["ENV a b  c "], {"Env": ["a=b  c"]}),
        (["ENV a=b c='d e' f=\"g\" h="], {"Env": ["a=b", "c=d e", "f=g", "h="]}),
        (["ENV a=1", "ENV a=2 b=$a"], {"Env": ["a=2", "b=1"]}),
        (["ENV a=1", "ENV b=$a", "USER $b"], {"Env": ["a=1", "b=1"], "User": "1"}),
        (["EXPOSE 80 53/UDP 127.0.0.1:1:2"], {"ExposedPorts": {"2/tcp": {}, "53/udp": {}, "80/tcp": {}}}),
        (["EXPOSE 1-3/sctp"], {"ExposedPorts": {"1/sctp": {}, "2/sctp": {}, "3/sctp": {}}}),
        (["ENV p='1 2'", "EXPOSE $p"], {"Env": ["p=1 2"], "ExposedPorts": {"1/tcp": {}, "2/tcp": {}}}),
        (["LABEL a=b 'c d'=e"], {"Labels": {"a": "b", "c d": "e"}}),
        (["LABEL a b c"], {"Labels": {"a": "b c"}}),
        (["STOPSIGNAL 9"], {"StopSignal": "9"}),
        (["STOPSIGNAL SIGRTMIN+3"], {"StopSignal": "SIGRTMIN+3"}),
        (["STOPSIGNAL kill"], {"StopSignal": "kill"}),
        (["USER a:b"], {"User": "a:b"}),
        (["VOLUME /a /b"], {"Volumes": {"/a": {}, "/b": {}}}),
        (['VOLUME ["/a b"]'], {"Volumes": {"/a b": {}}}),
        (["WORKDIR /a/../b/"], {"WorkingDir": "/b"}),
        (["WORKDIR a", "WORKDIR b"], {"WorkingDir": "/a/b"}),
        (["WORKDIR //a"], {"WorkingDir": "/a"}),
        (["ONBUILD RUN  x  y"], {"OnBuild": ["RUN  x  y"]}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (["HEALTHCHECK CMD x y"], {"Healthcheck": {"Test": ["CMD-SHELL", "x y"]}}),
        (
            ['HEALTHCHECK --interval=1h1m1.5s --start-period=1ms --start-interval=2s --timeout=0 --retries=2 CMD ["x"]'],
            {
                "Healthcheck": {
                    "Test": ["CMD", "x"],
                    "Interval": 3_661_500_000_000,
                    "StartPeriod": 1_000_000,
                    "StartInterval": 2_000_000_000,
                    "Retries": 2,
                }
            },
        ),
        (["# comment\nCMD a \\\n  # another\n\n b"], {"Cmd": ["/bin/sh", "-c", "a  b"]}),
        (["# escape=`\nENV a=b` c"], {"Env": ["a=b c"]}),
        (["CMD -- a"], {"Cmd": ["/bin/sh", "-c", "a"]}),
    ],
)
def test_instructions(changes: list[str], expected: dict[str, Any]) -> None:
    assert expected == apply_changes({}, changes)


def test_what_was_there_before() -> None:
    config = {"Env": ["A=1"], "Labels": {"a": "b"}, "Cmd": ["x"], "WorkingDir": "/w", "Shell": ["/bin/ash", "-ec"], "Other": 7}
    changed = apply_changes(config, ["ENV B=${A}2", "LABEL c=d", "ENTRYPOINT y", "WORKDIR v"])
    assert changed == {
        "Env": ["A=1", "B=12"],
        "Labels": {"a": "b", "c": "d"},
        "WorkingDir": "/w/v",
        "Shell": ["/bin/ash", "-ec"],
        "Entrypoint": ["/bin/ash", "-ec", "y"],
        "Other": 7,
    }
    assert config["Labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([""], "file with no instructions"),
        (["CMD a", "COPY a b"], "COPY is not a valid change command"),
        (["ENV a='x", "'"], "' is not a valid change command"),
        (["STOPSIGNAL SIGFOO"], "invalid signal: SIGFOO"),
        (["STOPSIGNAL 0"], "invalid signal: 0"),
        (["STOPSIGNAL"], "STOPSIGNAL requires exactly one argument"),
        (["EXPOSE 65536"], "invalid containerPort: 65536"),
        (["EXPOSE 5-3"], "invalid containerPort: 5-3"),
        (["EXPOSE /tcp"], "no port specified: /tcp<empty>"),
        (["EXPOSE ٣"], "invalid containerPort"),
        (["HEALTHCHECK --interval=x CMD a"], 'time: invalid duration "x"'),
        (["HEALTHCHECK --interval=1us CMD a"], 'Interval "interval" cannot be less than 1ms'),
        (["HEALTHCHECK --interval=-1s CMD a"], "cannot be less than 1ms"),
        (["HEALTHCHECK --interval=9999999999999h CMD a"], "invalid duration"),
        (["HEALTHCHECK --retries=x CMD a"], "retries"),
        (["HEALTHCHECK --retries=99999999999 CMD a"], "retries"),
        (["HEALTHCHECK --interval=1s --interval=2s CMD a"], "duplicate flag specified: --interval"),
        (["HEALTHCHECK --interval CMD a"], "missing a value on flag: --interval"),
        (['VOLUME [""]'], "VOLUME specified can not be an empty string"),
        (["WORKDIR $NONE"], "cannot normalize nothing"),
        (["ONBUILD"], "ONBUILD requires at least one argument"),
        (["# escape=x\nCMD a"], "invalid escape token 'x'"),
        (["CMD a"] * 1001, "more than 1000 instructions"),
        (["CMD " + "a" * 70_000], "65536 characters"),
        (["CMD " + "[" * 20_000 + "]" * 20_000], "^$"),
    ],
)
def test_what_is_refused(changes: list[str], words: str) -> None:
    if words == "^$":
        assert apply_changes({}, changes)["Cmd"][-1].startswith("[[")
        return
    with pytest.raises(InvalidError, match=words):
        apply_changes({}, changes)
