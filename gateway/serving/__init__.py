"""A gateway as processes on a port: sockets, uvicorn, signals, drain, several workers.

Imports `app`, `routing` and `core`. Start with `server`.
"""
