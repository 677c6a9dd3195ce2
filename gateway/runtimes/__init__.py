"""Runtimes from YAML manifests: AgentCube's kinds as they are, plus the optional `spec.wakegate`.

Imports `core` only. Start with `manifest`, which turns a document into a `Runtime` or a list of problems.
"""
