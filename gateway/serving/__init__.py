"""Runs a gateway as a process, or as several on one port: sockets, uvicorn, signals, drain, workers.

Imports `app`, `routing` and `core`. Start with `server`.
"""
