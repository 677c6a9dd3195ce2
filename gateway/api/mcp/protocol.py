"""Constants of the Model Context Protocol that `endpoint` and `server` share: headers, versions, bounds."""

from __future__ import annotations

SESSION_HEADER = "mcp-session-id"
RESTORED_META = "wakegate/restored"  # in _meta of a result: the value of x-wakegate-restored
VERSION_HEADER = "mcp-protocol-version"
HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
HANDLE = "session"  # the argument of each tool that names the session, from the 2026-07-28 revision on
MAX_BODY_BYTES = 32 << 20
