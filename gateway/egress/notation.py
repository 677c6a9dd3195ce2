"""What the gateway tells the service of a sandbox, as JSON. Both ends use this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from gateway.core.model import Secret
from gateway.egress.credentials import Credential, host_rules, placeholder_of
from gateway.egress.policy import Layer, Limits, Target, decide
from gateway.egress.rule_entries import Entry, parse_rules
from gateway.egress.rules import Rule

_HTTP = 80


@dataclass(frozen=True, slots=True)
class Grant:
    """A policy as it was written: the entries of each layer by where they are from, outermost first.

    `runtime` and `secrets`: whose placeholders the sandbox has, and what stands for them outside. No value is in here.
    """

    session: str = ""
    tenant: str = ""
    layers: Sequence[tuple[str, Sequence[Entry]]] = ()
    limits: Limits = field(default_factory=Limits)
    runtime: str = ""
    secrets: tuple[Secret, ...] = ()

    def document(self, value_of: Callable[[Secret], str] = lambda _: "") -> dict[str, Any]:
        """As JSON. `value_of`: the value of a secret, empty if it cannot be read."""
        layers = [[setting, [_plain(entry) for entry in entries]] for setting, entries in self.layers]
        secrets = [
            {
                "name": each.name, "hosts": list(each.hosts), "place": each.place, "argument": each.argument,
                "placeholder": placeholder_of(self.runtime, each.name), "value": value_of(each),
            }
            for each in self.secrets
        ]  # fmt: skip
        # Entries go as they were written, not as parsed rules: refusals quote them, and one parser serves both ends.
        document = {"session": self.session, "tenant": self.tenant, "layers": layers, "limits": asdict(self.limits)}
        return {**document, "secrets": secrets}


def _plain(entry: Entry) -> Any:
    return entry if isinstance(entry, str) else dict(entry)


@dataclass(frozen=True, slots=True)
class Egress:
    """All that the service knows of whom a sandbox's connections belong to, and of what they may reach."""

    session: str = ""
    tenant: str = ""
    layers: tuple[Layer, ...] = ()
    limits: Limits = field(default_factory=Limits)
    credentials: tuple[Credential, ...] = ()

    def credentials_for(self, target: Target) -> tuple[Credential, ...]:
        """What requests to this host get."""
        return tuple(each for each in self.credentials if each.matches(target.host, target.port))

    def ends_tls(self, target: Target) -> bool:
        """Whether TLS to this host ends in the service: it gets a credential, or only some requests are allowed."""
        if self.credentials_for(target):
            return True
        # Whatever the policy allows unseen stays between the sandbox and its host. Ending TLS of all hosts was
        # rejected: it costs CPU twice (docs/adr/0020-tls-ended.md), and programs that bring their own authorities would
        # fail.
        unseen = Target(target.host, target.port)
        if target.port == _HTTP or decide(self.layers, unseen).allowed:
            return False
        return decide(self.layers, replace(unseen, visible=True)).allowed


def read_grant(document: Mapping[str, Any]) -> Egress:
    """The inverse of `Grant.document`, with its rules parsed. Raises ValueError, KeyError, TypeError."""
    layers = tuple(Layer(setting, _rules(entries)) for setting, entries in document["layers"])
    credentials = tuple(
        Credential(
            each["name"], tuple(rule for host in each["hosts"] for rule in host_rules(host)),
            each["place"], each["argument"], each["placeholder"], each["value"],
        )
        for each in document["secrets"]
    )  # fmt: skip
    return Egress(document["session"], document["tenant"], layers, Limits(**document["limits"]), credentials)


def _rules(entries: Sequence[Any]) -> tuple[Rule, ...]:
    if all(isinstance(entry, str) for entry in entries):
        return _rules_of_texts(tuple(entries))
    return parse_rules(entries)


# Sandboxes of one runtime have the same entries: at 1000 sandboxes of ten runtimes ten lists are parsed, and their
# rules are in memory once. A mapping cannot be hashed, and is parsed each time.
@lru_cache(maxsize=256)
def _rules_of_texts(entries: tuple[str, ...]) -> tuple[Rule, ...]:
    return parse_rules(entries)
