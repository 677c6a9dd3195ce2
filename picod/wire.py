"""The contract between gateway and picod: the only module of picod that the gateway imports.

Tokens: JWS compact, header `kid`, claims `iss`, `aud` (the sandbox's id), `sub` (the session's id), `iat`, `exp`,
`jti`.
"""

from __future__ import annotations

ISSUER = "wakegate"
ALGORITHMS = ("EdDSA", "RS256")
LEEWAY_S = 30
"""How far the clocks of gateway and sandbox may differ, either way, before tokens are refused.

Nodes without NTP differ by seconds, virtual machines that were paused by more. The price is small, as a token is valid
for one sandbox only: a stolen one is valid for 5.5 minutes instead of 5."""

HEALTH_PATH = "/health"
RUN_CODE_PATH = "/api/run_code"  # POST: run code in a context
CONTEXTS_PATH = "/api/contexts"  # code contexts: list, make; below it one by its name
SNAPSHOT_PATH = "/api/snapshot"  # GET: the workspace as a stream; PUT: a stream becomes the workspace
FINGERPRINT_PATH = "/api/snapshot/fingerprint"  # GET: {"fingerprint": text}, equal while the workspace is unchanged
SUSPEND_PATH = "/api/suspend"  # POST: write the contexts' state into the workspace
RESUME_PATH = "/api/resume"  # POST: a workspace was restored: expect the contexts whose state it holds
ACTIVITY_PATH = "/api/activity"  # {"busy": bool}: whether something runs that no request waits for
TERMINAL_PATH = "/api/terminal"  # a WebSocket
PORTS_PATH = "/api/ports/"  # {port}/{path}: on to a server that listens in the sandbox
# On an answer: picod itself refuses the token (401). Taken out of what servers in the sandbox answer.
REFUSED_HEADER = "x-wakegate-refused"
SESSION_HEADER = "x-agentcube-session-id"  # the session's id, which the gateway sends with each request

MOUNT_HEADER = "x-wakegate-mount"  # "/": the gateway shows the port at the root of a host of its own


def port_prefix(session_id: str, port: int) -> str:
    """The gateway's path of a session's port; everything that the server links to is below it."""
    return f"/v1/sessions/{session_id}/ports/{port}"


CODE_PATH = "/api/code/"  # PUT, below it a digest: the files of an agent, in the pod that waits for them (receive.py)

EGRESS_PORT = 3128
"""The port of the egress proxy on a sandbox's loopback, as proxies have it by custom (Squid)."""

EGRESS_PATH = "/api/egress"  # PUT {"address", "token"}: in a pod, where the egress service is, and what to say to it
EGRESS_GREETING = "WAKEGATE-EGRESS"
"""What a connection to the egress service begins with in a cluster: this, a space, a token, a line feed. Then come the
bytes that the client sent to its proxy."""

# Environment that configures picod (also flags of `python -m picod`; see picod/config.py).
ENV_AUDIENCE = "PICOD_AUDIENCE"
ENV_KEYS_FILE = "PICOD_KEYS_FILE"  # a JSON Web Key Set; read again when a token names an unknown kid
ENV_AUTH = "PICOD_AUTH"  # jwt | none
ENV_WORKSPACE = "PICOD_WORKSPACE"
ENV_COMMAND_ENV = "PICOD_COMMAND_ENV"  # JSON object: the whole environment that commands start from
ENV_FORWARD = "PICOD_FORWARD_ENV"  # names of picod's own variables that commands get too: "GREETING,API_URL"
ENV_PRELOAD = "PICOD_PRELOAD"  # modules that python3 has imported ahead: "numpy,pandas"
ENV_PORTS = "PICOD_PORTS"  # ports of the sandbox that may be reached: "8000,9000-9100"
# JSON of a server that picod starts and forwards to: command, working_dir, targets [[prefix, port], ...] and probe.
ENV_AGENT = "PICOD_AGENT"
# Bytes that volumes may hold, which picod keeps: "/workspace=5368709120,/tmp=268435456".
ENV_DISK_LIMITS = "PICOD_DISK_LIMITS"
ENV_MAX_FILE_SIZE = "PICOD_MAX_FILE_SIZE"  # bytes of one file, beside ENV_DISK_LIMITS
ENV_EGRESS = "PICOD_EGRESS"  # "service": picod passes what connects to EGRESS_PORT on to the egress service
ENV_RECEIVE = "PICOD_RECEIVE"  # wait for these files, unpack them and end: "/app=sha256:...,/opt/agent=sha256:..."
ENV_LINGER = "PICOD_LINGER"  # seconds that picod serves on after SIGTERM, if the workspace holds files
ENV_CODE_CONTEXT = "PICOD_CODE_CONTEXT"  # warm | lazy | off
ENV_MAX_OUTPUT = "PICOD_MAX_OUTPUT"  # bytes kept of each stream


def disk_headroom(limit: int) -> int:
    """How many bytes a volume may hold beyond a limit of ENV_DISK_LIMITS before the node ends the sandbox.

    picod sees an excess up to a second late, in which a fast disk takes a gigabyte or two.
    """
    return max(limit // 4, 1 << 30)
