"""`resources` of a session, as clients write and read it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.resources import read_resources, resources_document
from gateway.core.errors import BadRequestError
from gateway.core.model import Resources


def test_amounts_are_numbers_or_quantities() -> None:
    """What is left out stays, null is the runtime's; all of it for the whole."""
    assert read_resources({"resources": {"cpu": "500m", "memory": "1.5Gi"}}) == {"cpus": 0.5, "memory": 3 << 29}
    assert read_resources({"resources": {"cpu": 2, "processes": 100, "memory": None}}) == {
        "cpus": 2.0,
        "processes": 100,
        "memory": None,
    }
    assert read_resources({"resources": None}) == {"cpus": None, "memory": None, "processes": None}
    assert resources_document(None) is None
    assert resources_document(Resources(cpus=0.5, processes=100)) == {"cpu": 0.5, "processes": 100}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "2Gi",
        {"disk": "1Gi"},
        {"x" * 100_000: 1},
        {"cpu": -1},
        {"cpu": 0},
        {"cpu": True},
        {"cpu": [1]},
        {"memory": "1.5"},
        {"memory": float("inf")},
        {"memory": 10**400},
        {"memory": "9" * 5000},
        {"memory": "1e300"},
        {"memory": "1.5Gi", "processes": 1.5},
    ],
)
def test_other_values_are_refused_in_few_words(value: Any) -> None:
    """Whatever a client sends."""
    with pytest.raises(BadRequestError, match="resources") as raised:
        read_resources({"resources": value})
    assert len(str(raised.value)) < 300
