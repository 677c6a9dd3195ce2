"""The result of a check: one line of the doctor's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked and the result. `fix` is empty if there is no problem; `fatal`: a gateway would not work."""

    what: str
    detail: str
    fix: str = ""
    fatal: bool = True

    @property
    def status(self) -> str:
        """ok, warn (a gateway works, with a drawback) or fail."""
        # By the fix: a problem without advice cannot be written, and a finding without a problem needs none.
        return "ok" if not self.fix else "fail" if self.fatal else "warn"

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}[self.status]
        return f"{mark}  {self.what}: {self.detail}" + (f"\n      {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """The object that `wakegate doctor --json` prints."""
        return {"what": self.what, "status": self.status, "detail": self.detail, "fix": self.fix}


def exit_status(findings: Iterable[Finding]) -> int:
    """The exit status of `wakegate doctor`: 1 if there is a fatal finding, else 0."""
    return int(any(finding.status == "fail" for finding in findings))
