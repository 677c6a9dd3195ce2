"""--trusted-proxies: which addresses it names."""

from __future__ import annotations

import pytest

from gateway.core.errors import SettingsError
from gateway.core.proxies import read_proxies


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8", "*", "10.0.0.1;10.0.0.2"])
def test_setting_that_is_no_network_is_reported(text: str) -> None:
    """Else the fields of no proxy would be believed, or those of a wrong one."""
    with pytest.raises(SettingsError, match="--trusted-proxies"):
        read_proxies(text)


def test_peers_are_known_in_either_notation() -> None:
    """A dual-stack socket shows IPv4 peers in IPv6 form; a link-local peer has a zone."""
    proxies = read_proxies(" 10.0.0.7 ,fe80::/10,")
    assert proxies is not None
    for address, trusted in (
        ("10.0.0.7", True), ("::ffff:10.0.0.7", True), ("10.0.0.8", False), ("fe80::1%eth0", True), ("", False),
    ):  # fmt: skip
        assert proxies.trust(address) is trusted
    assert read_proxies(" , ") is None
