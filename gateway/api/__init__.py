"""The control surfaces: each parses requests, calls the lifecycle or a session's sandbox, and serialises the answer.

Imports `sessions`, `observability`, `runtimes` and `core`. Start with `app`, which joins the surfaces (`native`,
`agentcube`, `openai`, `mcp`) to one router; they share `http`, `errors`, `relay`, `sessions` and `tools`.
"""
