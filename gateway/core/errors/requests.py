"""The request is wrong: what it asks for cannot be understood, is not there, or is not allowed."""

from __future__ import annotations

from gateway.core.errors.base import WakegateError


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
