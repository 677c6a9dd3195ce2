"""The control surfaces: each parses requests, calls the lifecycle or a session's sandbox, and serialises the answer.

Imports `sessions`, `observability`, `runtimes` and `core`. Start with `app`, which builds one router of the surfaces
(`native`, `health`, `agentcube`, `openai`, `mcp`); they share `http`, `errors`, `relay`, `sessions` and `tools`.
"""
