"""What the gateway tells the service of a sandbox, as JSON. Both ends use this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from gateway.egress.policy import Egress, Entry, Layer, Limits, Rule, parse_rules


@dataclass(frozen=True, slots=True)
class Grant:
    """A policy as it was written: the entries of each layer by where they are from, outermost first."""

    session: str = ""
    tenant: str = ""
    layers: Sequence[tuple[str, Sequence[Entry]]] = ()
    limits: Limits = field(default_factory=Limits)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        layers = [[setting, [_plain(entry) for entry in entries]] for setting, entries in self.layers]
        return {"session": self.session, "tenant": self.tenant, "layers": layers, "limits": asdict(self.limits)}


def _plain(entry: Entry) -> Any:
    return entry if isinstance(entry, str) else dict(entry)


def read_grant(document: Mapping[str, Any]) -> Egress:
    """The inverse of `Grant.document`, with its rules parsed. Raises ValueError, KeyError, TypeError."""
    layers = tuple(Layer(setting, _rules(entries)) for setting, entries in document["layers"])
    return Egress(document["session"], document["tenant"], layers, Limits(**document["limits"]))


def _rules(entries: Sequence[Any]) -> tuple[Rule, ...]:
    if all(isinstance(entry, str) for entry in entries):
        return _rules_of_texts(tuple(entries))
    return parse_rules(entries)


@lru_cache(maxsize=256)
def _rules_of_texts(entries: tuple[str, ...]) -> tuple[Rule, ...]:
    return parse_rules(entries)
