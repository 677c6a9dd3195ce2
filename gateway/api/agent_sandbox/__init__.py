"""The API of kubernetes-sigs/agent-sandbox, for its clients: SandboxClaims as a cluster serves them, and its runtime.

A claim is a session of a code interpreter; the warm pool that it names is the runtime. May import the shared parts of
the control surfaces (errors, http, sessions, session_list). Start with claims.py (control plane), router.py (sandbox).
"""
