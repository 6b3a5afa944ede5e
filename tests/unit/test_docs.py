"""What the documents say of the program: links lead somewhere, and commands, exit codes, errors and layouts are those of the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import click
import pytest
from starlette.routing import Route

import imgstore
import registry_client
from imgstore import blocks, config, errors, markers
from imgstore.cli import failures, registry_options
from imgstore.cli.main import COMMANDS, LazyGroup
from imgstore.cli.main import imgstore as program
from imgstore.docker_api import connections, events, jobs, server, spools, versions
from imgstore.docker_api.app import create_app
from imgstore.docker_api.service import Service
from imgstore.ext4.format import format_file_system
from imgstore.ext4.geometry import Geometry, read_super_block
from imgstore.ext4.groups import GroupTable
from imgstore.ext4.journal import journal_blocks
from imgstore.layers import recipe
from imgstore.layout import (
    DISKS,
    SCRATCH,
    blobs_file,
    container_disk,
    container_marker,
    disk_file,
    grain_sums_file,
    image_directory,
    layer_marker,
    merged_sums_file,
    platform_disk,
    recipe_file,
)
from imgstore.progress import State
from imgstore.store import ImageStore
from imgstore.vmdk import formats
from imgstore.vmdk.cowd import CowdHeader
from imgstore.vmdk.descriptor import EXTENT_KINDS
from imgstore.vmdk.grains import HostedHeader, Layout
from registry_client import registry_table
from registry_client.options import Options, RegistryOptions
from registry_client.retry import RetryPolicy

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "testdata/README.md"])
REFERENCE = ROOT / "docs/reference"
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(command: str) -> str:
    """What the reference says of a command, which may be one of a group: ``container ls``."""
    found = re.search(rf"^####? {command}\n(.*?)(?=^##)", (REFERENCE / "cli.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"no section on {command}"
    return found[1]


def command_of(name: str) -> click.Command:
    command: click.Command | None = program
    for word in name.split():
        assert isinstance(command, LazyGroup)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    return command


GROUPS = [name for name in COMMANDS if isinstance(command_of(name), LazyGroup)]
SUBCOMMANDS = [f"{name} {word}" for name in GROUPS for word in command_of(name).list_commands(click.Context(command_of(name)))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_document_can_be_reached() -> None:
    reached: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        document = pending.pop()
        if document not in reached:
            reached.add(document)
            links = (link.partition("#")[0] for link in LINK.findall(CODE.sub("", document.read_text())) if "://" not in link)
            pending += [(document.parent / link).resolve() for link in links if link.endswith(".md")]
    assert [path for path in (ROOT / "docs").rglob("*.md") if path not in reached] == []


@pytest.mark.parametrize("name", [*COMMANDS, *SUBCOMMANDS])
def test_every_command_and_option_is_in_the_reference(name: str) -> None:
    text = section(name)
    assert f"imgstore {name}" in text
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{name}: {option} is not in the reference"
        else:
            assert parameter.metavar
            assert parameter.metavar.strip("[].") in text


@pytest.mark.parametrize("name", [*COMMANDS, *SUBCOMMANDS])
def test_the_reference_has_no_other_options(name: str) -> None:
    known = {option for parameter in command_of(name).params for option in parameter.opts}
    usage = re.search(r"```\n(.*?)```", section(name), re.DOTALL)
    assert usage
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", usage[1])) <= known


def test_the_reference_has_no_other_commands() -> None:
    text = (REFERENCE / "cli.md").read_text()
    assert list(COMMANDS) == re.findall(r"^### ([\w-]+)$", text, re.MULTILINE)
    assert re.findall(r"^#### ([\w-]+ [\w-]+)$", text, re.MULTILINE) == SUBCOMMANDS


def test_global_options_are_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text()
    for parameter in program.params:
        assert f"| `{parameter.opts[0]}" in text
    assert config.STORE_VARIABLE in text and config.SYSTEM_STORE in text


def test_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (?:`([\w-]+)`)? ?\|", (REFERENCE / "cli.md").read_text(), re.MULTILINE)
    table = {int(code): name for code, name in rows}
    assert {code: kind.code for kind, code in failures.EXIT_CODES.items()} == {
        code: name for code, name in table.items() if code in failures.EXIT_CODES.values()
    }
    assert table[failures.UNEXPECTED] == "unexpected"
    assert failures.PROBLEMS_FOUND in table


def test_kinds_of_errors() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| (\d+) \|", (REFERENCE / "errors.md").read_text(), re.MULTILINE)
    assert {(kind.__name__, kind.code, str(code)) for kind, code in failures.EXIT_CODES.items()} == set(rows)
    assert all(issubclass(getattr(errors, name), imgstore.ImgstoreError) for name, _, _ in rows)


def test_every_method_of_the_library_is_in_the_reference() -> None:
    text = (REFERENCE / "library.md").read_text()
    methods = [name for name in dir(imgstore.ImageStore) if not name.startswith("_") and name != "close"]
    assert methods == [name for name in methods if re.search(rf"\| `(?:ImageStore\.)?{name}[(`]", text)]


def test_the_floors_of_the_architecture() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (floors,) = (each["layers"] for each in project["tool"]["importlinter"]["contracts"] if each["name"] == "Floors")
    present = {name for floor in floors for name in re.split(r" \| ", floor) if not name.startswith(("(", "_"))}
    table = (ROOT / "docs/internals/architecture.md").read_text().partition("## Floors")[2].partition("\n## ")[0]
    shown = {name for row in re.findall(r"^\| [\w ]*\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert present == shown - {"registry_client"}


def test_the_rooms_of_registry_client() -> None:
    text = (ROOT / "docs/internals/architecture.md").read_text().partition("## registry_client")[2].partition("\n## ")[0]
    shown = [name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "registry_client").glob("*.py") if path.stem != "__init__")


def test_the_configuration_that_is_shown_is_one_and_has_every_key() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (REFERENCE / "configuration.md").read_text(), re.DOTALL)
    tables = tomllib.loads(shown)
    registries, policy = registry_table.parse_registry_table(tables, Path("/etc/imgstore"), "configuration.md")
    assert set(tables["registry"]["harbor.example.com"]) == registry_table._REGISTRY_KEYS
    assert registries["docker.io"].mirrors and policy.allow and policy.deny


def test_places_of_the_configuration() -> None:
    text = (REFERENCE / "configuration.md").read_text()
    for word in (config.CONFIG_VARIABLE, config.SYSTEM_CONFIG, registry_options.CREDENTIALS_VARIABLE):
        assert f"`{word}`" in text
    sources = [*ROOT.glob("registry_client/*.py"), *ROOT.glob("imgstore/cli/*.py")]
    read = {name for path in sources for name in re.findall(r"environ(?:ment)?(?:\.get\(|\[)\"(\w+)\"", path.read_text())}
    assert {name for name in read if f"`{name}`" not in text} <= {"HOME", "TERM"}


def test_every_name_and_option_of_registry_client_is_in_the_reference() -> None:
    text = (REFERENCE / "registry-client.md").read_text()
    no_types = {"Descriptor", "Index", "Manifest", "Platform", "PushStatus", "PushEvent", "RetryPolicy"}
    assert [name for name in registry_client.__all__ if name not in no_types and name not in text] == []
    for kind in (Options, RegistryOptions):
        assert [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in text] == []
    policy = RetryPolicy()
    assert f"RetryPolicy(tries={policy.tries}, base={policy.base}, cap={policy.cap}, patience={policy.patience})" in text
    for owner in (registry_client.RepositoryClient, registry_client.RepositoryWriter, registry_client.ImageSource):
        methods = [name for name, _ in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")]
        assert [name for name in methods if f"`{name}(" not in text] == []


def test_the_layout_of_a_store() -> None:
    text = (REFERENCE / "store-layout.md").read_text()
    for stem in (SCRATCH, "<chain id>"):
        assert f"\n{DISKS}/{disk_file(stem)} " in text
        assert f"\n{DISKS}/{grain_sums_file(stem)} " in text
    assert f"\n{layer_marker('sha256:<chain id>')} " in text
    assert f"\n{blobs_file('sha256:<chain id>')} " in text
    assert f"\n{image_directory('sha256:<image id>')}/image.json " in text
    assert f"\n{DISKS}/{recipe_file('<chain id>')} " in text
    assert f"\n{DISKS}/{merged_sums_file('<chain id>')} " in text
    assert f"\n{container_disk('<container id>')} " in text and f"\n{container_marker('<container id>')} " in text
    assert f"\n{platform_disk('containers', '<id>')} " in text and f"\n{platform_disk('volumes', '<name>')} " in text
    for kind in (
        markers.StoreMarker,
        markers.LayerMarker,
        markers.DiskRecord,
        markers.RecipeRecord,
        markers.ImageMarker,
        markers.ImageLayer,
        markers.BlobsMarker,
        markers.BlobRecord,
        markers.ContainerMarker,
        markers.MountRecord,
    ):
        for field in kind.__struct_fields__:
            assert f"`{field}`" in text, f"{kind.__name__}.{field}"


def test_every_path_of_the_docker_api_is_in_the_reference() -> None:
    text = (REFERENCE / "docker-api.md").read_text().partition("## Paths\n")[2].partition("\n## ")[0]
    shown = [(method, path) for method, path in re.findall(r"`([A-Z]+) (/[^`]*)`", text)]
    with ImageStore.open("mem://") as store:
        routes = create_app(Service(store)).routes
    served = [
        (method, re.sub(r":path\}", "}", route.path))
        for route in routes
        if isinstance(route, Route) and route.methods
        for method in route.methods - {"HEAD"}
    ]
    assert sorted(shown) == sorted(served)


def test_the_limits_of_the_docker_api() -> None:
    text = (REFERENCE / "docker-api.md").read_text()
    for row in (
        f"| connections | {connections.CONNECTIONS_MAX};",
        f"| head of a request | {connections.HEAD_SIZE_MAX >> 10} KiB, {connections.HEAD_SECONDS_MAX:.0f} seconds |",
        f"| connection without a request | {server.IDLE_SECONDS_MAX} seconds |",
        f"less {spools.RESERVE >> 20} MiB; {spools.SILENCE_SECONDS_MAX:.0f} seconds without a byte |",
        f"| pulls, pushes and loads that run at once | {jobs.JOBS_MAX};",
        f"| messages that wait for a client | {jobs.LAG_MAX:,};",
        f"| events that wait for a client | {events.WAITING_MAX};",
        f"its latest {events.KEPT} in memory",
        f"| requests after SIGTERM | {server.SHUTDOWN_SECONDS:.0f} seconds",
        f"versions {versions.show_version(versions.OLDEST)} to {versions.show_version(versions.NEWEST)} of",
        *(f"`{state}" for state in State if state not in (State.COPYING, State.COPIED)),
    ):
        assert row in text, row


def test_the_marker_that_is_shown_is_one() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", (REFERENCE / "store-layout.md").read_text(), re.DOTALL)
    marker = markers.decode(markers.LayerMarker, shown.encode(), "store-layout.md")
    assert markers.encode(marker) == shown.encode()


def test_the_geometry_of_a_vmdk() -> None:
    text = (REFERENCE / "disk-format.md").read_text()
    layout = Layout.plan(config.DEFAULT_DISK_SIZE)
    assert f"| {layout.overhead} (byte {layout.overhead * 512:,}) |" in text
    assert f"{layout.tables} tables: sectors {layout.redundant_directory} to {layout.redundant_tables - 1} |" in text
    assert f"| {layout.redundant_tables} to {layout.directory - 1} |" in text
    assert f"| {layout.directory} to {layout.first_table - 1} |" in text
    for field in ("magic", "capacity", "grain_size", "directory", "overhead", "unclean_shutdown", "newlines", "compression"):
        assert re.search(rf"^\| {HostedHeader.offset_of(field)} \| \d+ \| {field.replace('_', ' ')} \|", text, re.MULTILINE), (
            field
        )


def test_the_other_forms_of_vmdk() -> None:
    text = (REFERENCE / "disk-format.md").read_text().partition("## Other forms")[2].partition("\n## ")[0]
    for form, known in formats.FORMATS.items():
        assert f"| `{form}` | `{known.create_type}`, `{EXTENT_KINDS[known.create_type]}` |" in text
        if known.writable:
            assert (
                f"| {', '.join(f'`{name}`' for name in known.files('x'))} | {'may have one' if known.has_parent else 'never'} |"
                in text
            )
            assert f"`{form}`" in section("export-disk")
    shown = re.findall(r"^\| (\d+) \| (\d+) \| ([\w ]+) \|", text, re.MULTILINE)
    assert shown == [
        (str(field.offset), str(field.size), name.replace("_", " "))
        for name, field in list(CowdHeader._fields.items())[: len(shown)]
    ]


def test_the_form_of_a_recipe() -> None:
    text = (REFERENCE / "disk-format.md").read_text().partition("## The recipe")[2]
    shown = [
        (int(offset), int(size), name) for offset, size, name in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", text, re.MULTILINE)
    ]
    assert shown == [
        (field.offset, field.size, name)
        for kind in (recipe.RecipeHeader, recipe.SectionHeader, recipe.RecipeEnd)
        for name, field in kind._fields.items()
    ]
    assert f"at most {recipe.MAX_LITERAL:,} literal bytes and {recipe.MAX_RUNS:,} runs" in text


def test_the_geometry_of_a_file_system() -> None:
    text = (REFERENCE / "disk-format.md").read_text()
    device = blocks.MemoryBlockDevice(config.DEFAULT_DISK_SIZE)
    format_file_system(device)
    super_block = read_super_block(device)
    geometry = Geometry.from_super_block(super_block, device.size)
    groups = GroupTable.load(device, geometry)
    tables = groups.inode_table[0]
    root = tables + geometry.groups * geometry.inode_table_blocks
    end = root + 1 + journal_blocks(device.size)
    assert super_block.free_blocks_count_lo == geometry.blocks - end
    assert f"({geometry.blocks:,} blocks, {geometry.groups} groups, {geometry.inodes:,} inodes)" in text
    for first, after in (
        (1, groups.block_bitmap[0]),
        (groups.block_bitmap[0], groups.inode_bitmap[0]),
        (groups.inode_bitmap[0], tables),
    ):
        assert f"| {first}–{after - 1} |" in text  # noqa: RUF001  # ranges are typeset so
    assert f"| {tables}–{root - 1:,} |" in text  # noqa: RUF001
    assert f"| {root:,} | root directory" in text
    assert f"| {root + 1:,}–{end - 1:,} | journal" in text  # noqa: RUF001
    assert f"| from {end:,} | free" in text
