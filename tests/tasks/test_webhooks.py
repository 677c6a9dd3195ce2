"""Where webhooks are sent: the address that was checked, and none inside."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.egress.addresses import Address
from gateway.egress.resolver import ResolveError
from gateway.tasks.counts import TaskCounts
from gateway.tasks.model import Webhook
from gateway.tasks.webhooks import Webhooks, read_url
from gateway.testing import ManualClock
from tests.tasks.tasks import T0, ended, run, task


class Names:
    """A resolver that knows some names."""

    def __init__(self, **names: str) -> None:
        self._names = {name.replace("_", "."): value.split() for name, value in names.items()}

    async def resolve(self, name: str) -> list[Address]:
        """As in Resolver."""
        if name not in self._names:
            raise ResolveError(f"{name} has no address")
        return [ip_address(each) for each in self._names[name]]


def webhooks(*allowed: str, **names: str) -> Webhooks:
    networks = tuple(map(ip_network, allowed))
    return Webhooks(Names(**names), ManualClock(T0), TaskCounts(), lambda: 1.0, allowed=networks)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"])
async def test_a_name_that_leads_inside_is_refused_for_good(address: str) -> None:
    """Whatever its other addresses are; nothing is sent, and it is not tried again."""
    hook = webhooks(inside_example=f"192.88.99.1 {address}")
    one = ended(run(task(webhook=Webhook("https://inside.example/x")), T0), 200, T0)
    after = await hook.deliver(one)
    assert after.webhook is not None
    assert (after.webhook.state, after.due_at) == ("failed", float("inf"))
    assert "nothing is sent to" in after.webhook.error


async def test_an_operator_opens_networks_but_never_a_metadata_server() -> None:
    """What leads inside is refused when the task is made."""
    await webhooks("10.0.0.0/8").check("http://10.1.2.3/x")
    with pytest.raises(ValueError, match="webhook-allow"):
        await webhooks("10.0.0.0/8").check("http://192.168.1.1/x")
    with pytest.raises(ValueError, match="metadata"):
        await webhooks("0.0.0.0/0", "169.254.0.0/16").check("http://169.254.169.254/")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST.", "inside.example", "2130706433", "017700000001", "0177.0.0.1", "0x7f000001", "127.1",
        "127.0.0.1.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::10.0.0.1]",
        "[2002:7f00:1::]", "[fe80::1]", "[fd00::1]", "0", "0.0.0.0", "[::]", "169.254.169.254", "10.0.0.1.",
        "[::ffff:a9fe:a9fe]", "100.64.0.1", "224.0.0.1", "%31%32%37.0.0.1", "\u2460\u2461\u2466.0.0.1",
    ],
)  # fmt: skip
async def test_no_spelling_of_an_address_inside_is_taken(host: str) -> None:
    """By the rule of the delivery, but when the task is made, so that its client hears of it."""
    known = {"localhost": "127.0.0.1 ::1", "inside_example": "192.88.99.1 ::ffff:10.0.0.1"}
    with pytest.raises(ValueError):  # noqa: PT011 — each has a reason of its own
        await webhooks(**known).check(f"http://{host}:8080/x")


async def test_name_that_has_no_address_yet_is_taken() -> None:
    """It may get one until the task is over; each is looked at again then."""
    await webhooks(outside_example="192.88.99.1").check("https://outside.example/x")
    await webhooks().check("https://unknown.example/x")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "https:///x", "https://u:p@example.com/", "http://0x7f.1/", "http://127.1/",
        "https://a b/",
        "https://example.com/\r\nx", "https://ex\u00e4mple.com/", "https://example.com:99999/", "https://" + "a" * 3000,
        "http://[fe80::1%25eth0]/", "https://example.com/#x",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_webhook(url: str) -> None:
    """Is refused with a reason."""
    with pytest.raises(ValueError):  # noqa: PT011 — each has a reason of its own
        read_url(url)
