"""picod: the executor in each sandbox. Its own small ASGI app; knows nothing of the gateway."""

__version__ = "0.1.0"
