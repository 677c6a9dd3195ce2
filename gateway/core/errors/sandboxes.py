"""A sandbox does not start, cannot be reached, breaks off, or cannot have another size."""

from __future__ import annotations

from gateway.core.errors.base import UnavailableError, WakegateError


class ResizeError(WakegateError):
    """A sandbox keeps the size that it has: what it asks for is not there now, or it uses more than it would have."""

    status = 409
    code = "RESIZE_REFUSED"


class ResizeUnsupportedError(ResizeError):
    """The engine cannot change the size of a sandbox that runs; the message says what it lacks and the way out."""

    status = 501
    code = "RESIZE_UNSUPPORTED"


class UpstreamConnectError(WakegateError):
    """The sandbox could not be dialled; nothing of the request was sent.

    `no_listener`: the endpoint refused the connection or no longer exists, so the session may have another sandbox by
    now and the record is worth reading again. A timeout does not say that: a busy sandbox also times out.
    """

    status = 502
    code = "SANDBOX_UNREACHABLE"

    def __init__(self, message: str, *, no_listener: bool = False) -> None:
        super().__init__(message)
        self.no_listener = no_listener


class UpstreamBrokenError(WakegateError):
    """The sandbox closed or broke the connection after some of the request was sent. Never retried."""

    status = 502
    code = "SANDBOX_LOST"


class SandboxStartError(UnavailableError):
    """A sandbox could not be started; the message carries the reason."""

    code = "SANDBOX_START_FAILED"


class NoCapacityError(UnavailableError):
    """What a runtime requests of this machine is booked by other sandboxes; the message says what is short."""

    code = "NO_CAPACITY"
    retry_after = 5.0


class NeverFitsError(WakegateError):
    """This machine does not have what a runtime requests, whatever else runs: coming back does not help."""

    status = 503
    code = "NO_CAPACITY"


class SandboxGoneError(SandboxStartError):
    """A sandbox ended before its session's workspace was in it: another sandbox may do. No request has reached it."""


class TokenRefusedError(UnavailableError):
    """picod rejected this gateway's token before it read the request: their clocks or key sets differ."""

    code = "SANDBOX_REFUSED_TOKEN"


class ActivationTimeoutError(WakegateError):
    """No sandbox was ready within the hold rule."""

    status = 504
    code = "ACTIVATION_TIMEOUT"


class UpstreamTimeoutError(WakegateError):
    """The sandbox sent or accepted no byte for longer than the idle timeout."""

    status = 504
    code = "SANDBOX_TIMEOUT"
