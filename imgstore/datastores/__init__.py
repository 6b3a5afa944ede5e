"""Where disks live: PyFilesystem2 file systems, plus atomic publishing, stable storage and byte ranges."""

from imgstore.datastores.datastore import Datastore, LiveFile, StagedFile, Staging, StoredFile
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore

__all__ = ["Datastore", "LiveFile", "LocalDatastore", "MemoryDatastore", "StagedFile", "Staging", "StoredFile"]
