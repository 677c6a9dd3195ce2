"""Copies Matplotlib's font list to where user code's matplotlib looks for it, so that the first plot does not build it.

Building it takes a second, starts fc-list, and writes into the home folder, which is the session's workspace. So the
environment of user code may include a list (scripts/install builds it); MPLCONFIGDIR names the sandbox's own copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PLACE = "share/wakegate/matplotlib"  # below an environment's folder
VARIABLE = "MPLCONFIGDIR"


def put_fonts(python: bytes | None, env: Mapping[str, str]) -> None:
    """Copy the list of `python`'s environment to `env[VARIABLE]`. Does nothing if either is missing."""
    target = env.get(VARIABLE)
    if python is None or not target:
        return
    source = os.path.join(os.path.dirname(os.path.dirname(os.fsdecode(python))), PLACE)
    try:
        names = os.listdir(source)
        os.makedirs(target, exist_ok=True)
        for name in names:
            # "x": what the session's own matplotlib has written stays.
            with open(os.path.join(source, name), "rb") as list_, open(os.path.join(target, name), "xb") as copy:
                copy.write(list_.read())
    except OSError:
        pass  # matplotlib builds one itself
