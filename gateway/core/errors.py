"""The error tree. Every error that can reach a client knows its HTTP status, its code and whether to try again.

One module, although it is long: the whole tree is in view where a new error looks for its place, and a status or a
code that is used twice shows.

    WakegateError
    ├── BadRequestError 400 BAD_REQUEST          the request cannot be understood
    │   └── TooLargeError 413 TOO_LARGE          it exceeds a size limit
    ├── UnauthorizedError 401 UNAUTHORIZED       the request carries no valid credential
    ├── PermissionDeniedError 403 FORBIDDEN      the credential is valid but does not allow this
    ├── NotFoundError 404 NOT_FOUND
    │   ├── SessionNotFoundError                 no such session, or not under this runtime
    │   └── RuntimeNotFoundError
    ├── RequestTimeoutError 408 REQUEST_TIMEOUT  the client did not finish sending its request in time
    ├── IdempotencyKeyReusedError 422            the key came with another request before
    ├── ConflictError 409 CONFLICT               the session is not in a state that allows this
    ├── ResizeError 409 RESIZE_REFUSED           its sandbox cannot have that size now
    │   └── ResizeUnsupportedError 501           no sandbox of this engine can be resized while it runs
    ├── QueueFullError 429 OVERLOADED            a bounded queue is full (Retry-After)
    ├── QuotaExceededError 429 QUOTA_EXCEEDED    the tenant uses what it may (Retry-After, RateLimit-*)
    ├── RateLimitError 429 RATE_LIMITED          the tenant asks too often (Retry-After, RateLimit-*)
    ├── QuotaForbiddenError 403 QUOTA_FORBIDDEN  the tenant's limits do not allow this at any time
    ├── UpstreamConnectError 502 SANDBOX_UNREACHABLE   nothing was sent; safe to try again
    ├── UpstreamBrokenError 502 SANDBOX_LOST     the connection to the sandbox broke mid-request; not retried
    ├── UnavailableError 503 UNAVAILABLE         a dependency is unavailable (Retry-After)
    │   ├── StoreUnavailableError
    │   ├── SandboxStartError                    a sandbox could not be started
    │   ├── NoCapacityError                      what its runtime requests of the machine is not free
    │   ├── OwnerAwayError                       the gateway that owns this session is not running
    │   ├── TokenRefusedError                    picod rejects this gateway's token
    │   └── DrainingError                        this gateway is shutting down
    ├── NeverFitsError 503 NO_CAPACITY           this machine does not have what its runtime requests
    ├── ActivationTimeoutError 504 ACTIVATION_TIMEOUT  no sandbox was ready within the hold rule
    ├── UpstreamTimeoutError 504 SANDBOX_TIMEOUT       the exchange with the sandbox hit an idle timeout
    ├── SnapshotError 500 SNAPSHOT_FAILED        a workspace could not be kept or restored
    │   ├── SnapshotNotFoundError                it is not in the store
    │   ├── SnapshotCorruptError                 the stored bytes differ from those that were written
    │   ├── SnapshotKeyError                     it is encrypted with a key that this gateway does not have
    │   ├── SnapshotTooLargeError 413            it exceeds the limit; the session keeps its sandbox
    │   ├── SnapshotUnsupportedError 501         the executor in the sandbox does not support snapshots
    │   ├── SnapshotStoreFullError 507           the store is full
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
from typing import Any

from gateway.core.units import readable_size

# An absolute path of at least two parts, other than those that clients use themselves: the workspace and API routes.
# Slashes after a word, a colon or a dot do not count, so `http://host/v1/x` and `a/b/c` stay readable.
_HOST_PATH = re.compile(r"(?<![\w/.:])(?:file://)?/(?!workspace\b|v1/|api/|mcp\b)[^\s'\",;:()/]+/[^\s'\",;:()]*")


class WakegateError(Exception):
    """Base of all errors that the gateway raises itself.

    `status` is an HTTP status, `code` a stable identifier for programs, `retry_after` seconds or None.
    """

    status = 500
    code = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def details(self) -> dict[str, Any]:
        """What a native answer's body says for programs, beside the text and the code."""
        return {}

    @property
    def fields(self) -> dict[str, str]:
        """Header fields of its answer, besides Retry-After."""
        return {}

    @property
    def retry_after_seconds(self) -> int | None:
        """The value of Retry-After: whole seconds, at least one, and never earlier than `retry_after`."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))


def public_message(error: WakegateError) -> str:
    """The error's text for clients. A 5xx may name files of the gateway's host; those go to the logs only."""
    return without_host_paths(str(error)) if error.status >= 500 else str(error)


def without_host_paths(text: str) -> str:
    """A text for clients that may quote an error of this host, without the paths in it."""
    return _HOST_PATH.sub("<path>", text)


class BadRequestError(WakegateError):
    """The request cannot be understood; the message says what and where."""

    status = 400
    code = "BAD_REQUEST"


class TooLargeError(BadRequestError):
    """The request exceeds a size limit; the message names the limit."""

    status = 413
    code = "TOO_LARGE"


class UnauthorizedError(WakegateError):
    """The request carries no valid credential: none, or an unknown, expired or revoked one."""

    status = 401
    code = "UNAUTHORIZED"


class PermissionDeniedError(WakegateError):
    """The credential is valid but does not allow this operation."""

    status = 403
    code = "FORBIDDEN"


class NotFoundError(WakegateError):
    """The URL or identifier does not exist."""

    status = 404
    code = "NOT_FOUND"


class SessionNotFoundError(NotFoundError):
    """No such session, or it belongs to another runtime or tenant."""

    code = "SESSION_NOT_FOUND"


class RuntimeNotFoundError(NotFoundError):
    """No runtime of that kind, namespace and name is served."""

    code = "RUNTIME_NOT_FOUND"


class RequestTimeoutError(WakegateError):
    """The client took too long to send its request, or stopped sending the body for longer than the idle timeout."""

    status = 408
    code = "REQUEST_TIMEOUT"


class IdempotencyKeyReusedError(WakegateError):
    """The Idempotency-Key came with another request before, so what it asks for is not known."""

    status = 422
    code = "IDEMPOTENCY_KEY_REUSED"


class ConflictError(WakegateError):
    """The session's current state does not allow this."""

    status = 409
    code = "CONFLICT"


class ResizeError(WakegateError):
    """A sandbox keeps the size that it has: what it asks for is not there now, or it uses more than it would have."""

    status = 409
    code = "RESIZE_REFUSED"


class ResizeUnsupportedError(ResizeError):
    """The engine cannot change the size of a sandbox that runs; the message says what it lacks and the way out."""

    status = 501
    code = "RESIZE_UNSUPPORTED"


class QueueFullError(WakegateError):
    """A bounded queue is full; the caller should retry after `retry_after` seconds."""

    status = 429
    code = "OVERLOADED"
    retry_after = 1.0


class LimitError(WakegateError):
    """A limit of the tenant's. `limit`, `value` and `used` are its name, what it allows and what is in use of that.

    Its answers carry the fields of draft-ietf-httpapi-ratelimit-headers where waiting helps.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        value: float | str,
        used: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit
        self.value = value
        self.used = used

    @property
    def details(self) -> dict[str, Any]:
        """For the body of a native answer, beside the text."""
        return {"limit": self.limit, "value": self.value, **({} if self.used is None else {"used": self.used})}

    @property
    def fields(self) -> dict[str, str]:
        """As in WakegateError. Nothing remains, or there would be no error."""
        if self.retry_after is None or isinstance(self.value, str):
            return {}
        return rate_limit_fields(self.value, 0, self.retry_after)


def rate_limit_fields(limit: float, remaining: float, reset: float) -> dict[str, str]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-03. `reset`: seconds until more is there, at least one."""
    return {
        "ratelimit-limit": f"{limit:g}",
        "ratelimit-remaining": f"{max(0.0, remaining):g}",
        "ratelimit-reset": str(max(1, math.ceil(reset))),
    }


class QuotaExceededError(LimitError):
    """The tenant's sessions hold what its limits allow; some may end or hibernate."""

    status = 429
    code = "QUOTA_EXCEEDED"
    retry_after = 5.0


class RateLimitError(LimitError):
    """The tenant's requests, or creations of sessions, come faster than its limits allow."""

    status = 429
    code = "RATE_LIMITED"
    retry_after = 1.0


class QuotaForbiddenError(LimitError):
    """The tenant's limits do not allow this, however long it waits."""

    status = 403
    code = "QUOTA_FORBIDDEN"


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


class UnavailableError(WakegateError):
    """A dependency of this request is unavailable; retrying may succeed."""

    status = 503
    code = "UNAVAILABLE"
    retry_after = 1.0


class StoreUnavailableError(UnavailableError):
    """The session store does not answer."""

    code = "STORE_UNAVAILABLE"


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


class OwnerAwayError(UnavailableError):
    """Only another gateway can reach the session's sandbox or parked workspace, and that gateway is not running."""

    code = "OWNER_AWAY"
    retry_after = 2.0


class TokenRefusedError(UnavailableError):
    """picod rejected this gateway's token before it read the request: their clocks or key sets differ."""

    code = "SANDBOX_REFUSED_TOKEN"


class DrainingError(UnavailableError):
    """This gateway is shutting down and accepts no new work."""

    code = "DRAINING"


class ActivationTimeoutError(WakegateError):
    """No sandbox was ready within the hold rule."""

    status = 504
    code = "ACTIVATION_TIMEOUT"


class UpstreamTimeoutError(WakegateError):
    """The sandbox sent or accepted no byte for longer than the idle timeout."""

    status = 504
    code = "SANDBOX_TIMEOUT"


class SnapshotError(WakegateError):
    """A workspace could not be kept or restored.

    `reason` goes into the record of a session that keeps its sandbox because of this error.
    """

    code = "SNAPSHOT_FAILED"

    @property
    def reason(self) -> str:
        """Why the session was not hibernated, as its API representation shows it."""
        return f"cannot hibernate: {self}"


class SnapshotNotFoundError(SnapshotError):
    """The store has no such snapshot."""

    code = "SNAPSHOT_NOT_FOUND"


class SnapshotCorruptError(SnapshotError):
    """The stored bytes differ from those that were written: truncated, longer, or modified."""

    code = "SNAPSHOT_CORRUPT"


class SnapshotKeyError(SnapshotError):
    """The snapshot is encrypted with a key that this gateway does not have."""

    code = "SNAPSHOT_KEY_MISSING"


class SnapshotTooLargeError(SnapshotError):
    """The snapshot exceeds the size limit; nothing was kept.

    `limit` and `size` are bytes as stored, that is, compressed. `size` counts what had arrived when the limit was
    passed; the full size is unknown, because the rest is not read.
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
        """As for any SnapshotError, with the fix that a user can apply."""
        return (
            f"cannot hibernate and keeps its sandbox until its maximum duration: a snapshot of its files exceeds the"
            f" limit of {readable_size(self.limit)}; delete some of them"
        )


class SnapshotUnsupportedError(SnapshotError):
    """The executor in the sandbox does not support snapshots: it is not Wakegate's picod, or an older one."""

    status = 501
    code = "SNAPSHOT_UNSUPPORTED"


class SnapshotStoreFullError(SnapshotError):
    """The snapshot store is full; nothing was kept."""

    status = 507
    code = "SNAPSHOT_STORE_FULL"


class SnapshotStoreUnavailableError(SnapshotError):
    """The snapshot store does not answer."""

    status = 503
    code = "SNAPSHOT_STORE_UNAVAILABLE"
    retry_after = 1.0


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
