"""Files in and out of containers, as ``docker cp`` and ``docker export`` move them, on the disks: no mount, no guest.

``ContainerTrees`` opens what a container sees: its own disk, with its volumes where they are mounted. ``archive_out`` makes tars of parts
of it, ``Extraction`` puts tars into it. Every path is followed in the file systems themselves, so that none leads out of them.

Sources: moby ``daemon/archive*.go``, ``container/archive.go``, ``pkg/archive/{archive,copy}.go`` and ``daemon/export.go``.
"""
