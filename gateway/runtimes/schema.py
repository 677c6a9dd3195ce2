"""The schema of CodeInterpreters and AgentRuntimes: the only definition of their fields.

It is a structural OpenAPI v3 schema, as Kubernetes requires. crd.py makes CustomResourceDefinitions of it, and
validation.py applies it to local manifests, so both engines accept the same fields. Those outside of `spec.wakegate`
are AgentCube's, unchanged; schema_wakegate.py has those inside, and schema_parts.py the constructors.
"""

from __future__ import annotations

from gateway.core.model import HibernationMode, Kind
from gateway.runtimes.schema_parts import (
    EXPECTED,
    PRESERVE,
    Schema,
    any_object,
    choice,
    duration,
    environment_variable,
    keyed_by,
    list_of,
    nul_free_text,
    object_of,
    quantity,
    sandbox_count,
    text,
    text_map,
    whole_number,
)
from gateway.runtimes.schema_wakegate import MAX_SKILLS, invocation, schedules, skill, wakegate_fields

GROUP, VERSION = "runtime.agentcube.volcano.sh", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


def document_schema(kind: Kind) -> Schema:
    """The OpenAPI schema of a whole custom resource: apiVersion, kind, metadata, spec, status."""
    spec = _agent_runtime() if kind is Kind.AGENT_RUNTIME else _code_interpreter()
    fields = {"apiVersion": text(), "kind": text(), "metadata": {"type": "object"}, "spec": spec, "status": _status()}
    return object_of(fields, required=["spec"])


def _code_interpreter() -> Schema:
    resources = object_of(
        {
            "limits": {"type": "object", "additionalProperties": quantity()},
            "requests": {"type": "object", "additionalProperties": quantity()},
            "claims": list_of(object_of({"name": text(), "request": text()}, required=["name"])),
        }
    )
    template = {
        "labels": text_map(),
        "annotations": text_map(),
        "runtimeClassName": text(),
        "image": text(),
        "imagePullPolicy": text(),
        "imagePullSecrets": list_of(
            object_of({"name": {"type": "string", "default": ""}}),
            **keyed_by("name"),
        ),
        "environment": list_of(environment_variable()),
        "command": list_of(text(), **{"x-kubernetes-list-type": "atomic"}),
        "args": list_of(text()),
        "resources": resources,
    }
    return object_of(
        {
            "ports": list_of(_target_port()),
            "template": object_of(template),
            "sessionTimeout": duration("Idle time after which a session hibernates, or ends.", default="15m"),
            "maxSessionDuration": duration("Longest life of a session.", default="8h"),
            "warmPoolSize": sandbox_count("Warm sandboxes to begin with; the size in mode fixed."),
            "authMode": choice(["picod", "none"], default="picod"),
            "wakegate": object_of(
                {
                    **wakegate_fields(),
                    "hibernation": choice(
                        [mode.value for mode in HibernationMode],
                        "What an idle session keeps: nothing, as it ends (off), its workspace, or its Python state too"
                        " (state, the default).",
                    ),
                    "checkpointInterval": duration(
                        "How often active sessions are copied; 0s: never. Without it as --checkpoint-interval says."
                    ),
                    "preload": list_of(text(), "Python modules that user code finds imported."),
                    "skills": list_of(skill(), "Folders with a SKILL.md, each a tool.", maxItems=MAX_SKILLS),
                    "codeContext": choice(["warm", "lazy", "off"], "When the first code context is started."),
                    "limits": object_of(
                        {
                            "processes": whole_number(8, 1_000_000),
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
    template = {"labels": text_map(), "annotations": text_map(), "spec": pod}
    return object_of(
        {
            "targetPort": list_of(_target_port(), minItems=1, **{EXPECTED: "at least one port"}),
            "podTemplate": object_of(template, required=["spec"]),
            "sessionTimeout": duration("Idle time after which a session ends.", default="15m"),
            "maxSessionDuration": duration("Longest life of a session.", default="8h"),
            "warmPoolSize": sandbox_count("Warm sandboxes to begin with; the size in mode fixed."),
            "wakegate": object_of(
                {
                    **wakegate_fields(),
                    "source": text("The agent's files, seen read-only at /app; the local engine only."),
                    "invocation": invocation(),
                    "schedules": schedules(),
                },
                description="Wakegate's own fields; all are optional.",
            ),
        },
        required=["targetPort", "podTemplate", "sessionTimeout", "maxSessionDuration"],
    )


def container() -> Schema:
    """The fields of an AgentRuntime's container that the local engine uses; it ignores all others."""
    action = {"path": text(), "port": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}
    action["port"][EXPECTED] = "a port, or the name of one"
    probe = {
        "httpGet": {**object_of(action), PRESERVE: True},
        "tcpSocket": {**object_of(action), PRESERVE: True},
        "exec": {**object_of({"command": list_of(nul_free_text())}), PRESERVE: True},
        "periodSeconds": whole_number(1, 3600),
        "timeoutSeconds": whole_number(1, 3600),
    }
    fields = {
        "image": text(),
        "command": list_of(nul_free_text()),
        "args": list_of(nul_free_text()),
        "workingDir": text(),
        "env": list_of(environment_variable()),
        "ports": list_of(any_object()),
        "resources": {
            **object_of(
                {each: {"type": "object", "additionalProperties": quantity()} for each in ("limits", "requests")}
            ),
            PRESERVE: True,
        },
        "readinessProbe": {**object_of(probe), PRESERVE: True},
    }
    return {**object_of(fields), PRESERVE: True}


def _target_port() -> Schema:
    path = {"type": "string", "description": "Requests whose path is this, or below it, go to this port."}
    fields = {
        "pathPrefix": path,
        "name": text(),
        "port": {
            "type": "integer",
            "format": "int32",
            "minimum": 1,
            "maximum": 65535,
            EXPECTED: "a port from 1 to 65535",
        },
        "protocol": choice(["HTTP", "HTTPS"], default="HTTP"),
    }
    return object_of(fields, required=["port", "protocol"])


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
    return object_of(
        {
            "conditions": list_of(object_of(condition, required=required), **keyed_by("type")),
            "ready": {"type": "boolean"},
            "pool": object_of(counts),
        }
    )
