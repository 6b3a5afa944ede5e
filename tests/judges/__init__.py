"""Outside judges of what imgstore wrote: the kernel, e2fsprogs, QEMU, libvmdk, dissect, and a model of the OCI layer rules."""
