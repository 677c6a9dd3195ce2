"""Whose a token is, as the gateway answers the service: by what it has bound itself, else by the session's record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.app.egress import SessionEgress
from gateway.app.pod_egress import PodEgress
from gateway.core.clock import SystemClock
from gateway.core.model import (
    Endpoint,
    Kind,
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    StartKind,
)  # fmt: skip
from gateway.egress.gate import EgressGate
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.egress_tokens import sign_egress
from gateway.sandbox.signing_keys import KeyRing
from gateway.store.memory import MemoryStore

KEY, AGENT, NETWORKS = (
    RuntimeKey("default", "one"), RuntimeKey("default", "agent", Kind.AGENT_RUNTIME), RuntimeKey("default", "networks"),
)  # fmt: skip


def session(
    sandbox: str | None = "sb", runtime: RuntimeKey = KEY, state: SessionState = SessionState.ACTIVE
) -> Session:
    """A record as the store has it."""
    found = None
    if sandbox is not None:
        found = Sandbox(SandboxId(sandbox), runtime, Endpoint(host="10.0.0.1", port=8080), StartKind.WARM, 0.0)
    return Session(
        SessionId("one"), runtime, state, 0.0, 0.0, 1e12, 60.0, sandbox=found, egress=("origin.example.com",)
    )


class Records:
    """A gateway's PodEgress over one record, which a test changes."""

    def __init__(self, folder: Path) -> None:
        self.record: Session | None = session()
        self.reads = 0
        self.keys = KeyRing(folder)
        self.keys.open()
        catalog = StaticCatalog([
            Runtime(KEY, egress=("*.example.com",)), Runtime(AGENT, egress=("*.example.com",)),
            Runtime(NETWORKS, egress=("10.0.0.0/8",)),
        ])  # fmt: skip
        gate = EgressGate()
        sessions = SessionEgress(gate, catalog, TenantDirectory(MemoryStore(SystemClock()).documents), Counters())
        self.pods = PodEgress(
            "127.0.0.1:1", gate, sessions, keys=self.keys, picod=None, provider=None,  # type: ignore[arg-type]  # not asked
            catalog=catalog, find=self.find, clock=SystemClock(),
        )  # fmt: skip

    async def find(self, _: SessionId) -> Session | None:
        self.reads += 1
        return self.record

    def token(self, sandbox: str = "sb") -> str:
        return sign_egress(self.keys, SandboxId(sandbox), SessionId("one"), SystemClock().now(), 60.0)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


async def test_record_decides_for_a_gateway_that_has_not_the_session(records: Records) -> None:
    """Its runtime's rules and its own; on another sandbox, on none, or gone, the token is nobody's."""
    found = await records.pods.whose(records.token())
    assert found is not None
    name, grant = found
    assert (name, grant.session) == ("sb", "one")
    assert [entries for _, entries in grant.layers] == [("*.example.com",), ("origin.example.com",)]
    for other in (session("other"), session(None, state=SessionState.HIBERNATED), None):
        records.record = other
        assert await records.pods.whose(records.token()) is None
    records.record = session()
    assert await records.pods.whose(records.token("other")) is None
    assert await records.pods.whose("nonsense") is None


async def test_runtimes_without_names_and_agents_have_no_way(records: Records) -> None:
    """They are not told one either, so nothing would use it."""
    for key in (AGENT, NETWORKS, RuntimeKey("default", "deleted")):
        records.record = session(runtime=key)
        assert await records.pods.whose(records.token()) is None, key
        records.pods.bound(records.record, SandboxId("sb"), None)
        assert not records.pods._bound


async def test_bound_session_needs_no_record(records: Records) -> None:
    """What this gateway has bound is known before it is written, and until it is unbound."""
    bound, records.record = session(), None
    records.pods._bound[SandboxId("sb")] = bound
    assert await records.pods.whose(records.token()) is not None
    assert records.reads == 0
    records.pods._bound[SandboxId("sb")] = replace(bound, id=SessionId("two"))
    assert await records.pods.whose(records.token()) is None
    records.pods.removed(SandboxId("sb"))
    assert await records.pods.whose(records.token()) is None
    await records.pods.aclose()
