"""There is too much of it: a queue is full, or the tenant has reached a limit."""

from __future__ import annotations

import math
from typing import Any

from gateway.core.errors.base import WakegateError


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
