"""Parses runtimes from YAML manifests: AgentCube's kinds, unchanged, with the optional section `spec.wakegate`.

Imports `core` only. Start with `manifest`, which turns a document into a `Runtime` or a list of problems; `schema` has
all fields.
"""
