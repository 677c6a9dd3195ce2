"""Which calls of one message run at the same time: pure.

A model that asks for several calls at once means them in order where order matters: a file written by the first is
there for the second. So an ordered call is a fence: it waits for all before it, and all after it wait for it. Between
two fences calls run side by side. [read, shell, python, read, read] becomes [[0, 1], [2], [3, 4]].
"""

from __future__ import annotations

from collections.abc import Sequence


def steps(ordered: Sequence[bool]) -> list[list[int]]:
    """Indexes of the calls, grouped: groups run one after another, the calls of a group side by side."""
    groups: list[list[int]] = []
    open_group: list[int] | None = None
    for index, is_ordered in enumerate(ordered):
        if is_ordered:
            groups.append([index])
            open_group = None
        elif open_group is None:
            open_group = [index]
            groups.append(open_group)
        else:
            open_group.append(index)
    return groups
