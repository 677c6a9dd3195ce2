"""What the gateway writes about itself: logs, traces, the audit trail."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Logs:
    """Log lines, and where spans are sent."""

    log_level: str = setting(
        "info", "lowest severity that is logged", kind="text", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting("console", "format of log lines", kind="text", choices=("console", "json"))
    access_log: bool = setting(False, "log one line per request", kind="flag")
    otlp_endpoint: str = setting(
        "", "OTLP/HTTP receiver for OpenTelemetry spans, e.g. http://127.0.0.1:4318 (needs the extra `otel`)",
        kind="text", metavar="URL",
    )  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """The audit trail; without `audit_log` there is none."""

    audit_log: str = setting(
        "", "file of the audit trail, a line of JSON for each decision; - writes to stdout (default: none)",
        kind="text", metavar="FILE",
    )  # fmt: skip
    audit_max_bytes: int = setting(
        64 << 20, "size at which the audit file is put aside and another one begun", kind="size", low=4096
    )
    audit_keep: int = setting(
        16, "full audit files that are kept; the oldest is deleted then; 0: all", kind="int", low=0
    )
    audit_on_error: str = setting(
        "refuse",
        "while the audit trail cannot be written: refuse what has to be in it with 503, or continue and tell of the gap"
        " later",
        kind="text",
        choices=("refuse", "continue"),
    )
    audit_content: str = setting(
        "hash",
        "what the audit trail has of code, commands and tool calls: their SHA-256, or the text without credentials",
        kind="text",
        choices=("hash", "text"),
    )
