"""The store: `ImageStore`, one method for each thing a user can ask, in parts by what they are about."""

from imgstore.store.image_store import ImageStore

__all__ = ["ImageStore"]
