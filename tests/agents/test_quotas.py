"""What an agent may ask for: refused with what is short, in the units in which it was set."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.agents.manifests import compiled, manifest_of
from gateway.agents.quotas import Machine, check_fit, check_reach
from gateway.core.errors import BadRequestError, QuotaForbiddenError
from gateway.core.model import Runtime
from gateway.identity.tenant_limits import parse_limits

MACHINE = Machine(4.0, 8 << 30, bookable_cpus=16.0, bookable_memory=32 << 30)  # whose operator overcommits


def agent(
    limits: dict[str, str], requests: dict[str, str] | None = None, *, warm: int = 1, egress: tuple[str, ...] = ()
) -> Runtime:
    resources = {"limits": limits, "requests": requests or {}}
    container = {"name": "agent", "image": "x", "command": ["python3"], "resources": resources}
    spec: dict[str, Any] = {
        "targetPort": [{"port": 8080, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [container]}},
        "warmPoolSize": warm,
        "wakegate": {"egress": list(egress)},
    }
    return compiled(manifest_of("default", "greeter", spec))


@pytest.mark.parametrize(
    ("limits", "tenant", "expected"),
    [
        ({"memory": "16Gi"}, {}, "memory: 16 GiB asked for, at most 8 GiB of this machine"),
        ({"cpu": "5"}, {}, "vcpu: 5 asked for, at most 4 cores of this machine"),
        ({"cpu": "1500m"}, {"vcpu": 2}, "vcpu: 3 asked for, at most 2 cores of this tenant, with 2 kept ready"),
        ({"memory": "1Gi"}, {"memory": "1Gi"}, "memory: 2 GiB asked for, at most 1 GiB of this tenant, with 2 kept"),
    ],
)
def test_what_is_short_is_said_in_its_own_unit(limits: dict[str, str], tenant: dict[str, Any], expected: str) -> None:
    """Of the machine, and of the tenant for all that are kept ready."""
    with pytest.raises(QuotaForbiddenError) as refused:
        check_fit(agent(limits, warm=2), parse_limits(tenant), MACHINE)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ({"cpu": "17"}, "vcpu: 17 asked for, at most 16 cores that may be requested of this machine"),
        ({"memory": "64Gi"}, "memory: 64 GiB asked for, at most 32 GiB that may be requested of this machine"),
    ],
)
def test_requests_that_the_machine_can_never_book_are_refused(requests: dict[str, str], expected: str) -> None:
    """Not accepted, and then never ready."""
    check_fit(agent({}, {"cpu": "16", "memory": "32Gi"}), parse_limits({}), MACHINE)
    with pytest.raises(QuotaForbiddenError) as refused:
        check_fit(agent({}, requests), parse_limits({}), MACHINE)
    assert expected in str(refused.value)


def test_names_that_a_clusters_agents_cannot_reach_are_refused() -> None:
    """A network is the NetworkPolicy's to open."""
    check_reach(agent({}, egress=("192.0.2.0/24",)))
    with pytest.raises(BadRequestError, match="reach no names"):
        check_reach(agent({}, egress=("api.example.com",)))
