"""The Model Context Protocol at /mcp: which session a client means, and the SDK's server behind it.

Imports `api.tools` and the shared helpers of `api`. Start with `endpoint`; `server` is loaded when a client comes.
"""
