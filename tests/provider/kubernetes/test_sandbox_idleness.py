"""Two gateways route to the same Sandboxes: one wake, none suspended under a request, and one gateway is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from gateway.provider.kubernetes.routed_objects import IN_USE_UNTIL, read
from tests.support.kube.sandbox_controllers import NAMESPACE, SandboxControllers, controlled, router_flags
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

PROGRAM = "tests.support.kube.router_gateway"


@pytest.fixture(scope="module")
def controllers() -> Iterator[SandboxControllers]:
    """agent-sandbox's controllers on a cluster."""
    with controlled() as made:
        yield made


@pytest.fixture(scope="module")
def gateways(controllers: SandboxControllers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two, which share nothing but the cluster: what one of them uses, the other knows from the objects alone."""
    folder = tmp_path_factory.mktemp("gateways")
    flags = router_flags(controllers, folder)
    with ExitStack() as stack:
        yield [stack.enter_context(serve(folder / name, *flags, program=PROGRAM)) for name in ("one", "two")]


def to(name: str) -> dict[str, str]:
    """The header fields that clients send for a Sandbox."""
    return {"x-sandbox-id": name, "x-sandbox-namespace": NAMESPACE}


def in_use_until(controllers: SandboxControllers, name: str) -> str:
    """What gateways have written; empty if nothing."""
    return str(controllers.look(name)["metadata"].get("annotations", {}).get(IN_USE_UNTIL, ""))


def test_two_gateways_wake_a_sandbox_once(gateways: list[Server], controllers: SandboxControllers) -> None:
    """Requests come to both at the same time; all are answered by its pod."""
    controllers.create("shared", mode="Suspended")
    before = controllers.patches
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda n: gateways[n % 2].client.get("/", headers=to("shared")), range(20)))
    assert [reply.status_code for reply in replies] == [200] * 20
    # Both may ask at once; the API server lets one through. Each asks once per version that it knows: as it was made,
    # and as its controller has reported it to be suspended, which may come between.
    assert controllers.patches - before <= 4
    assert controllers.modes.count(("shared", "Running")) == 1
    assert controllers.pods["shared"].requests == 20


def test_idle_sandbox_is_suspended_but_never_under_a_request(
    gateways: list[Server], controllers: SandboxControllers
) -> None:
    """A request that lasts longer than the idle timeout keeps it, whichever gateway has it; the next one wakes it."""
    controllers.create("idle", **{"idle-timeout": "2s"})
    wait_until(lambda: controllers.is_ready("idle"), "it runs")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(gateways[1].client.get("/held", headers=to("idle"))))
    asking.start()
    pod = controllers.pods["idle"]
    wait_until(lambda: pod.under_way, "the request is at the pod")
    seen: set[str] = set()

    def written() -> int:
        seen.add(in_use_until(controllers, "idle"))
        return len(seen)

    # Written once a second: with the fourth, three have passed, and it was to be suspended after two.
    wait_until(lambda: written() >= 4, "more than its idle timeout has passed")
    assert ("idle", "Suspended") not in controllers.modes
    controllers.cluster.call(pod.released.set)
    asking.join()
    assert answers[0].json() == {"pod": "idle"}
    wait_until(lambda: ("idle", "Suspended") in controllers.modes, "it is suspended")
    assert gateways[0].client.get("/", headers=to("idle")).status_code == 200
    assert [mode for name, mode in controllers.modes if name == "idle"][:2] == ["Suspended", "Running"]
    controllers.delete("idle")


def test_gateway_that_is_killed_in_a_wake_leaves_it_to_the_others(
    gateways: list[Server], controllers: SandboxControllers, tmp_path: Path
) -> None:
    """Its change of the mode stands; the request at another gateway waits for the pod, and nothing is patched again."""
    controllers.pause(paused=True)
    controllers.create("orphaned", mode="Suspended")
    flags = router_flags(controllers, tmp_path)
    with serve(tmp_path / "killed", *flags, program=PROGRAM) as killed, ThreadPoolExecutor(2) as pool:
        lost = pool.submit(httpx.get, killed.url, headers=to("orphaned"), timeout=30)
        wait_until(lambda: ("orphaned", "Running") in controllers.modes, "it is being woken")
        killed.kill()
        assert isinstance(lost.exception(), httpx.HTTPError)
        waits = pool.submit(gateways[0].client.get, "/", headers=to("orphaned"))
        controllers.pause(paused=False)
        assert waits.result().status_code == 200
    assert controllers.modes.count(("orphaned", "Running")) == 1


@pytest.mark.parametrize(
    ("text", "seconds", "fault"),
    [
        ("15m", 900.0, ""),
        ("soon", None, "is not a duration"),
        ("1s", None, "the shortest is 2s"),
        ("9" * 70 + "s", None, "is not a duration"),
    ],
)
def test_idle_timeout_that_is_none_is_told(text: str, seconds: float | None, fault: str) -> None:
    """And does not suspend anything."""
    metadata = {"uid": "u", "resourceVersion": "1", "namespace": "n", "name": "x"}
    found = read({"metadata": {**metadata, "annotations": {"wakegate.io/idle-timeout": text}}})
    assert found is not None
    assert found.idle_timeout == seconds
    assert fault in found.fault


REFUSED = (
    "127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1", "fd00:ec2::254", "a.name",
)  # fmt: skip


@pytest.mark.parametrize(
    "status",
    [
        None, [], {"conditions": None}, {"conditions": [3, {"type": "Ready"}]}, {"conditions": "Ready"},
        {"conditions": [{"type": "Ready", "status": "True"}], "podIPs": None},
        {"conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "10.0.0.1"}, 7]},
        {"conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1}], "podIPs": ["10.0.0.1"]},
        *({"conditions": [{"type": "Ready", "status": "True"}], "podIPs": [address]} for address in REFUSED),
    ],
)  # fmt: skip
def test_status_of_any_shape_gives_no_address_to_dial(status: object) -> None:
    """Of an earlier generation, of no pod, or malformed: the Sandbox is not ready, and says why."""
    metadata = {"uid": "u", "resourceVersion": "1", "namespace": "n", "name": "x", "generation": 2}
    found = read({"metadata": metadata, "spec": {}, "status": status})
    assert found is not None
    assert (found.address, bool(found.why)) == ("", True)
    ready = {"conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}], "podIPs": ["192.0.2.1"]}
    good = read({"metadata": metadata, "spec": {}, "status": ready})
    assert good is not None
    assert good.address == "192.0.2.1"
