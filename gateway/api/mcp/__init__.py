"""The Model Context Protocol at /mcp: finds the client's session, and answers with the official SDK's server.

Imports `api.tools` and the shared helpers of `api`. Start with `endpoint`; it imports `server` for the first client.
"""
