"""A gateway's own state: its store, other gateways' leases, its end, its settings."""

from __future__ import annotations

from gateway.core.errors.base import UnavailableError, WakegateError


class StoreUnavailableError(UnavailableError):
    """The session store does not answer."""

    code = "STORE_UNAVAILABLE"


class OwnerAwayError(UnavailableError):
    """Only another gateway can reach the session's sandbox or parked workspace, and that gateway is not running."""

    code = "OWNER_AWAY"
    retry_after = 2.0


class DrainingError(UnavailableError):
    """This gateway is shutting down and accepts no new work."""

    code = "DRAINING"


class StaleWriteError(WakegateError):
    """The record changed since it was read. The caller reads it again and repeats its decision."""

    status = 409
    code = "STALE_WRITE"


class FencedOutError(WakegateError):
    """The lease has a newer holder; the store rejected the write in the transaction that would have applied it."""

    status = 409
    code = "FENCED_OUT"


class SettingsError(WakegateError):
    """Settings or runtime files are invalid. Each of `problems` says where, what is wrong and how to fix it."""

    code = "SETTINGS"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
