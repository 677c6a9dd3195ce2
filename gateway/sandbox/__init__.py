"""What the gateway itself asks of picod, and the keys and tokens that prove who is asking.

Imports `core` and `picod.wire`. Start with `picod_client`.
"""
