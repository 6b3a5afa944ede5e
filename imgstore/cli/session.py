"""What one run of the command line knows: its store, its output format, and what an interruption would leave."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgstore import config
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.store import ImageStore
    from imgstore.vsphere.login import VsphereLogin
    from registry_client.options import Options


class Session:
    """State of one command line, made before the words are parsed, so that an error while parsing finds it.

    Attributes:
        chosen_location: what ``--store`` says, or None.
        debug: whether ``--debug`` was given.
        json: whether the command was asked for ``--format json``.
        registry_words: what the options about registries say, by name.
        kept: what an interruption leaves, in words; the command says so before it changes anything.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.chosen_location: str | None = None
        self.debug = False
        self.json = False
        self.registry_words: dict[str, Any] = {}
        self.kept = "nothing was changed"

    @property
    def location(self) -> str:
        """An absolute path, or a URL. Raises InvalidError if nothing says where the store is."""
        if self.chosen_location == "":
            raise InvalidError("--store: the name of the store is empty")
        chosen = self.chosen_location or config.store_location(self.environment, is_root=os.geteuid() == 0)
        return self.absolute(chosen)

    def absolute(self, location: str) -> str:
        """A location that a command line names: an absolute path, or a URL as it stands."""
        return config.absolute_location(location, directory=os.getcwd())  # noqa: PTH109 - pathlib is a tenth of our start

    def open_store(self, *, create: bool = True, registries: Options | None = None) -> ImageStore:
        """Opens the store, and makes it if it is missing and ``create``; close it with ``with``."""
        location = self.location
        gc.disable()  # importing makes no garbage; to look for it all the same takes an eighth of our start
        try:
            from imgstore.store import ImageStore
        finally:
            gc.freeze()  # modules live to the end: collections need not look at them again
            gc.enable()

        return ImageStore.open(location, create=create, registries=registries, vsphere=self.vsphere_login(location))

    def vsphere_login(self, location: str) -> VsphereLogin | None:
        """What govc's variables say of the login to a place on vSphere; None for a place elsewhere.

        Raises:
            InvalidError: the place or a variable makes no sense, or neither names a server.
        """
        if not config.is_vsphere_location(location):
            return None
        import warnings

        from imgstore.vsphere.environment import login_for, read_login
        from imgstore.vsphere.locations import parse_datastore

        # The user said that any certificate will do; urllib3 would say on each run that this is no good idea.
        warnings.filterwarnings("ignore", message="Unverified HTTPS request")
        return login_for(parse_datastore(location, read_login(self.environment)), self.environment)

    def start_debugging(self) -> None:
        """Sends the log of our own packages to standard error. Other packages stay silent: urllib3 would log URLs with secrets."""
        import logging

        self.debug = True
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(name)s: %(message)s"))
        for name in ("imgstore", "registry_client"):
            logger = logging.getLogger(name)
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
