"""Reads how a change is to be rolled out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.agents.model import Agent, Strategy
from gateway.core.errors import BadRequestError
from gateway.core.units import parse_duration

_FIELDS = ("canary", "window", "startTimeout", "maxErrorRate", "minRequests")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def read_strategy(value: Any) -> Strategy:
    """`{"canary": {"weight": 10, "header": "x-try", "value": "yes"}, "window": "5m", "startTimeout": "1m",
    "maxErrorRate": 0.1, "minRequests": 10}`; all optional. Raises BadRequestError.
    """
    if value is None:
        return Strategy()
    if not isinstance(value, Mapping) or value.keys() - set(_FIELDS):
        raise BadRequestError(f"strategy: expected an object with some of {', '.join(_FIELDS)}")
    canary = value.get("canary") or {}
    if not isinstance(canary, Mapping) or canary.keys() - {"weight", "header", "value"}:
        raise BadRequestError("strategy.canary: expected weight (percent of new sessions), or header and value")
    usual = Strategy()
    header, expected = canary.get("header") or "", canary.get("value") or ""
    if not all(isinstance(each, str) and len(each) <= 128 and each.isascii() for each in (header, expected)):
        raise BadRequestError("strategy.canary: header and value are text of at most 128 characters")
    if header and not _HEADER.fullmatch(header):
        raise BadRequestError(f"strategy.canary.header: expected the name of a header, got {header[:64]!r}")
    if expected and not header:
        raise BadRequestError("strategy.canary: expected the header that has the value")
    return Strategy(
        weight=_number(canary, "weight", "strategy.canary.", 0, 100, usual.weight),
        header=header.lower(),
        header_value=expected,
        window=_seconds(value, "window", usual.window),
        start_timeout=_seconds(value, "startTimeout", usual.start_timeout),
        max_error_rate=_number(value, "maxErrorRate", "strategy.", 0, 1, usual.max_error_rate),
        min_requests=int(_number(value, "minRequests", "strategy.", 1, 1_000_000, usual.min_requests)),
    )


def strategy_of(agent: Agent) -> Strategy:
    """How the change under way is rolled out; the usual way where there is none."""
    return agent.rollout.strategy if agent.rollout is not None else Strategy()


def _number(value: Mapping[str, Any], name: str, prefix: str, low: float, high: float, default: float) -> float:
    number = value.get(name, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
        raise BadRequestError(f"{prefix}{name}: expected a number from {low:g} to {high:g}, got {repr(number)[:64]}")
    return number


def _seconds(value: Mapping[str, Any], name: str, default: float) -> float:
    given = value.get(name, default)
    try:
        seconds = parse_duration(given) if isinstance(given, str) else float(given)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(given, bool) or not 0 < seconds <= 86400:
        raise BadRequestError(
            f"strategy.{name}: expected a duration of at most a day such as 60s, got {repr(given)[:64]}"
        )
    return seconds
