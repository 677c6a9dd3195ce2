"""The laboratory's compiled port decides as the product does, target by target."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gateway.autoscaler.replay.traces import read_traces
from tests.autoscaler import port

pytestmark = pytest.mark.simulation
CASES = {
    "batches, followed by their own expert": ("synthetic:batches", "20000", "10"),
    "a timer, known by its even gaps": ("synthetic:timer", "12000", "10"),
    "rates that jump": ("synthetic:steps", "4000", "10"),
    "bursts that need larger tables": ("loadtest/traces/azure_llm_code.csv.gz", "200", "10"),
    "starts quicker than ticks, joined": ("loadtest/traces/azure_llm_code.csv.gz", "200", "0.25", "join"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_port_decides_as_the_product_does(case: str) -> None:
    """In plain Python, since to compile it takes a minute: what is compiled is this very code."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.autoscaler.port", *CASES[case]],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lead", "joins"),
    [
        ("loadtest/traces/twitter_volume_goog.csv.gz:days=3", 10.0, False),
        ("loadtest/traces/twitter_volume_goog.csv.gz:days=1", 0.25, True),
        ("loadtest/traces/elb_request_count.csv.gz:days=1", 60.0, False),
        ("loadtest/traces/azure_llm_code.csv.gz", 60.0, False),
        ("loadtest/traces/azure_functions_48.csv.gz", 10.0, False),
        ("loadtest/traces/azure_functions_48.csv.gz", 1.0, True),
    ],
)
def test_as_machine_code_it_does_so_over_days(name: str, lead: float, joins: bool) -> None:
    pytest.importorskip("numba")
    for trace in read_traces(name)[::5]:
        assert port.differences(trace, lead, joins=joins) == [], trace.name
