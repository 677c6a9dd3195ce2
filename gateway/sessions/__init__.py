"""The life of a session: create, open, hibernate, wake, recover, end.

Imports `core` only; stores and engines come in through its Protocols. Start with `build`, which joins the parts:
`Lifecycle` (create, change, end), `SessionOpener` (to a live sandbox), `Hibernator`, `Recovery`, and what they share.
"""
