"""HTTP/1.1 for one ASGI app, and what handlers use of it: requests, server-sent events, WebSockets, authentication.

Imports `filesystem` and `wire`. Start with `server`.
"""
