"""How many examples property tests try, by HYPOTHESIS_PROFILE: a fifth in `scripts/test fast`, four times as many in
`scripts/fuzz`."""

from __future__ import annotations

import os

_FACTORS = {"quick": 0.2, "explore": 4.0}


def examples(usual: int) -> int:
    """For `settings(max_examples=...)` of a test whose examples are dearer or cheaper than most; a number that is
    written there would hold in every profile."""
    return max(5, int(usual * _FACTORS.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 1.0)))
