"""Checks of access: the address and its authentication, the admin's key, issuers, trusted proxies."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from gateway.core.addresses import host_name, is_loopback
from gateway.core.clock import Clock, SystemClock
from gateway.core.errors import SettingsError, UnavailableError
from gateway.core.proxies import read_proxies
from gateway.core.settings import Settings, requires_identity
from gateway.doctor.finding import Finding
from gateway.identity.directory import read_admin_key
from gateway.identity.oidc import issuer_access, make_verifier
from gateway.identity.oidc_claims import SKEW_S
from gateway.identity.oidc_keys import fetch_keys

_FETCH_TIMEOUT_S = 10.0
_FOREIGN_ADDRESSES = (
    "203.0.113.1",
    "2001:db8::1",
)  # addresses of documentation, which no host has (RFC 5737, RFC 3849)


async def check_access(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Finding]:
    """Everything about who may use the gateway, and from where; asks issuers for their keys."""
    clock = clock or SystemClock()
    for finding in (*check_exposure(settings), *check_proxies(settings)):
        yield finding
    if settings.admin_key_file != Path():
        yield await asyncio.to_thread(check_admin_key, settings.admin_key_file)
    async for finding in check_issuers(settings, clock):
        yield finding


def check_exposure(settings: Settings) -> Iterator[Finding]:
    """Whether requests are authenticated and encrypted, where others than this machine reach the address."""
    # On loopback neither is needed: requests never leave this machine.
    if is_loopback(host_name(settings.host.encode())):
        access = "requires a key" if requires_identity(settings) else "serves all users of this machine"
        yield Finding("access", f"listens on this machine only ({settings.host}), {access}")
        return
    if requires_identity(settings):
        yield Finding("access", f"listens on {settings.host}, requires a key or token")
    elif settings.insecure_no_auth:
        fix = "add --auth (keys: wakegate keys create) or --oidc-issuer, unless the network is closed to others"
        yield Finding("access", f"listens on {settings.host} and serves all who reach it", fix, fatal=False)
    else:
        fix = "add --auth (keys: wakegate keys create) or --oidc-issuer; or --insecure-no-auth in a closed network"
        yield Finding("access", f"listens on {settings.host} without authentication", fix)
    if settings.tls_cert == Path() and not settings.trusted_proxies:
        fix = "add --tls-cert and --tls-key, or a proxy that has TLS, and name it in --trusted-proxies"
        yield Finding("encryption", "keys and data are sent without TLS", fix, fatal=False)


def check_proxies(settings: Settings) -> Iterator[Finding]:
    """Whether a client could choose the address that it is recorded with."""
    try:
        proxies = read_proxies(settings.trusted_proxies)
    except SettingsError as error:
        yield Finding("proxies", str(error), "correct --trusted-proxies")
        return
    if proxies is None:
        return
    # Tried with addresses, not read from the text: 0.0.0.0/1,128.0.0.0/1 includes every address just as 0.0.0.0/0 does.
    if any(proxies.trust(address) for address in _FOREIGN_ADDRESSES):
        fix = "name the proxies' own networks in --trusted-proxies, e.g. 10.0.0.0/8"
        yield Finding("proxies", "X-Forwarded-For is accepted from any address", fix, fatal=False)
    else:
        yield Finding("proxies", f"trusted: {settings.trusted_proxies}")


def check_admin_key(path: Path) -> Finding:
    """Whether the gateway can read the file, and whether other users can. Blocks."""
    try:
        text, state = read_admin_key(path)
    except SettingsError as error:
        fix = f"(umask 077; openssl rand -hex 32 > {path}), readable for the gateway's user"
        return Finding("admin key", str(error), fix)
    mode = stat.S_IMODE(state.st_mode)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):  # a group may read it: a Secret's volume belongs to the pod's fsGroup
        return Finding("admin key", f"{path} has mode {mode:04o}: others may use it", f"chmod 600 {path}", fatal=False)
    return Finding("admin key", f"{path}, {len(text)} characters, mode {mode:04o}")


async def check_issuers(settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Whether each issuer's keys can be fetched, and its clock agrees with this machine's."""
    try:
        verifier = make_verifier(settings, clock)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("issuer", problem, "correct that flag")
        return
    for each in () if verifier is None else verifier.issuers:
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                published = await fetch_keys(each.issuer, issuer_access(each.issuer, settings))
        except (UnavailableError, TimeoutError) as error:
            fix = "its tokens are refused until it can be reached: see --oidc-issuer, --oidc-jwks-url and --oidc-ca"
            yield Finding("issuer", f"{each.issuer}: {error or 'no answer in time'}", fix)
            continue
        yield Finding("issuer", f"{each.issuer}: answers; keys that it publishes: {len(published.keys)}")
        yield check_clock(each.issuer, published.date, clock.now())


def check_clock(issuer: str, date: str, now: float) -> Finding:
    """Compare this machine's clock with the Date of an answer, which has whole seconds."""
    try:
        difference = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("clock", f"{issuer} sends no Date to compare with")
    # A second too much, from the Date's rounding and the way, does not matter at a tolerance of 30.
    if abs(difference) > SKEW_S:
        side = "ahead of" if difference > 0 else "behind"
        fix = "set this machine's clock (chronyd, systemd-timesyncd); its tokens would be early or expired"
        return Finding("clock", f"{abs(difference):.0f} s {side} {issuer}", fix, fatal=False)
    return Finding("clock", f"agrees with {issuer} within {SKEW_S:g} s")
