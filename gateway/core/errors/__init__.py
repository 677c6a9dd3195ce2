"""The error tree. Every error that can reach a client knows its HTTP status, its code and whether to try again.

Import them from here, whichever module has them. The whole tree is in view where a new error looks for its place, so
that a status or a code that is used twice shows.

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

from gateway.core.errors.base import UnavailableError, WakegateError, public_message, without_host_paths
from gateway.core.errors.gateways import (
    DrainingError,
    FencedOutError,
    OwnerAwayError,
    SettingsError,
    StaleWriteError,
    StoreUnavailableError,
)
from gateway.core.errors.limits import (
    LimitError,
    QueueFullError,
    QuotaExceededError,
    QuotaForbiddenError,
    RateLimitError,
    rate_limit_fields,
)
from gateway.core.errors.requests import (
    BadRequestError,
    ConflictError,
    IdempotencyKeyReusedError,
    NotFoundError,
    PermissionDeniedError,
    RequestTimeoutError,
    RuntimeNotFoundError,
    SessionNotFoundError,
    TooLargeError,
    UnauthorizedError,
)
from gateway.core.errors.sandboxes import (
    ActivationTimeoutError,
    NeverFitsError,
    NoCapacityError,
    ResizeError,
    ResizeUnsupportedError,
    SandboxGoneError,
    SandboxStartError,
    TokenRefusedError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
)
from gateway.core.errors.snapshots import (
    SnapshotCorruptError,
    SnapshotError,
    SnapshotKeyError,
    SnapshotNotFoundError,
    SnapshotStoreFullError,
    SnapshotStoreUnavailableError,
    SnapshotTooLargeError,
    SnapshotUnsupportedError,
)

__all__ = [
    "ActivationTimeoutError",
    "BadRequestError",
    "ConflictError",
    "DrainingError",
    "FencedOutError",
    "IdempotencyKeyReusedError",
    "LimitError",
    "NeverFitsError",
    "NoCapacityError",
    "NotFoundError",
    "OwnerAwayError",
    "PermissionDeniedError",
    "QueueFullError",
    "QuotaExceededError",
    "QuotaForbiddenError",
    "RateLimitError",
    "RequestTimeoutError",
    "ResizeError",
    "ResizeUnsupportedError",
    "RuntimeNotFoundError",
    "SandboxGoneError",
    "SandboxStartError",
    "SessionNotFoundError",
    "SettingsError",
    "SnapshotCorruptError",
    "SnapshotError",
    "SnapshotKeyError",
    "SnapshotNotFoundError",
    "SnapshotStoreFullError",
    "SnapshotStoreUnavailableError",
    "SnapshotTooLargeError",
    "SnapshotUnsupportedError",
    "StaleWriteError",
    "StoreUnavailableError",
    "TokenRefusedError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UpstreamBrokenError",
    "UpstreamConnectError",
    "UpstreamTimeoutError",
    "WakegateError",
    "public_message",
    "rate_limit_fields",
    "without_host_paths",
]
