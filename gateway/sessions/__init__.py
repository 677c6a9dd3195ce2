"""The life of a session: create, activate, hibernate, wake, recover, end.

Imports `core` only; stores and engines come in through its Protocols. Start with `lifecycle`, the verbs that the layers
above call.
"""
