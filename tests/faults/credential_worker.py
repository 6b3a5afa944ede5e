"""A process to be killed, or to run beside others: logs in to registries.

Arguments: the file, the name of an account, and how many registries.
"""

from __future__ import annotations

import sys
from pathlib import Path

from registry_client.credentials import Credential, store_credential
from registry_client.errors import RegistryError


def main() -> None:
    path, account, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        for number in range(count):
            store_credential(f"{account}-{number}.example", Credential(account, "s3cret"), authfile=path)
    except RegistryError as error:
        print(f"{type(error).__name__}: {error}")
        return
    print("done")


main()
