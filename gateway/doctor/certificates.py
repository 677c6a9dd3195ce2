"""Checks of the TLS files: whether a gateway could use them, and how long it will be able to."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.certificates import ends_at, expiry_problems, make_certificates
from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.doctor.finding import Finding


def check_certificates(settings: Settings) -> Iterator[Finding]:
    """Nothing without --tls-cert; else what is wrong, or until when all is well."""
    clock = SystemClock()
    try:
        certificates = make_certificates(settings, clock)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("certificate", problem, "correct the file that is named")
        return
    if certificates is None:
        return
    # A warning and not a failure: the files can be read, and are replaced without a restart.
    problems = list(expiry_problems(settings.tls_cert, clock.now()))
    for problem in problems:
        yield Finding("certificate", problem, "renew it; a running gateway takes new files by itself", fatal=False)
    if not problems:
        yield Finding("certificate", f"{settings.tls_cert} is valid until {ends_at(settings.tls_cert):%Y-%m-%d}")
