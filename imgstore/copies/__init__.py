"""Files in and out of containers, as ``docker cp`` and ``docker export`` move them, on the disks: no mount, no guest.

``ContainerTrees`` opens what a container sees: its own disk, with its volumes where they are mounted. ``archive_of`` gives a part of it
as a tar has it, ``Extraction`` puts what a tar has into it. Every path is followed in the file systems themselves: none leads out.

Sources: moby ``daemon/archive*.go``, ``container/archive.go``, ``pkg/archive/{archive,copy}.go`` and ``daemon/export.go``.
"""
