"""The gateway's own client of picod, and the keys and tokens that authenticate the gateway to it.

Imports `core` and `picod.wire`. Start with `picod_client`.
"""
