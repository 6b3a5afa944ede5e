"""The ext4 file system, in userland: Changes ⇄ blocks. No mount, no root, no kernel.

``format_file_system`` makes an empty one, ``LayerWriter`` applies Changes to one, ``grow_file_system`` makes one larger, ``FileSystem``
reads one, ``resolve_path`` finds files in it as the kernel would, ``check_file_system`` proves one, ``diff`` tells what one has that it
had not before.

The layout packs all metadata at the front of the disk and leaves the rest as one run of free blocks, so that what a layer adds is one
run of the disk and a handful of changed metadata blocks.

Sources: the kernel's ``Documentation/filesystems/ext4/`` and ``fs/ext4/``; e2fsprogs ``lib/ext2fs/`` and ``e2fsck/``.
"""
