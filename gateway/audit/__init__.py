"""The audit trail: who did what, as lines of JSON that show when one was changed, removed or cut off.

Imports core only. `event` says what is recorded and leaves secrets out, `chain` has the format, `file` and `stream`
write it, `log` takes events from the event loop, `verify` checks files; `keys` signs. docs/operations.md, "Audit
trail", describes the format for readers.
"""
