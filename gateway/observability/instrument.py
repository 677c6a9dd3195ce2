"""A clock beside any seam of interfaces.py: how long each of its calls takes, and which fail.

One wrapper for all of them: a store, a keeper of workspaces and a client of an API differ in their verbs only, and none
of them is called on the fast path.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from time import perf_counter
from typing import Any, TypeVar, cast

from gateway.observability.counters import Calls

PartT = TypeVar("PartT")
_UNTIMED = frozenset(("start", "aclose"))  # once in a life; their time says nothing of calls


def metered(
    part: PartT,
    calls: Calls,
    on_result: Callable[[str, Any], None] | None = None,
    labels: Mapping[str, str] | None = None,
) -> PartT:
    """The part, with every call of its coroutines and async iterators counted in `calls` under the verb's name.

    `on_result(verb, answer)` is told of coroutines that ended well. `labels` gives other names than the verb's own:
    dashboards outlive a method's name.
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
        setattr(self, name, timed)  # asked for once: later look-ups find it in the instance
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
    """The items. Only the time that making them takes counts, not that of whoever uses them in between."""
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
