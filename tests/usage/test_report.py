"""Reports: grouping, costs, CSV; and the file of prices."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import BadRequestError, SettingsError
from gateway.core.usage import Quantity, UsageKey
from gateway.usage import report as reports
from gateway.usage.prices import Prices, Rates, load_prices
from gateway.usage.report import Report, as_csv

HOUR = 1_699_999_200
RUNTIME = "code-interpreters/default/r"
PRICES = """
currency = "EUR"
vcpu_hour = 0.05
gib_hour = 0.01
stored_gib_month = 0.73
million_requests = 2

[runtimes."default/gpu"]
gpu_hour = 3
"""


def key(hour: int = HOUR, tenant: str = "acme", runtime: str = RUNTIME, size: str = "2cpu-4096Mi") -> UsageKey:
    return UsageKey(hour, tenant, runtime, size, "")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return path


def test_groups_sum_their_rows_whatever_else_differs() -> None:
    """Two tenants over two days: a group per tenant and day, in order; allocated amounts follow each row's size."""
    report = Report(("tenant", "day"), None)
    report.add(key(), {Quantity.SANDBOX_SECONDS: 10.0, Quantity.REQUESTS: 2.0})
    report.add(key(size="1cpu-1024Mi-1gpu"), {Quantity.SANDBOX_SECONDS: 5.0})
    report.add(key(HOUR + 86400), {Quantity.STORED_BYTE_SECONDS: 7200.0})
    report.add(key(tenant="zeta"), {Quantity.CPU_SECONDS: 1.25})
    rows = list(report.rows())

    assert [(row["tenant"], row["day"]) for row in rows] == [
        ("acme", "2023-11-14"), ("acme", "2023-11-15"), ("zeta", "2023-11-14"),
    ]  # fmt: skip
    first = rows[0]
    assert (first["sandboxSeconds"], first["vcpuSeconds"], first["gpuSeconds"]) == (15.0, 25.0, 5.0)
    assert (first["requests"], rows[1]["storedByteHours"], rows[2]["cpuSeconds"]) == (2, 2.0, 1.25)
    assert "cost" not in first


def test_costs_with_and_without_hibernation(tmp_path: Path) -> None:
    """Worked by hand: 2 cores and 4 GiB cost 0.14 an hour; two hours awake (one idle), ten hibernated with 1 GiB."""
    report = Report((), load_prices(written(tmp_path, PRICES)))
    report.add(
        key(),
        {
            Quantity.SANDBOX_SECONDS: 7200.0,
            Quantity.IDLE_SECONDS: 3600.0,
            Quantity.HIBERNATED_SECONDS: 36000.0,
            Quantity.STORED_BYTE_SECONDS: 36000.0 * (1 << 30),
            Quantity.REQUESTS: 500_000.0,
        },
    )
    report.add(key(tenant=""), {Quantity.WARM_SECONDS: 3600.0})
    (row,) = report.rows()

    assert row["cost"] == pytest.approx(0.28 + 0.01 + 1.0)
    assert row["costWithoutHibernation"] == pytest.approx(0.28 + 1.4 + 1.0)
    assert (row["idleCost"], row["warmPoolCost"]) == (pytest.approx(0.14), pytest.approx(0.14))


def test_price_of_a_runtime_replaces_that_of_all(tmp_path: Path) -> None:
    """What the runtime's table does not name stays the general price."""
    prices = load_prices(written(tmp_path, PRICES))

    assert prices.currency == "EUR"
    assert prices.of(RUNTIME) == Rates(vcpu_hour=0.05, gib_hour=0.01, stored_gib_month=0.73, million_requests=2.0)
    assert prices.of("agent-runtimes/default/gpu").gpu_hour == 3.0
    assert prices.of("agent-runtimes/default/gpu").vcpu_hour == 0.05


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vcpu_hour = ", "Invalid value"),
        ("cpu_hour = 1", "cpu_hour: unknown price; expected one of vcpu_hour"),
        ("vcpu_hour = -1", "vcpu_hour: expected a number from 0 on, got -1"),
        ("vcpu_hour = nan", "vcpu_hour: expected a number from 0 on, got nan"),
        ("vcpu_hour = '1'", "vcpu_hour: expected a number"),
        ("vcpu_hour = true", "vcpu_hour: expected a number"),
        ("currency = 1", "currency: expected text"),
        ("runtimes = 1", "runtimes: expected tables"),
        ("[runtimes.'r']", "runtimes.'r': expected namespace/name"),
        ("[runtimes.'default/r']\nx = 1", "runtimes.'default/r'.x: unknown price"),
    ],
)
def test_wrong_price_is_named_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    """A gateway with a file that it cannot use does not start, and says where the file is wrong."""
    with pytest.raises(SettingsError, match=r"prices\.toml") as refusal:
        load_prices(written(tmp_path, text))
    assert problem in str(refusal.value)


def test_file_of_prices_that_is_missing_is_named(tmp_path: Path) -> None:
    """So is one that is no text."""
    with pytest.raises(SettingsError, match="No such file"):
        load_prices(tmp_path / "absent.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="utf-8"):
        load_prices(tmp_path / "binary")


def test_csv_reads_back_and_runs_no_formula() -> None:
    """Quotes, commas and line ends survive; text that a spreadsheet would run is marked as text."""
    values = ['a"b,c\nd', "=1+1", "@SUM(A1)", "-2", "+3", "\t=x", "plain", -1.5]
    rows: list[dict[str, Any]] = [{"name": value} for value in values]
    read = list(csv.reader(io.StringIO(as_csv(["name"], rows).decode(), newline="")))

    assert [row[0] for row in read] == [
        "name", 'a"b,c\nd', "'=1+1", "'@SUM(A1)", "'-2", "'+3", "'\t=x", "plain", "-1.5",
    ]  # fmt: skip


def test_answer_with_too_many_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that an answer takes is bounded; rows of groups that are there still count."""
    monkeypatch.setattr(reports, "MAX_GROUPS", 2)
    report = Report(("tenant",), Prices())
    for tenant in ("a", "b", "a"):
        report.add(key(tenant=tenant), {Quantity.REQUESTS: 1.0})

    with pytest.raises(BadRequestError, match="more than 2 rows"):
        report.add(key(tenant="c"), {})
    assert [row["requests"] for row in report.rows()] == [2, 1]
