"""What a check found: one line of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what came of it. `fix` is empty when all is well; `fatal`: a gateway would not work."""

    what: str
    detail: str
    fix: str = ""
    fatal: bool = True

    @property
    def status(self) -> str:
        """The word in front of the line: ok, warn (works, with a drawback) or fail."""
        return "ok" if not self.fix else "fail" if self.fatal else "warn"

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}[self.status]
        return f"{mark}  {self.what}: {self.detail}" + (f"\n      {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """For programs: `wakegate doctor --json`."""
        return {"what": self.what, "status": self.status, "detail": self.detail, "fix": self.fix}


def exit_status(findings: Iterable[Finding]) -> int:
    """The exit status of `wakegate doctor`: 1 where something keeps a gateway from working, else 0."""
    return int(any(finding.status == "fail" for finding in findings))
