"""Events of a run between two moments at which they go out: combined, so that their rate has a bound. Pure.

Code can print a byte or update a display a hundred thousand times a second; each as an event of its own would keep the
gateway, and the client behind it, busy for the sake of states that nobody sees. What goes out 20 times a second is the
text in one piece for each stream, the last state of each display, and of an animation (clear, show, clear, show) the
last picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_RESULTS = 64  # between two moments: 1,280 results a second


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


@dataclass(slots=True)
class Clear:
    """The results so far are taken back; with `wait` only when the next one comes."""

    wait: bool


Event = Text | Result | Clear


@dataclass
class PendingEvents:
    """In the order in which they happened, except that text joins the last text of its stream after the last result."""

    text_size: int = 0  # characters
    _events: list[Event] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """No further result should be read before these have gone out."""
        return sum(not isinstance(event, Text) for event in self._events) >= MAX_RESULTS

    def add_text(self, stream: str, text: str) -> None:
        """Append printed text, to the last event if that is of the same stream."""
        self.text_size += len(text)
        for event in reversed(self._events):
            if not isinstance(event, Text):
                break
            if event.stream == stream:
                event.parts.append(text)
                return
        self._events.append(Text(stream, [text]))

    def add_result(self, result: Result) -> None:
        """Something was shown. An update takes the place of an earlier state that has not gone out."""
        if result.update:
            for event in self._events:
                if isinstance(event, Result) and event.display_id == result.display_id:
                    event.data = result.data
                    return
        elif any(isinstance(event, Clear) for event in self._events):
            last = max(index for index, event in enumerate(self._events) if isinstance(event, Clear))
            self._take_back(last)
        self._events.append(result)

    def add_clear(self, *, wait: bool) -> None:
        """The code takes its results back."""
        if not wait:
            self._take_back(len(self._events))
        elif self._events and isinstance(self._events[-1], Clear):
            return
        self._events.append(Clear(wait))

    def take(self) -> list[Event]:
        """All of them; none is left."""
        events, self._events, self.text_size = self._events, [], 0
        return events

    def _take_back(self, end: int) -> None:
        """Leave out results, and what cleared earlier ones, before index `end`: nobody has seen them."""
        before = [event for event in self._events[:end] if isinstance(event, Text)]
        self._events = before + self._events[end:]
