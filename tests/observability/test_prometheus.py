"""The alert rules and the dashboard in a real Prometheus: skipped without one (scripts/test-prometheus)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.prometheus import Prometheus, prometheus, promtool
from tests.support.serve import serve
from tests.support.waiting import wait_until

MONITORING = Path(__file__).parents[2] / "manifests" / "monitoring"
RULES = MONITORING / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
# What Grafana puts in: the intervals are those of a scrape each second.
VARIABLES = {"$__rate_interval": "10s", "$__range": "5m", "$runtime": ".*"}
MINUTES = re.compile(r"\[\d+m\]")


def test_each_alert_fires_on_what_it_is_for_and_is_silent_else(tmp_path: Path) -> None:
    """`promtool test rules` with series that a bad day makes, and with ones that look like it."""
    promtool("check", "rules", RULES)
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations")  # promtool would compare their text too, and that is for people to judge
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    cases = CASES.read_text()
    (tmp_path / "cases.yaml").write_text(cases.replace("[RULES]", "[alerts.yaml]"))
    promtool("test", "rules", tmp_path / "cases.yaml")


def test_each_alert_has_a_case_that_fires() -> None:
    """A rule that is added without one is found here, with or without a Prometheus."""
    tests = [each for test in yaml.safe_load(CASES.read_text())["tests"] for each in test["alert_rule_test"]]
    firing = {each["alertname"] for each in tests if each.get("exp_alerts")}
    assert firing == {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def expressions() -> dict[str, str]:
    """Those of the dashboard, as Grafana would send them, by panel."""
    found: dict[str, str] = {}
    panels: list[dict[str, Any]] = orjson.loads((MONITORING / "dashboard.json").read_bytes())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = MINUTES.sub("[10s]", text)
    return found


@pytest.mark.processes
def test_dashboard_is_answered_by_a_prometheus_that_scrapes_a_gateway(tmp_path: Path) -> None:
    """Each expression is taken, and shows something wherever the gateway exports its metrics; no alert's rule fails."""
    (tmp_path / "prices.toml").write_text('currency = "EUR"\nmillion_requests = 1000.0\n')
    flags = (
        "--usage-interval",
        "1s",
        "--prices",
        str(tmp_path / "prices.toml"),
        "--audit-log",
        str(tmp_path / "audit"),
    )
    with (
        serve(tmp_path / "state", *flags) as server,
        prometheus(tmp_path / "prometheus", server.url.removeprefix("http://"), RULES) as running,
    ):
        session = server.session()

        def all_shown() -> bool:
            server.run(session, "true")
            return not empty(running, exported(server.client.get("/metrics").text))

        wait_until(all_shown, "each panel shows something")
        wait_until(
            lambda: all(rule["health"] == "ok" for rule in running.rules().values()), "each alert's rule is evaluated"
        )
        assert {rule["name"] for rule in running.rules().values() if rule["state"] == "firing"} == set()


def exported(text: str) -> set[str]:
    """The names of all samples of a scrape."""
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def empty(running: Prometheus, known: set[str]) -> list[str]:
    """The panels whose metrics are exported, and which show nothing."""
    return [
        panel
        for panel, expression in expressions().items()
        if not running.ask(expression) and set(re.findall(r"\b(?:wakegate|process)_[a-z_]+", expression)) <= known
    ]
