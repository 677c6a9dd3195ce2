"""picod: the executor in each sandbox, a small ASGI app with its own HTTP server (docs/picod-api.md).

`app` routes requests (`routes`) to handlers, which get the `services` of their package: `commands`, `interpreter`,
`files`, `snapshot`, `ports`. It imports nothing of the gateway, which imports `wire` only. Start with `app`.
"""

__version__ = "0.1.0"
