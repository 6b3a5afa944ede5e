"""vSphere: who logs in where, what is named there, and a session with a vCenter or an ESXi host.

``login``, ``environment`` and ``locations`` are plain; ``session`` and what it stands on need pyVmomi, the extra ``[vsphere]``.
"""
