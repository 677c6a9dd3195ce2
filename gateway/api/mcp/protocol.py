"""What both sides of /mcp know of the Model Context Protocol: headers, versions and bounds."""

from __future__ import annotations

SESSION_HEADER = "mcp-session-id"
RESTORED_META = "wakegate/restored"  # in _meta of a result: what x-wakegate-restored says elsewhere
VERSION_HEADER = "mcp-protocol-version"
HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
UNSUPPORTED_VERSION = -32022  # JSON-RPC code of the 2026-07-28 revision
MAX_BODY_BYTES = 32 << 20
