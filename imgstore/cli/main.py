"""The ``imgstore`` command: its global options, its subcommands, and what becomes of an error or a signal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from imgstore.cli.groups import Commands, LazyGroup
from imgstore.cli.session import Session
from imgstore.cli.signals import signals_raised

PROGRAM = "imgstore"
COMPLETION_VARIABLE = "_IMGSTORE_COMPLETE"

COMMANDS: Commands = {
    "pull": ("pull", "pull", "Pull an image into a chain of VMDK snapshot disks."),
    "push": ("push", "push", "Push an image to a registry."),
    "images": ("images", "images", "List the images of the store."),
    "inspect": ("images", "inspect", "Show all that is known of images, as JSON."),
    "history": ("images", "history", "Show the steps that built an image."),
    "tag": ("images", "tag", "Give an image one more name."),
    "rm": ("images", "remove", "Remove images by name or id."),
    "prune": ("images", "prune", "Remove images that have no tag."),
    "disk": ("disks", "disk", "Print the path of an image's top disk."),
    "flatten": ("disks", "flatten", "Merge the lowest disks of an image into one."),
    "ls": ("files", "list_files", "List a directory of an image, or show one file."),
    "cat": ("files", "cat", "Print the contents of a file of an image."),
    "export": ("files", "export", "Write the file tree of an image as a tar archive."),
    "export-disk": ("conversion", "export_disk", "Write a disk of the store as a VMDK of any form."),
    "convert": ("conversion", "convert", "Write a VMDK in another form."),
    "save": ("archives", "save", "Save images to a tar archive."),
    "load": ("archives", "load", "Load images from a tar archive."),
    "import": ("archives", "import_tree", "Make an image of one layer from a tar archive of a file tree."),
    "seed": ("seeds", "seed", "Pull a list of images, and copy them to datastores."),
    "copy": ("seeds", "copy", "Copy images of the store to a datastore."),
    "ls-remote": ("seeds", "list_remote", "List the images of a datastore, and change nothing there."),
    "container": ("containers", "container", "Make, list and remove containers."),
    "volume": ("volumes", "volume", "Make, list, copy and remove volumes."),
    "volume-store": ("volume_stores", "volume_store", "Add, list and forget the places where volumes lie."),
    "attach": ("attach", "attach", "Hand disks to a virtual machine."),
    "detach": ("attach", "detach", "Take disks out of a virtual machine."),
    "attachments": ("vm_attach", "attachments", "List the disks of the store that a machine of vSphere has."),
    "check": ("store", "check", "Check catalog, disks, chains and file systems."),
    "df": ("store", "usage", "Show what takes space, and how much is free."),
    "quota": ("store", "quota", "Show or set how much the store may take."),
    "login": ("registry", "login", "Log in to a registry."),
    "logout": ("registry", "logout", "Remove the login to a registry."),
    "tags": ("registry", "tags", "List the tags of a repository."),
    "manifest": ("registry", "manifest", "Show the manifest or index of an image, as JSON."),
    "serve": ("serve", "serve", "Answer Docker's clients: the Docker Engine API for images."),
    "nbd": ("nbd", "nbd", "Serve disks as network block devices."),
    "init": ("store", "init", "Make a store."),
    "rebuild": ("store", "rebuild", "Make the catalog again from the datastore."),
}


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown: the package is not installed"
    print(f"{PROGRAM} {version}")
    ctx.exit()


@click.group(
    PROGRAM, cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--store",
    "location",
    metavar="DIR|URL",
    help="The store, made on first use; else IMGSTORE_STORE, else ~/.local/share/imgstore (root: /var/lib/imgstore).",
)
@click.option("--debug", is_flag=True, help="Log what happens, and show the traceback of an error.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version.")
@click.pass_obj
def imgstore(session: Session, location: str | None, debug: bool) -> None:
    """Container images as chains of VMDK snapshot disks.

    Data goes to standard output, narration and progress to standard error.
    """
    session.chosen_location = location
    if debug:
        session.start_debugging()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    Never raises on account of the command: an error, a signal or a closed pipe becomes its message and its code.

    Args:
        arguments: the words after the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(imgstore, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale that lacks a letter must not cost the answer
    session = Session(os.environ)
    try:
        with signals_raised():
            code = _invoke(words, session)
            sys.stdout.flush()
            return code
    except BaseException as error:
        from imgstore.cli import failures  # a run that goes well does without

        return failures.report(error, session)


def _open_missing_streams() -> None:
    # A parent may have closed them. Else a disk could get descriptor 1, and what somebody prints would land in it.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115, PTH123 - open until the process ends


def _invoke(words: list[str], session: Session) -> int:
    # Not Group.main: that turns a broken pipe into exit 1 and Ctrl-C into an exception of its own.
    try:
        with imgstore.make_context(PROGRAM, words, obj=session) as context:
            imgstore.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return 0
