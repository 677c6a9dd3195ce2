"""The values of secrets, read where the operator keeps them. They go to the egress service and nowhere else."""

from __future__ import annotations

import os

from gateway.core.model import Secret
from gateway.core.read_file import read_file
from gateway.egress.credentials import MAX_VALUE, check_value


def read_value(secret: Secret) -> str:
    """The value as it is now: a file is read anew each time, so that it may be replaced while the gateway runs.

    Blocks. Raises ValueError with what is wrong, and nothing of the value.
    """
    if secret.env:
        found = os.environ.get(secret.env)
        if found is None:
            raise ValueError(f"{secret.env} is not set in the gateway's environment")
        return check_value(found)
    try:
        # Two more than the longest value, for its line's end.
        return check_value(read_file(secret.file, MAX_VALUE + 2, exact=True).decode("ascii"))
    except OSError as error:
        raise ValueError(f"{secret.file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{secret.file}: expected one line of printable ASCII") from None
