"""The dashboard and the alert rules speak of metrics that the gateway exports, and of labels that those carry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.scripted import KEY, OpenScripted

ON_UVLOOP = True
MONITORING = Path(__file__).parents[2] / "manifests" / "monitoring"
SELECTOR = re.compile(r"\b((?:wakegate|process)_[a-z_]+)(?:\{([^}]*)\})?")
BY = re.compile(r"by \(([^)]*)\)")


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads((MONITORING / "dashboard.json").read_bytes())
    return document


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    variables = [each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return panels + variables + [rule["expr"] for rule in alert_rules()]


async def exported(open_gateway: OpenScripted, folder: Path) -> dict[str, set[str]]:
    """Label names by sample name, of a gateway that did something of everything that has labels."""
    prices = folder / "prices.toml"
    prices.write_text('currency = "EUR"\n')
    gateway, _ = await open_gateway(max_sandboxes=1, audit_log=str(folder / "audit.log"), prices=prices)
    session = await gateway.session()
    await gateway.gateway.sessions.hibernator.hibernate(session)
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}")
    counters = gateway.gateway.counters
    for calls in (counters.store, counters.keeper, counters.kubernetes):
        calls.failed("get", RuntimeError())
    with counters.kubernetes.timed("patch pods"):
        pass
    counters.snapshot_bytes["keep"].observe(1.0)
    gateway.gateway.task_counts.tries[str(KEY)] = gateway.gateway.task_counts.tasks[str(KEY), "dead"] = 1
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}")
    await gateway.ask("GET /v1/sessions HTTP/1.1\nhost: a")
    await gateway.gateway.usage.flush()  # which names the tenants
    found: dict[str, set[str]] = {}
    answer = await gateway.ask("GET /metrics HTTP/1.1\nhost: a")
    for family in text_string_to_metric_families(answer.body.decode()):
        found.setdefault(family.name + ("_total" if family.type == "counter" else ""), set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_dashboard_and_alerts_name_exported_metrics_with_their_labels(
    open_gateway: OpenScripted, tmp_path: Path
) -> None:
    """A renamed metric or label breaks this test before it breaks somebody's alert."""
    known = await exported(open_gateway, tmp_path)
    scraped = {"instance", "job", "le"}  # what Prometheus adds
    optional = {"wakegate_pool_lead_time_seconds": {"runtime", "quantile"}}  # shown once a start was measured
    optional |= {
        "wakegate_tasks": {"runtime", "state"},
        "wakegate_task_oldest_seconds": {"runtime"},
        "wakegate_task_oldest_queued_seconds": {"runtime"},
    }  # while any waits
    optional |= {f"wakegate_{name}": {"resource"} for name in ("booked", "bookable")}  # of an engine on one machine
    optional |= {f"wakegate_pool_forecast_{name}": {"runtime"} for name in ("level", "quantile")}
    for expression in expressions():
        labels: set[str] = set()
        for name, selectors in SELECTOR.findall(expression):
            assert name in known, f"{name} in {expression}"
            labels = known[name] | optional.get(name, set())
            for selector in filter(None, selectors.split(",")):
                assert re.split(r"[=!]", selector)[0].strip() in labels | scraped, f"{selector} in {expression}"
            for group in BY.findall(expression):
                assert {label.strip() for label in group.split(",")} <= labels | scraped, f"{group} in {expression}"


async def test_every_metric_of_ours_is_on_the_dashboard(open_gateway: OpenScripted, tmp_path: Path) -> None:
    """Every exported metric is used by the dashboard or an alert."""
    text = " ".join(expressions())
    for name in await exported(open_gateway, tmp_path):
        if name.startswith("wakegate_") and not name.endswith(("_created", "_count", "_sum", "_info", "_bucket")):
            assert name in text, name


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_alerts_have_summary_and_description(rule: dict[str, Any]) -> None:
    """Each has a severity, a summary for the page and a description for who opens it."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description"} <= rule["annotations"].keys()
    assert rule["expr"].count("(") == rule["expr"].count(")")
    assert rule["alert"] in (MONITORING.parents[1] / "docs" / "operations.md").read_text()


def test_dashboard_panels_do_not_overlap_and_have_a_description() -> None:
    """Its grid is 24 wide and every graph says what one sees."""
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
