"""Reads container images from registries, OCI layouts and docker-archives. Stands alone: it knows nothing of disks.

Start at ``registry_client.source.open_source``. This module imports nothing, so that ``registry_client.reference`` and its like are
cheap to import: only ``client`` and ``source`` need an HTTP library.
"""
