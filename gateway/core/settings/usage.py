"""What tenants use and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Usage:
    """How often usage is written, and how long it is kept."""

    usage_interval: float = setting(
        10.0,
        "interval between writes of what tenants have used; a gateway that is killed loses at most this much",
        kind="duration",
        low=0.1,
    )
    usage_session_retention: float = setting(
        3_024_000.0, "how long /v1/usage has what single sessions used", kind="duration", low=3600
    )
    usage_retention: float = setting(
        34_560_000.0, "how long /v1/usage has totals of tenants and runtimes", kind="duration", low=3600
    )
    prices: Path = setting(
        Path(), "TOML file of prices, with which /v1/usage shows costs; docs/usage.md has an example",
        kind="path", metavar="FILE",
    )  # fmt: skip
