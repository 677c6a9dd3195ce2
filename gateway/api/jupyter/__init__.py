"""Jupyter Server's protocol at /jupyter: a kernel is a session, and its code context is what runs.

Imports the shared helpers of `api`. `kernels` has the REST part, `channels` the WebSocket.
"""
