"""What a sandbox may reach: layers of rules decide about a target. Pure.

Layers (runtime, session, tenant) must all allow a target: each can only take away. `rules` has what one rule is for,
`rule_entries` the notation that people write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.egress.addresses import Address, Host
from gateway.egress.rules import Rule


@dataclass(frozen=True, slots=True)
class Layer:
    """The rules of one place, and where that is: "spec.wakegate.egress of ...", for people."""

    setting: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for. `visible`: its requests will be seen; with a `method`, this is one of them."""

    host: Host
    port: int
    visible: bool = False
    method: str = ""
    path: str = ""

    def __str__(self) -> str:
        host = self.host
        return f"{host}:{self.port}" if isinstance(host, str) or host.version == 4 else f"[{host}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says to a target.

    `rule`: the entry that allows it, of the first layer. Refused: `reason`, and `setting`, which would allow it.
    """

    allowed: bool
    rule: str = ""
    reason: str = ""
    setting: str = ""

    @property
    def text(self) -> str:
        """A refusal for people: what was wrong, and what to do."""
        return f"{self.reason}; {self.setting}" if self.setting else self.reason


def decide(layers: Sequence[Layer], target: Target) -> Verdict:
    """Whether every layer allows a target, before it is resolved. No layer at all allows nothing."""
    if not layers:
        return Verdict(False, reason=f"{target} is not allowed", setting="this sandbox has no egress")
    rule = ""
    for layer in layers:
        matching = [each for each in layer.rules if each.matches(target.host, target.port)]
        found = next((each for each in matching if _admits(each, target)), None)
        if found is None:
            return _refused(layer, target, matching)
        # The log names the outermost layer's entry, the manifest's: the others can only repeat a part of it.
        rule = rule or found.text
    return Verdict(True, rule)


def _admits(rule: Rule, target: Target) -> bool:
    # A rule with methods or paths opens a connection only where its requests will be seen. Otherwise `methods: [GET]`
    # would let any request through that is encrypted.
    if not rule.limited:
        return True
    return target.visible and (not target.method or rule.admits(target.method, target.path))


def _refused(layer: Layer, target: Target, matching: Sequence[Rule]) -> Verdict:
    # Told apart, since what to do differs: a request that no entry has, an entry that cannot be kept because its
    # requests are not seen, and a host that is in no entry.
    if matching and target.method:
        reason = f"{target.method} {target.path[:80]} of {target} is not allowed"
        return Verdict(False, reason=reason, setting=f"its methods and paths are in {layer.setting}")
    if matching:
        reason = f"{target} is allowed for some methods and paths only, and its requests are encrypted"
        return Verdict(False, reason=reason, setting=f"drop methods and paths from its entry in {layer.setting}")
    # What to add as people write it: the ports of a name are 80 and 443 without being named.
    entry = f"{target.host}" if not isinstance(target.host, str) or target.port in (80, 443) else f"{target}"
    return Verdict(False, reason=f"{target} is not allowed", setting=f"to allow it, add {entry} to {layer.setting}")


def may_reach_private(layers: Sequence[Layer], address: Address, port: int) -> Layer | None:
    """The first layer that does not open a private address by naming its network; None: all do."""
    for layer in layers:
        if not any(rule.names_private(address, port) for rule in layer.rules):
            return layer
    return None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use of its egress. 0: no limit. `rate`: bytes per second, both directions together."""

    connections: int = 512
    bytes: int = 0
    rate: int = 0
