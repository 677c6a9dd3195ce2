"""Events of a run that wait for the next flush, combined so that their rate has a bound. Pure.

Code can print a byte or update a display a hundred thousand times a second. An event for each would keep the gateway
and the client busy with states that are replaced before a person can see them. So a flush, 20 times a second, sends the
text of each stream in one piece, the last state of each display, and the last picture of an animation (clear, show,
clear, show).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_RESULTS = 64  # of one flush: with 20 flushes a second, 1,280 results a second


@dataclass(slots=True)
class Text:
    """Text printed to one stream, not sent yet."""

    stream: str
    parts: list[str]


@dataclass(slots=True)
class Result:
    """A result, or with `update` the new state of the one with the same id."""

    data: Mapping[str, Any]
    display_id: str
    update: bool
    is_value: bool = False  # of the last expression, not of a display


@dataclass(slots=True)
class Clear:
    """Removes the results so far; with `wait` only when the next one comes."""

    wait: bool


Event = Text | Result | Clear


@dataclass
class PendingEvents:
    """Events in the order in which they happened; text joins earlier text of its stream if no result lies between."""

    text_size: int = 0  # characters
    _events: list[Event] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether no further result should be read before the next flush."""
        return sum(not isinstance(event, Text) for event in self._events) >= MAX_RESULTS

    def add_text(self, stream: str, text: str) -> None:
        """Append printed text, to the last event if that is of the same stream."""
        self.text_size += len(text)
        # Past text of the other stream, whose order to this one is not known anyway (two pipes), but not past a result.
        for event in reversed(self._events):
            if not isinstance(event, Text):
                break
            if event.stream == stream:
                event.parts.append(text)
                return
        self._events.append(Text(stream, [text]))

    def add_result(self, result: Result) -> None:
        """Append a result. An update replaces an earlier state of the same display that is still waiting."""
        if result.update:
            for event in self._events:
                if isinstance(event, Result) and event.display_id == result.display_id:
                    event.data = result.data
                    return
        elif any(isinstance(event, Clear) for event in self._events):
            # What an earlier `clear` removes would be replaced as soon as it is shown.
            last = max(index for index, event in enumerate(self._events) if isinstance(event, Clear))
            self._drop_results(last)
        self._events.append(result)

    def add_clear(self, *, wait: bool) -> None:
        """Append a clear. Results that are still waiting are dropped, unless it waits for the next one."""
        if not wait:
            self._drop_results(len(self._events))
        elif self._events and isinstance(self._events[-1], Clear):
            return
        self._events.append(Clear(wait))

    def take(self) -> list[Event]:
        """Return all events and keep none."""
        events, self._events, self.text_size = self._events, [], 0
        return events

    def _drop_results(self, end: int) -> None:
        """Drop results and clears before index `end`: no client has received them."""
        before = [event for event in self._events[:end] if isinstance(event, Text)]
        self._events = before + self._events[end:]
