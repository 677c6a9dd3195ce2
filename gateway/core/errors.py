"""The error tree. Every error that can reach a client knows its HTTP status, its code and whether to try again.

    WakegateError
    ├── BadRequestError 400 BAD_REQUEST          the request cannot be understood
    │   └── TooLargeError 413 TOO_LARGE          it is larger than we take
    ├── UnauthorizedError 401 UNAUTHORIZED        no valid credential came with the request
    ├── PermissionDeniedError 403 FORBIDDEN       the credential is valid, and may not do this
    ├── NotFoundError 404 NOT_FOUND
    │   ├── SessionNotFoundError                 no such session, or not under this runtime
    │   └── RuntimeNotFoundError
    ├── RequestTimeoutError 408 REQUEST_TIMEOUT  the client was silent while it owed us its request
    ├── ConflictError 409 CONFLICT               the session is not in a state that allows this
    ├── QueueFullError 429 OVERLOADED            a bounded queue is full (Retry-After)
    ├── UpstreamConnectError 502 SANDBOX_UNREACHABLE   nothing was sent; safe to try again
    ├── UpstreamBrokenError 502 SANDBOX_LOST     the sandbox went away while it was answering
    ├── UnavailableError 503 UNAVAILABLE         a part we need is away (Retry-After)
    │   ├── StoreUnavailableError
    │   ├── SandboxStartError                    a sandbox could not be started
    │   ├── OwnerAwayError                       the gateway that alone has this session does not run
    │   ├── TokenRefusedError                    picod does not believe this gateway's token
    │   └── DrainingError                        this gateway is shutting down
    ├── ActivationTimeoutError 504 ACTIVATION_TIMEOUT  no sandbox was ready within the hold rule
    ├── UpstreamTimeoutError 504 SANDBOX_TIMEOUT       the sandbox was silent for too long
    ├── SnapshotError 500 SNAPSHOT_FAILED        a workspace could not be kept or given back
    │   ├── SnapshotNotFoundError                it is not in the store
    │   ├── SnapshotCorruptError                 what is in the store is not what was put there
    │   ├── SnapshotKeyError                     it is encrypted with a key we were not given
    │   ├── SnapshotTooLargeError 413            it is over the limit; the session stays awake
    │   ├── SnapshotUnsupportedError 501         what runs in the sandbox cannot make or take snapshots
    │   ├── SnapshotStoreFullError 507           the store has no room
    │   └── SnapshotStoreUnavailableError 503    the store does not answer (Retry-After)
    ├── StaleWriteError                          the record changed since it was read (internal)
    ├── FencedOutError                           a newer lease holder exists (internal)
    └── SettingsError                            every wrong setting at once (start only)

The two surfaces shape them: the data path as `{"error": text, "code": CODE}`, AgentCube's control plane as
`{"message": text}`.
"""

from __future__ import annotations

import math
import re

from gateway.core.units import readable_size

# An absolute path of at least two parts. What clients name themselves, a sandbox's paths and the API's, is none.
_HOST_PATH = re.compile(r"(?<![\w/.:])(?:file://)?/(?!workspace\b|v1/|api/|mcp\b)[^\s'\",;:()/]+/[^\s'\",;:()]*")


class WakegateError(Exception):
    """Base of all errors of ours.

    `status` is an HTTP status, `code` a stable word for programs, `retry_after` seconds or None.
    """

    status = 500
    code = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def retry_after_seconds(self) -> int | None:
        """The value of Retry-After: whole seconds, at least one, and never earlier than `retry_after`."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))


def public_message(error: WakegateError) -> str:
    """The error's text for clients: where the cause is ours, no path of the gateway's host. Logs have all of it."""
    return _HOST_PATH.sub("<path>", str(error)) if error.status >= 500 else str(error)


class BadRequestError(WakegateError):
    """The request cannot be understood; the message says what and where."""

    status = 400
    code = "BAD_REQUEST"


class TooLargeError(BadRequestError):
    """The request is larger than we take; the message says how large it may be."""

    status = 413
    code = "TOO_LARGE"


class UnauthorizedError(WakegateError):
    """No valid credential came with the request: none, an unknown, expired or revoked one."""

    status = 401
    code = "UNAUTHORIZED"


class PermissionDeniedError(WakegateError):
    """The credential is valid, but may not do this."""

    status = 403
    code = "FORBIDDEN"


class NotFoundError(WakegateError):
    """Nothing is under that name."""

    status = 404
    code = "NOT_FOUND"


class SessionNotFoundError(NotFoundError):
    """No such session, or it belongs to another runtime or tenant."""

    code = "SESSION_NOT_FOUND"


class RuntimeNotFoundError(NotFoundError):
    """No such runtime."""

    code = "RUNTIME_NOT_FOUND"


class RequestTimeoutError(WakegateError):
    """The client was silent for too long while it owed us its request."""

    status = 408
    code = "REQUEST_TIMEOUT"


class ConflictError(WakegateError):
    """The session's present state does not allow this."""

    status = 409
    code = "CONFLICT"


class QueueFullError(WakegateError):
    """A bounded queue is full; the caller should come back."""

    status = 429
    code = "OVERLOADED"
    retry_after = 1.0


class UpstreamConnectError(WakegateError):
    """The sandbox could not be dialled; nothing of the request was sent.

    `gone`: nobody listens there any more, so the session may have another sandbox. A timeout is not that.
    """

    status = 502
    code = "SANDBOX_UNREACHABLE"

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class UpstreamBrokenError(WakegateError):
    """The sandbox closed or broke the connection after some of the request was sent. Never retried."""

    status = 502
    code = "SANDBOX_LOST"


class UnavailableError(WakegateError):
    """A part that this request needs is away."""

    status = 503
    code = "UNAVAILABLE"
    retry_after = 1.0


class StoreUnavailableError(UnavailableError):
    """The session store does not answer."""

    code = "STORE_UNAVAILABLE"


class SandboxStartError(UnavailableError):
    """A sandbox could not be started; the message carries the reason."""

    code = "SANDBOX_START_FAILED"


class OwnerAwayError(UnavailableError):
    """What the session is lies with another gateway, which does not run."""

    code = "OWNER_AWAY"
    retry_after = 2.0


class TokenRefusedError(UnavailableError):
    """picod refused this gateway's token before it looked at the request: its clock or its keys differ from ours."""

    code = "SANDBOX_REFUSED_TOKEN"


class DrainingError(UnavailableError):
    """This gateway is shutting down and takes no new work."""

    code = "DRAINING"


class ActivationTimeoutError(WakegateError):
    """No sandbox was ready within the hold rule."""

    status = 504
    code = "ACTIVATION_TIMEOUT"


class UpstreamTimeoutError(WakegateError):
    """The sandbox, or the client, was silent for longer than the idle timeout of that direction."""

    status = 504
    code = "SANDBOX_TIMEOUT"


class SnapshotError(WakegateError):
    """A workspace could not be kept, or not be given back.

    `reason` is what a session's record says of it while it stays awake.
    """

    code = "SNAPSHOT_FAILED"

    @property
    def reason(self) -> str:
        """A clause for people: why the session does not sleep."""
        return f"cannot sleep: {self}"


class SnapshotNotFoundError(SnapshotError):
    """The store has no such snapshot."""

    code = "SNAPSHOT_NOT_FOUND"


class SnapshotCorruptError(SnapshotError):
    """What the store holds is not what was put there: cut short, longer, or changed."""

    code = "SNAPSHOT_CORRUPT"


class SnapshotKeyError(SnapshotError):
    """The snapshot is encrypted with a key that this gateway was not given."""

    code = "SNAPSHOT_KEY_MISSING"


class SnapshotTooLargeError(SnapshotError):
    """The snapshot is over the size limit; nothing was kept.

    `limit` is what is allowed and `size` how much of it there was when it was refused, both in bytes as stored, that
    is compressed. How large it would have become is not known: nobody waits for the rest.
    """

    status = 413
    code = "SNAPSHOT_TOO_LARGE"

    def __init__(self, limit: int, size: int) -> None:
        super().__init__(
            f"the snapshot is over the limit of {limit} bytes ({readable_size(limit)}, compressed); delete files in the"
            " workspace, or have the operator raise snapshot_max_size"
        )
        self.limit = limit
        self.size = size

    @property
    def reason(self) -> str:
        """Why it stays awake, and what its user can do."""
        return (
            f"cannot sleep and stays awake until its maximum duration: its files make a snapshot of more than"
            f" {readable_size(self.limit)}, which is the limit; delete some of them"
        )


class SnapshotUnsupportedError(SnapshotError):
    """What answers in the sandbox knows no snapshots: an executor other than our picod, or an older one."""

    status = 501
    code = "SNAPSHOT_UNSUPPORTED"


class SnapshotStoreFullError(SnapshotError):
    """The store has no room; nothing was kept."""

    status = 507
    code = "SNAPSHOT_STORE_FULL"


class SnapshotStoreUnavailableError(SnapshotError):
    """The store does not answer."""

    status = 503
    code = "SNAPSHOT_STORE_UNAVAILABLE"
    retry_after = 1.0


class StaleWriteError(WakegateError):
    """The record changed since it was read. Whoever sees this reads again and decides anew."""

    status = 409
    code = "STALE_WRITE"


class FencedOutError(WakegateError):
    """The lease was lost to a newer holder; the write was refused where it would have landed."""

    status = 409
    code = "FENCED_OUT"


class SettingsError(WakegateError):
    """Settings or runtime files are wrong. `problems` holds one sentence each: where, what, what would be right."""

    code = "SETTINGS"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
