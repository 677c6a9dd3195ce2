"""Whose policies count for a sandbox: its runtime's, its session's, its tenant's. All must allow a target."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.model import Runtime, Session
from gateway.egress.notation import Grant
from gateway.egress.policy import Limits
from gateway.egress.rule_entries import Entry, parse_rules
from gateway.egress.rules import uncovered

LayerEntries = tuple[str, Sequence[Entry]]


def of_runtime(runtime: Runtime) -> Grant:
    """Of a sandbox without a session: an agent that starts may fetch what it needs."""
    return Grant(layers=(_layer(runtime),), limits=_limits(runtime), runtime=str(runtime.key), secrets=runtime.secrets)


def of_session(runtime: Runtime, session: Session, ceiling: Sequence[Entry] | None = None) -> Grant:
    """Of a session's sandbox. `ceiling`: what its tenant may reach at most; None: not limited."""
    # From the outermost on. All of them have to allow a target, so the order decides only which of them a refusal
    # names.
    layers: list[LayerEntries] = [_layer(runtime)]
    if session.egress is not None:
        layers.append(("`egress` of the session (POST /v1/sessions)", session.egress))
    if ceiling is not None:
        layers.append((f"the limit `egress` of tenant {session.tenant}", ceiling))
    return Grant(session.id, session.tenant, tuple(layers), _limits(runtime), str(runtime.key), runtime.secrets)


def by_name(runtime: Runtime) -> bool:
    """Whether it names hosts. In a cluster these need the egress service; a NetworkPolicy is enough for networks."""
    return any(rule.network is None for rule in parse_rules(runtime.egress))


def check_narrower(runtime: Runtime, entries: Sequence[Entry]) -> None:
    """Raise ValueError for entries of a session that are malformed, or allow what its runtime does not."""
    # Refused when the session is made, though a wider entry would open nothing: silence would look like a permission.
    wider = list(uncovered(parse_rules(entries), parse_rules(runtime.egress)))
    if wider:
        allowed = ", ".join(str(entry) for entry in runtime.egress[:20]) or "nothing"
        raise ValueError(f": {wider[0]} is more than {runtime.key} allows, which is {allowed}")


def _layer(runtime: Runtime) -> LayerEntries:
    return f"spec.wakegate.egress of {runtime.key}", runtime.egress


def _limits(runtime: Runtime) -> Limits:
    return Limits(**runtime.egress_limits)
