"""NBD: disks as exports of a Network Block Device server, for QEMU, libnbd's programs and the kernel.

It serves `GuestDevice`, and knows nothing of what is behind one. Source of all that is on the wire: "The NBD protocol", ``doc/proto.md``
of https://github.com/NetworkBlockDevice/nbd; where it leaves something open, what QEMU's server does.
"""
