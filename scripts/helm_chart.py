"""Write manifests/helm/wakegate, the Helm chart, from overlays/production. `--check` fails if a file differs.

.venv/bin/python scripts/helm_chart.py [--check]

The overlay is the only source: what it builds, with some values replaced by expressions, are the templates, and those
values are the chart's defaults. So the chart renders what `kubectl kustomize` prints, which a test compares.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = ROOT / "manifests" / "overlays" / "production"
CLAIMS = ROOT / "manifests" / "sandbox-claims" / "access.yaml"
ROUTER = ROOT / "manifests" / "sandbox-router" / "access.yaml"
CHART = ROOT / "manifests" / "helm" / "wakegate"
HEAD = "# Made by scripts/helm_chart.py from manifests/overlays/production; change that one.\n"
NAMESPACE, SANDBOXES = "wakegate", "wakegate-sandboxes"
_OTHERS = ("kube-node-lease",)  # namespaces that every cluster has
# What the chart computes, so that it is not among the values of `settings`.
_COMPUTED = {
    "WAKEGATE_KUBE_GATEWAY_NAMESPACE": "{{ .Release.Namespace | quote }}",
    "WAKEGATE_KUBE_NAMESPACES": "{{ .Values.sandboxes.namespace | quote }}",
    "WAKEGATE_PICOD_IMAGE": "{{ .Values.sandboxes.image | quote }}",
}
NOTES = """\
Wakegate serves once these are there, in the namespace {{ .Release.Namespace }}:

  kubectl -n {{ .Release.Namespace }} create secret generic {{ .Values.connectionsSecret }} \\
    --from-literal=WAKEGATE_STORE=rediss://user:password@host:6379/0
  kubectl -n {{ .Release.Namespace }} create secret generic {{ .Values.adminKeySecret }} \\
    --from-literal=key=$(openssl rand -hex 32)

Name your bucket in settings.WAKEGATE_SNAPSHOTS.
Runtimes are applied in the namespace {{ .Values.sandboxes.namespace }}.
"""
_SCALAR = re.compile(r"'?@@(\d+)@@'?(?=\s|$)")
_BLOCK = re.compile(r"^( *)'@(WITH|YAML) ([\w.]+)@': ''$", re.MULTILINE)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _dump(document: Any) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True))


class _Templates:
    """Turns documents into templates. State: the expressions that stand for marks in the text."""

    def __init__(self) -> None:
        self._expressions: list[str] = []

    def mark(self, expression: str) -> str:
        """What to put in place of a scalar."""
        self._expressions.append(expression)
        return f"@@{len(self._expressions) - 1}@@"

    def text(self, document: Any) -> str:
        """The template's text."""
        text = _SCALAR.sub(lambda found: self._expressions[int(found[1])], _dump(document))
        return _BLOCK.sub(_block, text)


def _block(found: re.Match[str]) -> str:
    """`@YAML values@: ''` becomes the fields of a value, `@WITH name values@` a section that is left out if empty."""
    indent, kind, path = found[1], found[2], found[3]
    if kind == "YAML":
        return f"{indent}{{{{- toYaml .Values.{path} | nindent {len(indent)} }}}}"
    name = path.rpartition(".")[2]
    inner = f"{indent}  {{{{- toYaml . | nindent {len(indent) + 2} }}}}"
    return f"{indent}{{{{- with .Values.{path} }}}}\n{indent}{name}:\n{inner}\n{indent}{{{{- end }}}}"


def build() -> list[Any]:
    """What the overlay builds."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", OVERLAY], capture_output=True, check=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def documents() -> dict[Path, str]:
    """The content of each file of the chart."""
    sys.path.insert(0, str(ROOT))  # the script runs by its path, without the package installed
    from gateway import __version__

    built = build()
    values: dict[str, Any] = {}
    templates = _Templates()
    files = {
        CHART / "Chart.yaml": HEAD
        + _dump({
            "apiVersion": "v2", "name": "wakegate", "version": __version__, "appVersion": __version__,
            "description": "Scale-to-zero sandboxes for AI agents behind one HTTP gateway.", "type": "application",
            "kubeVersion": ">=1.28.0-0",
        }),
        CHART / "templates" / "NOTES.txt": NOTES,
    }  # fmt: skip
    made: dict[str, list[str]] = {}
    for document in built:
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "CustomResourceDefinition":
            files[CHART / "crds" / f"{document['spec']['names']['plural']}.yaml"] = HEAD + _dump(document)
        elif (kind, name) != ("Namespace", NAMESPACE):  # `helm install --create-namespace` makes that one
            text = templates.text(_parametrized(copy.deepcopy(document), templates, values))
            made.setdefault(kind.lower(), []).append(text)
    for kind, texts in made.items():
        files[CHART / "templates" / f"{kind}.yaml"] = HEAD + "---\n".join(texts)
    claims = _rights(CLAIMS, templates, "settings.WAKEGATE_KUBE_CLAIMS_TENANT", "sandboxes.namespace")
    router = _rights(ROUTER, templates, "sandboxRouter.namespace", "sandboxRouter.namespace")
    files[CHART / "templates" / "claims.yaml"] = HEAD + claims
    files[CHART / "templates" / "sandbox-router.yaml"] = HEAD + router
    values["sandboxRouter"] = {"namespace": ""}
    files[CHART / "values.yaml"] = HEAD + _dump(values)
    return files


def _rights(access: Path, templates: _Templates, condition: str, namespace: str) -> str:
    """Further rights of the gateway, where a value is set, in the namespace that another one names."""
    texts = []
    for document in yaml.safe_load_all(access.read_text()):
        placed = _placed(document, templates)
        placed["metadata"]["namespace"] = templates.mark(f"{{{{ .Values.{namespace} }}}}")
        texts.append(templates.text(placed))
    return f"{{{{- if .Values.{condition} }}}}\n" + "---\n".join(texts) + "{{- end }}\n"


def _parametrized(document: Any, templates: _Templates, values: dict[str, Any]) -> Any:
    """The document with expressions in place of what users set; their defaults go to `values`."""
    kind, name = document["kind"], document["metadata"]["name"]
    if kind == "ConfigMap" and name == "wakegate-settings":
        data = document["data"]
        values["sandboxes"] = {"namespace": SANDBOXES, "image": data["WAKEGATE_PICOD_IMAGE"]}
        values["settings"] = {key: value for key, value in data.items() if key not in _COMPUTED}
        document["data"] = {key: templates.mark(each) for key, each in _COMPUTED.items()} | {"@YAML settings@": ""}
    elif kind == "ServiceAccount":
        values["serviceAccount"] = {"annotations": {}}  # a cloud's identity, for the bucket
        document["metadata"]["@WITH serviceAccount.annotations@"] = ""
    elif kind == "Deployment":
        _parametrize_pod(document["spec"]["template"]["spec"], templates, values)
    elif kind == "HorizontalPodAutoscaler":
        spec = document["spec"]
        values["autoscaling"] = {each: spec[each] for each in ("minReplicas", "maxReplicas")}
        for each in values["autoscaling"]:
            spec[each] = templates.mark(f"{{{{ .Values.autoscaling.{each} }}}}")
    return _placed(document, templates)


def _parametrize_pod(pod: Any, templates: _Templates, values: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    values |= {"image": container["image"], "imagePullPolicy": container["imagePullPolicy"]}
    container["image"] = templates.mark("{{ .Values.image | quote }}")
    container["imagePullPolicy"] = templates.mark("{{ .Values.imagePullPolicy }}")
    values["resources"] = container["resources"]
    container["resources"] = {"@YAML resources@": ""}
    values |= {"connectionsSecret": "wakegate-connections", "adminKeySecret": "wakegate-admin-key"}
    for source in container["envFrom"]:
        if source.get("secretRef", {}).get("name") == values["connectionsSecret"]:
            source["secretRef"]["name"] = templates.mark("{{ .Values.connectionsSecret }}")
    for volume in pod["volumes"]:
        if volume.get("secret", {}).get("secretName") == values["adminKeySecret"]:
            volume["secret"]["secretName"] = templates.mark("{{ .Values.adminKeySecret }}")
    values |= {"nodeSelector": {}, "imagePullSecrets": []}
    pod["@WITH nodeSelector@"] = pod["@WITH imagePullSecrets@"] = ""


def _placed(value: Any, templates: _Templates, key: str = "") -> Any:
    """The same in the release's namespace, and the sandboxes' in the one that the values name."""
    if isinstance(value, dict):
        if value.get("kind") == "Namespace":  # the one that is not Helm's to make
            value["metadata"]["name"] = templates.mark("{{ .Values.sandboxes.namespace }}")
        return {each: _placed(inner, templates, each) for each, inner in value.items()}
    if isinstance(value, list):
        return [_placed(each, templates) for each in value]
    if key in ("namespace", "kubernetes.io/metadata.name") and value not in _OTHERS:
        return templates.mark("{{ .Release.Namespace }}" if value == NAMESPACE else "{{ .Values.sandboxes.namespace }}")
    return value


def main() -> int:
    """Write the files, or compare them with --check. Returns the exit status, 1 for a difference."""
    status = 0
    wanted = documents()
    stale = {path for path in CHART.rglob("*") if path.is_file()} - wanted.keys()
    for path, text in wanted.items():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} differs; run .venv/bin/python scripts/helm_chart.py")
            status = 1
    for path in stale:
        print(f"{path.relative_to(ROOT)} is no part of the chart any more; delete it")
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
