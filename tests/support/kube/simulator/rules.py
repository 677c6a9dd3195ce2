"""What an API server adds to, and refuses in, the objects it is given: defaults, validation, label selectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.core.units import parse_quantity
from tests.support.kube.schema import problems_of
from tests.support.kube.simulator.objects import ApiError, Kind, Object, merge

_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_MODELS = {
    "Pod": "V1Pod",
    "Deployment": "V1Deployment",
    "ConfigMap": "V1ConfigMap",
    "Secret": "V1Secret",
    "NetworkPolicy": "V1NetworkPolicy",
}


def check(kind: Kind, obj: Object) -> None:
    """Raise ApiError 422 or 400 for what the server would not take. Unknown fields count as wrong: they are typos."""
    name = obj["metadata"].get("name", "")
    wrong = [] if _NAME.fullmatch(name) else [f"metadata.name: Invalid value: {name!r}"]
    wrong += _labels("metadata.labels", obj["metadata"].get("labels"))
    if kind.kind in _MODELS:
        wrong += problems_of({key: value for key, value in obj.items() if key != "status"}, _MODELS[kind.kind])
    wrong += _variables(obj["spec"] if kind.kind == "Pod" else {})
    if kind.kind == "Deployment":
        template = obj["spec"]["template"]
        wrong += _variables(template["spec"])
        wrong += _labels("spec.template.metadata.labels", template["metadata"].get("labels"))
        if not matches(obj["spec"]["selector"].get("matchLabels", {}), template["metadata"].get("labels") or {}):
            wrong.append("spec.template.metadata.labels: `selector` does not match template `labels`")
        if template["spec"].get("restartPolicy", "Always") != "Always":
            wrong.append('spec.template.spec.restartPolicy: Unsupported value: supported values: "Always"')
        if "activeDeadlineSeconds" in template["spec"]:
            wrong.append("spec.template.spec.activeDeadlineSeconds: Forbidden")
    if wrong:
        raise ApiError(422, "Invalid", f'{kind.kind} "{name}" is invalid: {"; ".join(wrong)}')


def check_update(kind: Kind, old: Object, new: Object) -> None:
    """Raise ApiError 422 for changes of what cannot be changed."""
    check(kind, new)
    if kind.kind == "Deployment" and old["spec"]["selector"] != new["spec"]["selector"]:
        raise ApiError(422, "Invalid", "spec.selector: Invalid value: field is immutable")
    if kind.kind == "Pod":
        had, has = old["spec"].get("activeDeadlineSeconds"), new["spec"].get("activeDeadlineSeconds")
        if (had is not None and (has is None or has > had)) or (has is not None and not 0 < has < 2**31):
            raise ApiError(
                422, "Invalid", "spec.activeDeadlineSeconds: must be positive, and not more than the earlier one"
            )
        mutable = ("activeDeadlineSeconds", "nodeName")
        if _without(old["spec"], mutable) != _without(new["spec"], mutable):
            raise ApiError(422, "Invalid", "spec: Forbidden: pod updates may not change fields other than a few")


def with_containers(pod: Object, containers: list[Object]) -> Object:
    """A strategic merge of a pod's containers: by name, their lists of limits and requests merged too."""
    given = {each["name"]: each for each in containers}
    merged = [merge(each, given.pop(each["name"], {})) for each in pod["spec"]["containers"]]
    return {**pod, "spec": {**pod["spec"], "containers": [*merged, *given.values()]}}


def check_resize(kind: Kind, old: Object, new: Object) -> None:
    """Raise ApiError 422 for a resize that changes more than CPU and memory, or the quality-of-service class."""
    check(kind, new)

    def rest(pod: Object) -> list[Object]:
        return [_without(each, ("resources",)) for each in pod["spec"]["containers"]]

    if rest(old) != rest(new) or _without(old["spec"], ("containers",)) != _without(new["spec"], ("containers",)):
        raise ApiError(422, "Invalid", "spec: Forbidden: only cpu and memory resources are mutable")
    for before, after in zip(old["spec"]["containers"], new["spec"]["containers"], strict=True):
        if _is_guaranteed(before) != _is_guaranteed(after):
            raise ApiError(
                422, "Invalid", "metadata: Invalid value: Pod QOS Class may not change as a result of resizing"
            )
        given = after["resources"]
        for name, request in (given.get("requests") or {}).items():
            if name in (given.get("limits") or {}) and parse_quantity(request) > parse_quantity(given["limits"][name]):
                raise ApiError(422, "Invalid", f"spec.containers[0].resources.requests: must not exceed {name} limit")


def _is_guaranteed(container: Object) -> bool:
    given = container.get("resources") or {}
    return bool(given.get("limits")) and all(
        (given.get("requests") or given["limits"]).get(name) == given["limits"].get(name) for name in ("cpu", "memory")
    )


def fill(kind: Kind, obj: Object) -> None:
    """Set the API server's defaults in a new object, in place."""
    if kind.kind == "Pod":
        _fill_pod(obj["spec"])
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    elif kind.kind == "Deployment":
        spec = obj["spec"]
        spec.setdefault("replicas", 1)
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)
        strategy = spec.setdefault("strategy", {"type": "RollingUpdate"})
        if strategy["type"] == "RollingUpdate":
            strategy.setdefault("rollingUpdate", {"maxSurge": "25%", "maxUnavailable": "25%"})
        spec["template"].setdefault("metadata", {}).setdefault("creationTimestamp", None)
        _fill_pod(spec["template"]["spec"])
        obj.setdefault("status", {})
    elif kind.kind == "NetworkPolicy":
        rules_given = [*(obj["spec"].get("ingress") or []), *(obj["spec"].get("egress") or [])]
        for port in (port for rule in rules_given for port in rule.get("ports") or []):
            port.setdefault("protocol", "TCP")
    elif kind.kind in ("CodeInterpreter", "AgentRuntime"):
        spec = obj.setdefault("spec", {})
        spec.setdefault("sessionTimeout", "15m")
        spec.setdefault("maxSessionDuration", "8h")
        if kind.kind == "CodeInterpreter":
            spec.setdefault("authMode", "picod")


def _fill_pod(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("securityContext", {})
    spec.setdefault("enableServiceLinks", True)
    for container in spec.get("containers", []):
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("imagePullPolicy", "IfNotPresent")
        container.setdefault("resources", {})
        for port in container.get("ports", []):
            port.setdefault("protocol", "TCP")
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            if probe in container:
                for name, value in {
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3
                }.items():  # fmt: skip
                    container[probe].setdefault(name, value)
                if "httpGet" in container[probe]:
                    container[probe]["httpGet"].setdefault("scheme", "HTTP")
        for variable in container.get("env", []):
            if "fieldRef" in variable.get("valueFrom", {}):
                variable["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")
    for volume in spec.get("volumes", []):
        for source in ("configMap", "secret"):
            if source in volume:
                volume[source].setdefault("defaultMode", 420)


def matches(wanted: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether labels fulfil the matchLabels of a selector."""
    return all(labels.get(key) == value for key, value in wanted.items())


def selects(selector: str, labels: Mapping[str, Any]) -> bool:
    """A labelSelector as in a query: `a=b,c!=d,e,!f,g in (h,i)`."""
    for term in filter(None, re.split(r",(?![^(]*\))", selector)):
        term = term.strip()
        if found := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", term):
            values = [value.strip() for value in found[3].split(",")]
            holds = (labels.get(found[1]) in values) == (found[2] == "in")
        elif "!=" in term:
            key, value = term.split("!=")
            holds = labels.get(key) != value
        elif "=" in term:
            key, value = term.replace("==", "=").split("=")
            holds = labels.get(key) == value
        elif term.startswith("!"):
            holds = term[1:] not in labels
        else:
            holds = term in labels
        if not holds:
            return False
    return True


def fields_select(selector: str, obj: Mapping[str, Any]) -> bool:
    """A fieldSelector of equalities; the paths that the server knows for pods, and one that it knows for events."""
    for term in filter(None, selector.split(",")):
        path, value = term.replace("==", "=").split("=")
        if path not in ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "status.podIP",
                        "involvedObject.uid"):  # fmt: skip
            raise ApiError(400, "BadRequest", f"field label not supported: {path}")
        found: Any = obj
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, Mapping) else ""
        if found != value:
            return False
    return True


def _variables(spec: Mapping[str, Any]) -> list[str]:
    """The server takes a variable that is there twice, with a warning, and the last one wins: here it is a mistake."""
    wrong = []
    for container in spec.get("containers", []):
        named = [variable["name"] for variable in container.get("env", [])]
        wrong += [f"env: {name} is there twice" for name in sorted(set(named)) if named.count(name) > 1]
    return wrong


def _labels(path: str, labels: Mapping[str, Any] | None) -> list[str]:
    wrong = []
    for key, value in (labels or {}).items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.append(f"{path}: Invalid value: {key!r}")
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            wrong.append(
                f"{path}: Invalid value: {value!r}: a valid label is at most 63 of alphanumerics, '-', '_', '.'"
            )
    return wrong


def _without(spec: Mapping[str, Any], names: tuple[str, ...]) -> Object:
    return {key: value for key, value in spec.items() if key not in names}
