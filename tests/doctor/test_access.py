"""The doctor's findings on authentication and encryption: each problem with its fix."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from gateway.core.settings import Settings
from gateway.doctor.access import check_access, check_admin_key, check_clock
from gateway.doctor.finding import Finding
from gateway.testing import ManualClock
from tests.support.cluster_issuer import ClusterIssuer, cluster_issuer


async def findings(clock: ManualClock | None = None, **changes: Any) -> dict[str, Finding]:
    found = [each async for each in check_access(Settings(**changes), clock)]
    assert len({each.what for each in found}) == len(found)
    return {each.what: each for each in found}


@pytest.mark.parametrize(
    ("changes", "access", "encryption"),
    [
        ({}, "ok", None),
        ({"host": "0.0.0.0"}, "fail", "warn"),
        ({"host": "0.0.0.0", "insecure_no_auth": True}, "warn", "warn"),
        ({"host": "0.0.0.0", "auth": True}, "ok", "warn"),
        ({"host": "0.0.0.0", "auth": True, "tls_cert": Path("x")}, "ok", None),
        ({"host": "0.0.0.0", "auth": True, "trusted_proxies": "10.0.0.0/8"}, "ok", None),
    ],
)
async def test_address_is_checked_against_authentication_and_encryption(
    changes: dict[str, Any], access: str, encryption: str | None
) -> None:
    """Loopback needs neither; any other address needs both, or a setting that waives them."""
    found = await findings(**changes)
    assert found["access"].status == access
    assert (found["encryption"].status if "encryption" in found else None) == encryption


@pytest.mark.parametrize(
    ("proxies", "status"), [("10.0.0.0/8,192.168.1.7", "ok"), ("0.0.0.0/0", "warn"), ("::/0", "warn"), ("x", "fail")]
)
async def test_trusting_every_address_is_reported(proxies: str, status: str) -> None:
    """Any client could then choose the address that it appears to have."""
    assert (await findings(trusted_proxies=proxies))["proxies"].status == status


@pytest.mark.parametrize(
    ("text", "mode", "status"),
    [("k" * 32, 0o600, "ok"), ("k" * 32, 0o440, "ok"), ("k" * 32, 0o604, "warn"), ("k" * 32, 0o620, "warn"),
     ("k" * 31, 0o600, "fail"), ("two lines " * 9, 0o600, "fail"), (None, 0, "fail")],
)  # fmt: skip
def test_admin_key_must_be_long_and_private(tmp_path: Path, text: str | None, mode: int, status: str) -> None:
    """A group may read it, as in a Secret's volume."""
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    assert check_admin_key(path).status == status


async def test_reachable_and_unreachable_issuers_are_reported() -> None:
    """With the number of keys, and how far the clocks differ."""
    with cluster_issuer(ClusterIssuer()) as issuer:
        flags: dict[str, Any] = {"oidc_issuer": issuer.url, "oidc_role_map": "*=member"}
        found = await findings(ManualClock(time.time()), **flags)
        assert (found["issuer"].status, found["clock"].status) == ("ok", "ok")
        assert "publishes: 1" in found["issuer"].detail
        late = await findings(ManualClock(time.time() + 120), **flags)
        assert late["clock"].status == "warn"
        assert "ahead of" in late["clock"].detail
    away = (await findings(**flags))["issuer"]
    assert away.status == "fail"
    assert issuer.url in away.detail
    assert (await findings(**flags | {"oidc_issuer": "http://issuer.example"}))["issuer"].status == "fail"


@pytest.mark.parametrize(("date", "status"), [(formatdate(1000, usegmt=True), "ok"), ("", "ok"), ("nonsense", "ok")])
def test_issuer_without_a_date_is_no_finding(date: str, status: str) -> None:
    """Nor is half a minute of difference, which the check of tokens allows."""
    assert check_clock("https://issuer.example", date, 1029).status == status
    assert check_clock("https://issuer.example", formatdate(1000, usegmt=True), 900).status == "warn"
