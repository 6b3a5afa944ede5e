"""A real credential helper: a program that keeps each credential in a file, as its protocol says."""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """\
#!/bin/sh
PATH=/usr/bin:/bin
kept={directory}
echo "$*" >> "$kept/arguments"
request=$(cat)
server=$(printf %s "$request" | sed 's/.*"ServerURL": *"\\([^"]*\\)".*/\\1/')
file=$kept/$(printf %s "$server" | tr /: __).json
case $1 in
store) printf %s "$request" > "$file" ;;
get) cat "$file" 2> /dev/null || {{ printf 'credentials not found in native keychain\\n'; exit 1; }} ;;
erase) rm -f "$file" ;;
list) echo '{{}}' ;;
esac
"""


def install_helper(path: Path, name: str = "test", script: str | None = None) -> Path:
    """Writes ``docker-credential-<name>`` into a directory for the PATH.

    Args:
        script: shell commands in the place of those that keep credentials; the action is ``$1``.

    Returns:
        The directory in which it keeps what it is told, and the arguments of its runs, in the file ``arguments``.
    """
    kept = path / f"kept-by-{name}"
    kept.mkdir(parents=True, exist_ok=True)
    program = path / f"docker-credential-{name}"
    program.write_text(_SCRIPT.format(directory=kept) if script is None else f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    program.chmod(0o755)
    return kept
