"""The schema of CodeInterpreters and AgentRuntimes: the one place that says which fields there are.

It is a structural OpenAPI v3 schema as Kubernetes takes it. `scripts/crds.py` writes it into manifests/base/crds, and
validation.py applies it to manifests on this machine. AgentCube's fields are as AgentCube has them; what is below
`spec.wakegate` is ours. `x-expected` is for error messages ("expected ..."), and is left out of what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.model import HibernationMode, Kind, PoolMode
from gateway.core.units import MAX_CHARS

Schema = dict[str, Any]

GROUP, VERSION = "runtime.agentcube.volcano.sh", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
EXPECTED = "x-expected"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

MAX_WARM = 10_000
MAX_TOOLS = 100
# What parse_duration and parse_quantity take; Kubernetes' own pattern of quantities has a sign and exponents beside it.
DURATION = r"^(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$"
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[EPTGMk]i?|Ki|m|u|n)?$"


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind, as it is applied."""
    plural, lower = f"{kind.value.lower()}s", kind.value.lower()
    columns = [
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
        ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
        ("Warm", "integer", ".status.pool.warm"),
        ("Claimed", "integer", ".status.pool.claimed"),
        ("Target", "integer", ".status.pool.target"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
    names = {"kind": kind.value, "listKind": f"{kind.value}List", "plural": plural, "singular": lower}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [{"name": name, "type": type_, "jsonPath": path} for name, type_, path in columns],
        "schema": {"openAPIV3Schema": _without_expectations(document_schema(kind))},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def document_schema(kind: Kind) -> Schema:
    """The OpenAPI schema of a whole custom resource: apiVersion, kind, metadata, spec, status."""
    spec = _agent_runtime() if kind is Kind.AGENT_RUNTIME else _code_interpreter()
    fields = {"apiVersion": _text(), "kind": _text(), "metadata": {"type": "object"}, "spec": spec, "status": _status()}
    return _object(fields, required=["spec"])


def _code_interpreter() -> Schema:
    resources = _object(
        {
            "limits": {"type": "object", "additionalProperties": quantity()},
            "requests": {"type": "object", "additionalProperties": quantity()},
            "claims": _list(_object({"name": _text(), "request": _text()}, required=["name"])),
        }
    )
    template = {
        "labels": _texts_by_name(),
        "annotations": _texts_by_name(),
        "runtimeClassName": _text(),
        "image": _text(),
        "imagePullPolicy": _text(),
        "imagePullSecrets": _list(
            _object({"name": {"type": "string", "default": ""}}),
            **_keyed_by("name"),
        ),
        "environment": _list(environment_variable()),
        "command": _list(_text(), **{"x-kubernetes-list-type": "atomic"}),
        "args": _list(_text()),
        "resources": resources,
    }
    return _object(
        {
            "ports": _list(_target_port()),
            "template": _object(template),
            "sessionTimeout": duration("Idle time after which a session hibernates, or ends.", default="15m"),
            "maxSessionDuration": duration("Longest life of a session.", default="8h"),
            "warmPoolSize": _warm("Warm sandboxes to begin with; the size in mode fixed."),
            "authMode": _choice(["picod", "none"], default="picod"),
            "wakegate": _object(
                {
                    **_wakegate(),
                    "hibernation": _choice(
                        [mode.value for mode in HibernationMode],
                        "What an idle session keeps: nothing, as it ends (off), its workspace, or its Python state too"
                        " (state, the default).",
                    ),
                    "checkpointInterval": duration("How often active sessions are copied; without it never."),
                    "preload": _list(_text(), "Python modules that user code finds imported."),
                    "codeContext": _choice(["warm", "lazy", "off"], "When the first code context is started."),
                    "limits": _object(
                        {
                            "processes": _whole(8, 1_000_000),
                            "fileSize": quantity(),
                            "tmpSize": quantity(),
                            "workspaceSize": quantity(),
                        }
                    ),
                },
                description="Wakegate's own fields; all are optional.",
            ),
        },
        required=["template"],
    )


def _agent_runtime() -> Schema:
    pod = {"type": "object", PRESERVE: True, "description": "A PodSpec."}
    template = {"labels": _texts_by_name(), "annotations": _texts_by_name(), "spec": pod}
    return _object(
        {
            "targetPort": _list(_target_port(), minItems=1, **{EXPECTED: "at least one port"}),
            "podTemplate": _object(template, required=["spec"]),
            "sessionTimeout": duration("Idle time after which a session ends.", default="15m"),
            "maxSessionDuration": duration("Longest life of a session.", default="8h"),
            "warmPoolSize": _warm("Warm sandboxes to begin with; the size in mode fixed."),
            "wakegate": _object(
                {
                    **_wakegate(),
                    "source": _text("The agent's files, seen read-only at /app; the local engine only."),
                },
                description="Wakegate's own fields; all are optional.",
            ),
        },
        required=["targetPort", "podTemplate", "sessionTimeout", "maxSessionDuration"],
    )


def _wakegate() -> dict[str, Schema]:
    """What both kinds have below spec.wakegate."""
    miss = {"type": "number", "minimum": 0, "maximum": 1, "exclusiveMinimum": True, "exclusiveMaximum": True}
    pool = {
        "mode": _choice(
            [mode.value for mode in PoolMode],
            "predictive (the default once `pool` is there): sized by forecast; fixed: warmPoolSize;"
            " forecast-only: fixed, with the forecast shown.",
        ),
        "min": {**_warm("Fewest warm sandboxes."), "default": 0},
        "max": _warm("Most warm sandboxes; by default the larger of warmPoolSize and min."),
        "targetMissRate": {
            **miss,
            "description": "Share of claims that may find the pool empty.",
            "default": 0.01,
            EXPECTED: "a number between 0 and 1, e.g. 0.01",
        },
    }
    return {
        "pool": _object(pool),
        "ports": _list(
            {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}], EXPECTED: PORTS},
            "Ports of servers in the sandbox that clients may reach: 8000, or 9000-9100.",
        ),
        "python": _text("The environment of user code; the local engine only."),
        "tools": _list(_tool(), "Tools for models, beside the built-in ones.", maxItems=MAX_TOOLS),
        "egress": _list(
            {PRESERVE: True},
            "What sandboxes may reach: `dns`, a CIDR, or an egress rule of a NetworkPolicy. Nothing else is reachable.",
        ),
        "pod": _object(
            {
                "spread": _choice(["spread", "pack", "balanced"], "How pods lie over the nodes; by default as set."),
                "nodeSelector": _texts_by_name(),
                "tolerations": _list(_anything()),
                "affinity": _anything(),
                "topologySpreadConstraints": _list(_anything()),
                "schedulerName": _text(),
                "priorityClassName": _text(),
                "runtimeClassName": _text(),
                "dnsPolicy": _text(),
                "dnsConfig": _anything(),
                "workspaceSize": quantity("sizeLimit of the workspace's emptyDir."),
            }
        ),
    }


PORTS = "a port (8000) or a range (9000-9100)"
TOOL_NAME = "up to 64 letters, digits, _ and -, and no built-in tool's name"


def _tool() -> Schema:
    """An entry of spec.wakegate.tools; tools.py says what it means."""
    name = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", EXPECTED: TOOL_NAME}  # as OpenAI and Anthropic
    about = {"type": "string", "minLength": 1, "maxLength": 4096, EXPECTED: "text that tells a model what it does"}
    function = {"function": _text(), "file": _text(), "source": _text()}
    return _object(
        {
            "name": name,
            "description": about,
            "parameters": {**_anything(), EXPECTED: "a JSON schema with type: object"},
            "command": _list(
                {**_words(), EXPECTED: "a list of words, the program first"},
                minItems=1,
                **{EXPECTED: "a list of words, the program first"},
            ),
            "python": _object(
                function, required=["function"], **{EXPECTED: "a mapping with function, and file or source"}
            ),
            "parallel": {"type": "boolean"},
            "timeout": {
                INT_OR_STRING: True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "pattern": DURATION,
                "maxLength": MAX_CHARS,
                EXPECTED: "a duration above zero, at most 1h",
            },
        },
        required=["name", "description"],
    )


def container() -> Schema:
    """Of an AgentRuntime's container, what the local engine runs; all else is passed over."""
    action = {"path": _text(), "port": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}
    action["port"][EXPECTED] = "a port, or the name of one"
    probe = {
        "httpGet": {**_object(action), PRESERVE: True},
        "tcpSocket": {**_object(action), PRESERVE: True},
        "exec": {**_object({"command": _list(_words())}), PRESERVE: True},
        "periodSeconds": _whole(1, 3600),
        "timeoutSeconds": _whole(1, 3600),
    }
    fields = {
        "image": _text(),
        "command": _list(_words()),
        "args": _list(_words()),
        "workingDir": _text(),
        "env": _list(environment_variable()),
        "ports": _list(_anything()),
        "resources": {**_object({"limits": {"type": "object", "additionalProperties": quantity()}}), PRESERVE: True},
        "readinessProbe": {**_object(probe), PRESERVE: True},
    }
    return {**_object(fields), PRESERVE: True}


def environment_variable() -> Schema:
    """An EnvVar of Kubernetes' core/v1: a name, and a value or `valueFrom`."""
    value = {"type": "string", EXPECTED: "text without NUL; put it in quotes"}
    return _object({"name": _text(), "value": value, "valueFrom": _anything()}, required=["name"])


def duration(description: str = "", **more: Any) -> Schema:
    """A duration as text such as 15m, 1h30m or 0.5s; `more` are further keywords of the schema."""
    made = {"type": "string", "pattern": DURATION, "maxLength": MAX_CHARS, **more}
    return _described(made, description, "a duration above zero such as 15m or 8h")


def quantity(description: str = "") -> Schema:
    """A number, or text such as 512Mi."""
    made = {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    made |= {"pattern": QUANTITY, "maxLength": MAX_CHARS}
    return _described(made, description, "a quantity above zero such as 512Mi or 500m")


def _target_port() -> Schema:
    path = {"type": "string", "description": "Requests whose path is this, or below it, go to this port."}
    fields = {
        "pathPrefix": path,
        "name": _text(),
        "port": {
            "type": "integer",
            "format": "int32",
            "minimum": 1,
            "maximum": 65535,
            EXPECTED: "a port from 1 to 65535",
        },
        "protocol": _choice(["HTTP", "HTTPS"], default="HTTP"),
    }
    return _object(fields, required=["port", "protocol"])


def _status() -> Schema:
    condition: dict[str, Schema] = {
        "type": {"type": "string", "maxLength": 316},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "message": {"type": "string", "maxLength": 32768},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
    }
    required = ["lastTransitionTime", "message", "reason", "status", "type"]
    counts = {name: {"type": "integer"} for name in ("target", "warm", "claimed")}
    return _object(
        {
            "conditions": _list(_object(condition, required=required), **_keyed_by("type")),
            "ready": {"type": "boolean"},
            "pool": _object(counts),
        }
    )


def _object(properties: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), **more}


def _list(items: Schema, description: str = "", **more: Any) -> Schema:
    return _described({"type": "array", "items": items, **more}, description)


def _keyed_by(field: str) -> Schema:
    """Of a list whose entries are identified by that field when several parties write it (server-side apply)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


def _text(description: str = "") -> Schema:
    return _described({"type": "string"}, description)


def _words() -> Schema:
    return {"type": "string", EXPECTED: "text without NUL; put it in quotes"}


def _texts_by_name() -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}}


def _anything() -> Schema:
    return {"type": "object", PRESERVE: True}


def _choice(values: list[str], description: str = "", **more: Any) -> Schema:
    return _described({"type": "string", "enum": values, **more}, description)


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _warm(description: str) -> Schema:
    made = {"type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_WARM}
    return _described(made, description)


def _described(schema: Schema, description: str, expected: str = "") -> Schema:
    if description:
        schema["description"] = description
    if expected:
        schema[EXPECTED] = expected
    return schema


def _without_expectations(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_expectations(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_expectations(each) for key, each in value.items() if key != EXPECTED}
