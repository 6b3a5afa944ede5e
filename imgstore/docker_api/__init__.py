"""The Docker Engine API for images: what ``imgstore serve`` answers. Described for users in ``docs/reference/docker-api.md``."""
