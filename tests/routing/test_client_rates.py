"""How often an address may come without a valid key."""

from __future__ import annotations

import pytest

from gateway.core.errors import RateLimitError
from gateway.routing.client_rates import BURST_S, MAX_ADDRESSES, ClientRates
from gateway.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


def refusals(rates: ClientRates, address: str, times: int) -> int:
    """How many of so many refused requests are beyond the rate."""
    beyond = 0
    for _ in range(times):
        try:
            rates.refused(address)
        except RateLimitError:
            beyond += 1
    return beyond


def test_address_is_slowed_down_beyond_its_rate(clock: ManualClock) -> None:
    """After a burst the rate; the error says when to come again, and that is enough."""
    rates = ClientRates(2.0, clock.monotonic)
    assert refusals(rates, "192.0.2.1", int(2 * BURST_S)) == 0
    with pytest.raises(RateLimitError, match=r"192\.0\.2\.1") as refused:
        rates.refused("192.0.2.1")
    assert refused.value.retry_after == 0.5
    assert refusals(rates, "192.0.2.2", 1) == 0
    clock.advance(0.5)
    assert refusals(rates, "192.0.2.1", 2) == 1


def test_addresses_of_one_host_are_one(clock: ManualClock) -> None:
    """An IPv6 host has 2**64 of them; an IPv4 address is the same through a socket of both families."""
    rates = ClientRates(1.0, clock.monotonic)
    for number in range(int(BURST_S)):
        rates.refused(f"2001:db8:1:2::{number}")
    assert refusals(rates, "2001:db8:1:2:ffff::9", 1) == 1
    assert refusals(rates, "2001:db8:1:3::1", 1) == 0
    assert refusals(rates, "192.0.2.1", int(BURST_S)) == 0
    assert refusals(rates, "::ffff:192.0.2.1", 1) == 1


def test_table_is_bounded(clock: ManualClock) -> None:
    """Who came longest ago is forgotten first; who keeps coming is not."""
    rates = ClientRates(1.0, clock.monotonic)
    refusals(rates, "192.0.2.1", 100)
    for number in range(MAX_ADDRESSES + 100):
        rates.refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        if number % 1000 == 0:
            refusals(rates, "192.0.2.1", 1)
    assert len(rates) == MAX_ADDRESSES
    assert refusals(rates, "192.0.2.1", 1) == 1


@pytest.mark.parametrize(("rate", "address"), [(0.0, "192.0.2.1"), (1.0, "")])
def test_no_rate_and_no_address_limit_nothing(clock: ManualClock, rate: float, address: str) -> None:
    """A rate of 0 turns it off; a client on a unix socket has no address."""
    assert refusals(ClientRates(rate, clock.monotonic), address, 1000) == 0
