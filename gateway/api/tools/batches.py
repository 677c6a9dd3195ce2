"""Groups the calls of one message into batches that run concurrently. Pure.

A model that sends several calls expects their effects in order: a file that the first writes is there for the second.
So an ordered call is a barrier: it waits for all calls before it, and those after it wait for it. Calls between two
barriers run concurrently. [read, shell, python, read, read] becomes [[0, 1], [2], [3, 4]]. One after another would be
simpler, but ten reads of 1 s each would take 10 s.
"""

from __future__ import annotations

from collections.abc import Sequence


def steps(ordered: Sequence[bool]) -> list[list[int]]:
    """Indexes of the calls in batches: batches run one after another, the calls of a batch concurrently."""
    groups: list[list[int]] = []
    open_group: list[int] | None = None
    for index, is_ordered in enumerate(ordered):
        # A barrier is a group of its own; the next call that is not ordered opens a new one behind it.
        if is_ordered:
            groups.append([index])
            open_group = None
        elif open_group is None:
            open_group = [index]
            groups.append(open_group)
        else:
            open_group.append(index)
    return groups
