"""Instrumentation of any Protocol of interfaces.py: the duration of each call, and which calls fail.

One dynamic wrapper serves a store, a keeper and an API client alike: they differ only in their methods, and the fast
path calls none of them, so the cost of the indirection does not matter.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter
from typing import Any, TypeVar, cast

from gateway.observability.counters import Calls

PartT = TypeVar("PartT")
_UNTIMED = frozenset(("start", "aclose"))  # called once per process, so a histogram of them means nothing


def metered(
    part: PartT,
    calls: Calls,
    on_result: Callable[[str, Any], None] | None = None,
    labels: Mapping[str, str] | None = None,
) -> PartT:
    """Wrap `part` so that calls of its coroutines and async iterators are counted in `calls` under the method's name.

    `on_result(method, result)` is called after a coroutine succeeded. `labels` maps a method to another label: when a
    method is renamed, dashboards keep the old one.
    """
    return cast("PartT", _Metered(part, calls, on_result, labels or {}))


class _Metered:
    def __init__(
        self, part: Any, calls: Calls, on_result: Callable[[str, Any], None] | None, labels: Mapping[str, str]
    ) -> None:
        self._part, self._calls, self._on_result, self._labels = part, calls, on_result, labels

    def __repr__(self) -> str:
        return f"<metered {self._part!r}>"

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._part, name)
        if not callable(attribute) or name in _UNTIMED or name.startswith("_"):
            return attribute
        if inspect.iscoroutinefunction(attribute):
            timed = self._timed_coroutine(name, attribute)
        else:
            timed = self._timed_iterator(name, attribute)
        setattr(self, name, timed)  # the next lookup finds it in the instance and does not reach __getattr__
        return timed

    def _timed_coroutine(self, name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        label = self._labels.get(name, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._calls.timed(label):
                answer = await verb(*args, **kwargs)
            if self._on_result is not None:
                self._on_result(name, answer)
            return answer

        return call

    def _timed_iterator(self, name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        label = self._labels.get(name, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = verb(*args, **kwargs)
            return _timed(label, answer, self._calls) if hasattr(answer, "__anext__") else answer

        return call


async def _timed(name: str, items: AsyncIterator[Any], calls: Calls) -> AsyncIterator[Any]:
    """Pass on the items, timing only how long the source takes, not what the consumer does between two items."""
    spent = 0.0
    try:
        while True:
            began = perf_counter()
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
            except Exception as error:
                calls.failed(name, error)
                raise
            finally:
                spent += perf_counter() - began
            yield item
    finally:
        calls.durations[name].observe(spent)
        if (aclose := getattr(items, "aclose", None)) is not None:
            await aclose()
