"""The Helm chart, held to the overlay that it is made from.

Rendered by a reader of the few expressions that scripts/helm_chart.py writes, and by Helm itself where there is one
(`helm` on PATH, or HELM_BIN; `go install helm.sh/helm/v3/cmd/helm@v3.18.6` makes it).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kube.manifests import MANIFESTS, ROOT, built

CHART = MANIFESTS / "helm" / "wakegate"
HELM = os.environ.get("HELM_BIN") or shutil.which("helm")

_SECTION = r"^ *{{- (with|if) (?P<path>[\w.]+) }}\n(?P<body>.*?)^ *{{- end }}\n"
_FIELDS = r"^ *{{- toYaml (?P<path>[\w.]+) \| nindent (?P<indent>\d+) }}\n"
_SCALAR = r"{{ (?P<path>[\w.]+)(?P<quoted> \| quote)? }}"

Render = Callable[[str, Mapping[str, Any]], list[Any]]


def with_reader(namespace: str, changes: Mapping[str, Any]) -> list[Any]:
    """Fails on any expression that it does not know."""
    values = {**yaml.safe_load((CHART / "values.yaml").read_text()), **changes}

    def value(path: str) -> Any:
        if path == ".Release.Namespace":
            return namespace
        found: Any = values
        for name in path.removeprefix(".Values.").split("."):
            found = found.get(name)  # a value that is not there is empty, as for Helm
        return found

    def section(found: re.Match[str]) -> str:
        given = value(found["path"])
        return found["body"].replace("toYaml .", f"toYaml {found['path']}") if given else ""

    def fields(found: re.Match[str]) -> str:
        text = yaml.safe_dump(value(found["path"]), sort_keys=False)
        return textwrap.indent(text, int(found["indent"]) * " ")

    def scalar(found: re.Match[str]) -> str:
        text = str(value(found["path"]))
        return f'"{text}"' if found["quoted"] else text

    texts = [path.read_text() for path in CHART.glob("crds/*.yaml")]
    for path in CHART.glob("templates/*.yaml"):
        text = re.sub(_SECTION, section, path.read_text(), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(_FIELDS, fields, text, flags=re.MULTILINE)
        text = re.sub(_SCALAR, scalar, text)
        assert "{{" not in text, text
        texts.append(text)
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def with_helm(namespace: str, changes: Mapping[str, Any]) -> list[Any]:
    assert HELM is not None
    command = [HELM, "template", "wakegate", str(CHART), "-n", namespace, "--include-crds", "--kube-version", "1.34.0"]
    done = subprocess.run(
        [*command, "-f", "-"], input=yaml.safe_dump(dict(changes)).encode(), capture_output=True, check=True
    )
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.fixture(
    params=[with_reader, pytest.param(with_helm, marks=pytest.mark.skipif(HELM is None, reason="there is no helm"))]
)
def render(request: pytest.FixtureRequest) -> Render:
    made: Render = request.param
    return made


def by_name(documents: Iterable[Any]) -> dict[tuple[str, str, str], Any]:
    """By kind, namespace and name."""
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in documents}


def test_chart_is_what_the_overlay_makes_of_it() -> None:
    """Whoever changes a manifest is told to write the chart again."""
    script = Path(ROOT / "scripts" / "helm_chart.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_chart_renders_what_kustomize_builds(render: Render) -> None:
    """Object by object; the gateway's namespace is Helm's to make."""
    wanted = by_name(built("production"))
    del wanted["Namespace", "", "wakegate"]
    assert by_name(render("wakegate", {})) == wanted


def test_chart_grants_rights_to_claims_where_they_are_answered(render: Render) -> None:
    """As manifests/sandbox-claims does, in the namespace of the sandboxes."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    settings = {**values["settings"], "WAKEGATE_KUBE_CLAIMS_TENANT": "acme"}
    made = by_name(render("agents", {"settings": settings, "sandboxes": {"namespace": "boxes", "image": "x"}}))
    (role, binding) = yaml.safe_load_all((MANIFESTS / "sandbox-claims" / "access.yaml").read_text())
    assert made["Role", "boxes", "wakegate-claims"]["rules"] == role["rules"]
    subject = {**binding["subjects"][0], "namespace": "agents"}
    assert made["RoleBinding", "boxes", "wakegate-claims"]["subjects"] == [subject]
    assert made["ConfigMap", "agents", "wakegate-settings"]["data"]["WAKEGATE_KUBE_CLAIMS_TENANT"] == "acme"


def test_chart_grants_the_rights_of_a_router_where_one_is_wanted(render: Render) -> None:
    """As manifests/sandbox-router does, in the namespace whose Sandboxes are routed."""
    made = by_name(render("wakegate", {"sandboxRouter": {"namespace": "boxes-of-theirs"}}))
    (role, binding) = yaml.safe_load_all((MANIFESTS / "sandbox-router" / "access.yaml").read_text())
    assert made["Role", "boxes-of-theirs", "wakegate-router"]["rules"] == role["rules"]
    assert made["RoleBinding", "boxes-of-theirs", "wakegate-router"]["subjects"] == binding["subjects"]


def test_chart_goes_into_other_namespaces_with_other_values(render: Render) -> None:
    """No object, peer of a NetworkPolicy or setting keeps the overlay's namespaces. Leases of nodes have theirs."""
    changes = {
        "sandboxes": {"namespace": "boxes", "image": "registry.example/picod:2"},
        "serviceAccount": {"annotations": {"cloud/identity": "bucket"}},
        "nodeSelector": {"pool": "gateways"},
        "autoscaling": {"minReplicas": 5, "maxReplicas": 50},
    }
    made = by_name(render("agents", changes))
    assert {namespace for _, namespace, _ in made} == {"", "agents", "boxes", "kube-node-lease"}
    assert ("Namespace", "", "boxes") in made
    settings = made["ConfigMap", "agents", "wakegate-settings"]["data"]
    assert settings["WAKEGATE_KUBE_GATEWAY_NAMESPACE"] == "agents"
    assert settings["WAKEGATE_KUBE_NAMESPACES"] == "boxes"
    assert settings["WAKEGATE_PICOD_IMAGE"] == "registry.example/picod:2"
    assert made["ServiceAccount", "agents", "wakegate"]["metadata"]["annotations"] == {"cloud/identity": "bucket"}
    pod = made["Deployment", "agents", "wakegate"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gateways"}
    assert made["HorizontalPodAutoscaler", "agents", "wakegate"]["spec"]["maxReplicas"] == 50
    (binding,) = (each for key, each in made.items() if key[:2] == ("RoleBinding", "boxes"))
    assert binding["subjects"][0]["namespace"] == "agents"
    (peer,) = made["NetworkPolicy", "boxes", "wakegate-sandboxes"]["spec"]["ingress"][0]["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "agents"}
