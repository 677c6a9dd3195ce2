"""The access log of egress: who reached for what, what was decided and why, and how many bytes went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What became of a connection. One that was made has two lines, of which OPEN is the first; the others have one."""

    OPEN = "open"  # it was allowed and made; a line with its end follows
    CLOSED = "closed"  # it ended in order, or because a side left
    REFUSED = "refused"  # by the policy, an address that is never reached, or a limit
    FAILED = "failed"  # allowed, and not reached
    CUT = "cut"  # it was allowed, and what followed was not: another server name, another Host, over a limit


@dataclass(slots=True)
class Access:
    """One line. `at` in epoch seconds, `seconds` until the end. `setting`: what would allow what was refused."""

    id: int
    at: float
    sandbox: str
    session: str
    tenant: str
    protocol: str  # connect, http, socks5
    host: str
    port: int
    outcome: Outcome
    address: str = ""
    rule: str = ""
    reason: str = ""
    setting: str = ""
    up: int = 0  # bytes from the sandbox
    down: int = 0
    seconds: float = 0.0
    requests: int = 0  # that were seen and passed on, where TLS ends here
    cached: int = 0  # of these, answered from the package cache
    secrets: str = ""  # names of the credentials that they got, by commas
    left_out: int = 0  # lines of this sandbox before this one that were too many

    def document(self) -> dict[str, Any]:
        """As it goes to the gateway."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Access:
        """The inverse. Raises TypeError, ValueError."""
        return cls(**{**document, "outcome": Outcome(document["outcome"])})
