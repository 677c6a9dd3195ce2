"""Secrets that an operator lends: to which runtimes, for which hosts, and never another one."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import RuntimeKey, Secret
from gateway.egress.notation import Grant
from gateway.provider.kubernetes import connect, names
from gateway.provider.kubernetes.egress_secrets import LentSecrets, check_lent
from gateway.testing import ManualClock
from tests.support.kube.clusters import REAL, make_cluster
from tests.support.kube.served import enforce_roles, lend
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.redis_server import free_port

ONE, OTHER = "code-interpreters/team-a/one", "code-interpreters/team-b/two"
VALUE = "sk-0123456789"
HOST = "api.example.com"
SECRET = Secret("API_KEY", (HOST,), "bearer", secret="lent", key="k")


def marked(to: str | None, hosts: str | None) -> dict[str, Any]:
    """A Secret's annotations; None: without one."""
    notes = {names.LENT_TO: to, names.LENT_FOR: hosts}
    return {"metadata": {"annotations": {name: text for name, text in notes.items() if text is not None}}}


@pytest.mark.parametrize(("to", "hosts", "runtime", "wanted"), [
    ("team-a/one", HOST, ONE, (HOST,)),
    ("team-c/x, team-a/*", f"*.example.net,{HOST}", ONE, (HOST,)),
    ("team-a/one", "*.example.com", ONE, (HOST, "*.example.com")),
    ("team-a/one", f"{HOST}:8443,{HOST}", ONE, (f"{HOST}:8443",)),
])  # fmt: skip
def test_annotations_lend(to: str, hosts: str, runtime: str, wanted: tuple[str, ...]) -> None:
    check_lent(marked(to, hosts), Secret("A", wanted, secret="lent", key="k"), runtime)


@pytest.mark.parametrize(("to", "hosts", "runtime", "wanted", "why"), [
    (None, HOST, ONE, (HOST,), "has no team-a/one"),
    ("", HOST, ONE, (HOST,), "has no team-a/one"),
    ("team-a/one", HOST, OTHER, (HOST,), "has no team-b/two"),
    ("*/*", HOST, ONE, (HOST,), "has no team-a/one"),
    ("*", HOST, ONE, (HOST,), "has no team-a/one"),
    ("team-a/one", None, ONE, (HOST,), f"not lent for {HOST}"),
    ("team-a/one", HOST, ONE, (HOST, "evil.example.com"), "not lent for evil.example.com"),
    ("team-a/one", HOST, ONE, ("*.example.com",), "not lent for"),
    ("team-a/one", HOST, ONE, (f"{HOST}:8443",), "not lent for"),
    ("team-a/one", "any", ONE, (HOST,), "mistake"),
])  # fmt: skip
def test_whatever_annotations_do_not_say_is_not_lent(
    to: str | None, hosts: str | None, runtime: str, wanted: tuple[str, ...], why: str
) -> None:
    """Who writes a runtime names its hosts: without the second annotation the value could be had at any of them."""
    with pytest.raises(ValueError, match=why):
        check_lent(marked(to, hosts), Secret("A", wanted, secret="lent", key="k"), runtime)


@pytest.fixture
async def lent(tmp_path: Path) -> AsyncIterator[tuple[Cluster, LentSecrets, ManualClock]]:
    if REAL:
        pytest.skip("the real cluster's account gets no further rights in a test")
    async with make_cluster(hollow=True).running() as cluster:
        enforce_roles(cluster)
        api, clock = await connect(cluster.kubeconfig(tmp_path)), ManualClock()
        yield cluster, LentSecrets(api, "wakegate", clock), clock
        await api.aclose()


async def value(of: LentSecrets, secret: Secret = SECRET, runtime: str = ONE) -> str:
    """What requests of a runtime's sandboxes would get."""
    return (await of.values(Grant(runtime=runtime, secrets=(secret,))))(secret)


async def test_value_is_the_secrets_own_and_follows_it(
    lent: tuple[Cluster, LentSecrets, ManualClock], caplog: pytest.LogCaptureFixture
) -> None:
    """Replaced or taken back counts after 20 s; the log has each reason once, and no value."""
    cluster, secrets, clock = lent
    lend(cluster, "lent", {"k": VALUE, "short": "x"}, to="team-a/one", hosts=HOST)
    with caplog.at_level(logging.ERROR):
        assert await value(secrets) == VALUE
        assert await value(secrets, runtime=OTHER) == ""
        assert await value(secrets, Secret("B", (HOST,), secret="lent", key="short")) == ""
        assert await value(secrets, Secret("C", (HOST,), secret="lent", key="missing")) == ""

        def change(data: str, to: str) -> None:
            made = {**marked(to, HOST), "data": {"k": base64.b64encode(data.encode()).decode()}}
            cluster.objects.update(
                BY_PLURAL["secrets"], "wakegate", "lent",
                lambda secret: {**secret, **made, "metadata": {**secret["metadata"], **made["metadata"]}},
            )  # fmt: skip

        change("sk-replaced-1", "team-a/one")
        assert await value(secrets) == VALUE
        clock.advance(21)
        assert await value(secrets) == "sk-replaced-1"
        change("sk-replaced-1", "team-b/*")
        clock.advance(21)
        assert [await value(secrets) for _ in range(3)] == [""] * 3
    assert sum("is not lent to it" in line and "team-a/one" in line for line in caplog.messages) == 1
    assert "8 to 4096 characters, got 1" in caplog.text
    assert VALUE not in caplog.text


async def test_problems_are_of_what_is_missing_and_end_with_it(
    lent: tuple[Cluster, LentSecrets, ManualClock],
) -> None:
    """As statuses have them: each with its Secret, looked at once a minute, and none for what is lent."""
    cluster, secrets, clock = lent
    runtime = RuntimeKey("team-a", "one")
    lend(cluster, "lent", {"k": VALUE}, to="team-a/one", hosts=HOST)
    every = [SECRET, Secret("NO_FIELD", (HOST,), secret="lent", key="x"), Secret("LOCAL", (HOST,), env="A")]
    every.append(Secret("NO_ROLE", (HOST,), secret="other", key="k"))
    found = await secrets.problems(runtime, every)
    assert [text.partition(" ")[0] for text in found] == ["NO_FIELD:", "NO_ROLE:"]
    assert found[0] == "NO_FIELD: Secret wakegate/lent has no field x"
    asked = dict(cluster.api.counts)
    lend(cluster, "other", {"k": VALUE}, to="team-a/one", hosts=HOST)
    clock.advance(59)
    assert await secrets.problems(runtime, every) == found
    assert dict(cluster.api.counts) == asked
    clock.advance(2)
    assert await secrets.problems(runtime, every) == found[:1]


def away(folder: Path) -> Path:
    """A kubeconfig of a server that is not there."""
    (folder / "kubeconfig").write_text(
        re.sub(r"server: .*", f"server: http://127.0.0.1:{free_port()}", (folder / "kubeconfig").read_text())
    )
    return folder / "kubeconfig"


async def test_what_the_role_or_the_server_withholds_is_no_value(
    lent: tuple[Cluster, LentSecrets, ManualClock], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A Secret without a Role, one that is not there, the gateways' own; an outage takes back nothing that was lent."""
    cluster, secrets, clock = lent
    lend(cluster, "lent", {"k": VALUE}, to="team-a/one", hosts=HOST)
    lend(cluster, "gone", {"k": VALUE}, to="team-a/one", hosts=HOST)
    cluster.delete("secrets", "wakegate", "gone")
    for name in ("other", "gone", names.KEYS_SECRET, names.AUTHORITY_SECRET):
        assert await value(secrets, Secret(name, (HOST,), secret=name, key="k")) == ""
    for text in ("cannot be read: ", "gone is not there", "the gateways' own"):
        assert text in caplog.text
    assert await value(secrets) == VALUE
    asked = dict(cluster.api.counts)
    assert [await value(secrets) for _ in range(5)] == [VALUE] * 5
    assert dict(cluster.api.counts) == asked
    secrets._api = await connect(away(tmp_path))
    clock.advance(21)
    assert await value(secrets) == VALUE
    await secrets._api.aclose()
