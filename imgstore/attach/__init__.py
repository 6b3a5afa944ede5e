"""Attach: disks of the store in the hands of those that run virtual machines."""
