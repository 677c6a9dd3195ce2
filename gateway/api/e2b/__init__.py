"""E2B's API: control plane, envd and code interpreter, for the E2B SDKs and what is built on them.

May import the rest of `api` (errors, http, sessions, sandbox_json), `core`, `identity` and `sessions`; sandboxes are
reached through `core.interfaces.SandboxCaller` alone. Start with `router`, which maps hosts and paths to handlers;
docs/clients.md shows how clients are configured.
"""
