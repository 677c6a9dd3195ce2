"""Records for the tests of the stores: one by hand, and any by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from gateway.core.model import (
    Endpoint,
    Kind,
    RuntimeKey,
    Sandbox,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    StartKind,
)

RUNTIME = RuntimeKey("default", "my-interpreter")
T0 = 1_700_000_000.0


def session(name: str = "s1", **changes: Any) -> Session:
    """An active session, last active at T0, idle after 900 s, with a day to live."""
    plain = Session(SessionId(name), RUNTIME, SessionState.ACTIVE, T0, T0, T0 + 86400, 900.0)
    return replace(plain, **changes)


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_name = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_seconds = st.floats(0, 4e9, allow_nan=False)
_runtimes = st.builds(RuntimeKey, _name, _name, st.sampled_from(Kind))
_endpoints = st.one_of(
    st.builds(Endpoint, uds=_text.filter(bool)), st.builds(Endpoint, host=_name, port=st.integers(1, 65535))
)
_sandboxes = st.builds(
    Sandbox,
    id=_name.map(SandboxId),
    runtime=_runtimes,
    endpoint=_endpoints,
    start=st.sampled_from([StartKind.WARM, StartKind.COLD]),
    created_at=_seconds,
    session_id=st.none() | _name.map(SessionId),
)

sessions = st.builds(
    Session,
    id=_text.filter(bool).map(SessionId),
    runtime=_runtimes,
    state=st.sampled_from(SessionState),
    created_at=_seconds,
    last_active_at=_seconds,
    expires_at=_seconds,
    idle_timeout=_seconds,
    version=st.just(0),
    tenant=_text,
    sandbox=st.none() | _sandboxes,
    start=st.none() | st.sampled_from(StartKind),
    snapshot=st.none() | _text,
    snapshot_at=st.none() | _seconds,
    reason=_text,
    metadata=st.dictionaries(_text, _text, max_size=4),
)
"""Any record, with each optional field there or not."""
