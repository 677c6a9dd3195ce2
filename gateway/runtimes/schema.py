"""The schema of CodeInterpreters and AgentRuntimes: the only definition of their fields.

It is a structural OpenAPI v3 schema, as Kubernetes requires. crd.py makes CustomResourceDefinitions of it, and
validation.py applies it to local manifests, so both engines accept the same fields. Those outside of `spec.wakegate`
are AgentCube's, unchanged. schema_parts.py has the constructors.
"""

from __future__ import annotations

from gateway.core.model import HibernationMode, Kind, PoolMode
from gateway.core.units import MAX_CHARS
from gateway.runtimes.schema_parts import (
    DURATION,
    EXPECTED,
    INT_OR_STRING,
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

GROUP, VERSION = "runtime.agentcube.volcano.sh", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MAX_TOOLS = 100
MAX_MOUNTS = 32
MAX_SCHEDULES = 20
MAX_SKILLS = 20
MAX_SECRETS, MAX_HOSTS = 32, 32


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
                    **_wakegate(),
                    "hibernation": choice(
                        [mode.value for mode in HibernationMode],
                        "What an idle session keeps: nothing, as it ends (off), its workspace, or its Python state too"
                        " (state, the default).",
                    ),
                    "checkpointInterval": duration(
                        "How often active sessions are copied; 0s: never. Without it as --checkpoint-interval says."
                    ),
                    "preload": list_of(text(), "Python modules that user code finds imported."),
                    "skills": list_of(_skill(), "Folders with a SKILL.md, each a tool.", maxItems=MAX_SKILLS),
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
                    **_wakegate(),
                    "source": text("The agent's files, seen read-only at /app; the local engine only."),
                    "invocation": _invocation(),
                    "schedules": _schedules(),
                },
                description="Wakegate's own fields; all are optional.",
            ),
        },
        required=["targetPort", "podTemplate", "sessionTimeout", "maxSessionDuration"],
    )


def _invocation() -> Schema:
    """How an agent is invoked, which invocation.py reads."""
    return object_of(
        {
            "session": text(
                "Where in a JSON body the name of the conversation is, such as session_id or metadata.conversation:"
                " requests with the same name go to the same session."
            ),
            "concurrency": {**whole_number(1, 1000), "description": "Tasks that run at a time.", "default": 20},
            "perSession": {**whole_number(1, 100), "description": "Those of one session.", "default": 1},
            "requests": {
                **whole_number(1, 100_000),
                "description": "Awaited requests, and WebSockets, that each gateway sends it at a time; more get 429.",
            },
            "requestsPerSession": {
                **whole_number(1, 10_000),
                "description": "Those of one session; further ones wait. By default the gateway's --slots-per-sandbox.",
            },
            "attempts": {**whole_number(1, 20), "description": "How often a task is tried.", "default": 3},
            "timeout": duration("How long one try of a task may take, at most 6h.", default="15m"),
        },
        description="How the agent is invoked.",
    )


def _schedules() -> Schema:
    """When an agent is asked something by itself, which schedules.py reads."""
    schedule = object_of(
        {
            "name": text("What it is called in tasks."),
            "cron": text("Minute, hour, day of month, month and day of week, such as 0 6 * * MON-FRI."),
            "timezone": text("Such as Europe/Berlin; UTC if absent."),
            "path": text("Below the agent's own path, with a query if need be; / if absent."),
            "body": {**any_object(), "description": "What the agent is sent, as JSON."},
        },
        required=["name", "cron"],
    )
    about = "When the agent is asked something by itself, as a task: once each, over all gateways."
    return list_of(schedule, about, maxItems=MAX_SCHEDULES)


def _wakegate() -> dict[str, Schema]:
    """The fields of spec.wakegate that both kinds have."""
    miss = {"type": "number", "minimum": 0, "maximum": 1, "exclusiveMinimum": True, "exclusiveMaximum": True}
    pool = {
        "mode": choice(
            [mode.value for mode in PoolMode],
            "predictive (the default once `pool` is there): sized by forecast; fixed: warmPoolSize;"
            " forecast-only: fixed, with the forecast shown.",
        ),
        "min": {**sandbox_count("Fewest warm sandboxes."), "default": 0},
        "max": sandbox_count("Most warm sandboxes; by default the larger of warmPoolSize and min."),
        "targetMissRate": {
            **miss,
            "description": "Share of claims that may find the pool empty.",
            "default": 0.01,
            EXPECTED: "a number between 0 and 1, e.g. 0.01",
        },
    }
    return {
        "pool": object_of(pool),
        "ports": list_of(
            {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}], EXPECTED: PORTS},
            "Ports of servers in the sandbox that clients may reach: 8000, or 9000-9100.",
        ),
        "publicPorts": list_of(
            {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}], EXPECTED: PORTS},
            "Those of them that a session may open to anybody when it is created.",
        ),
        "python": text("The environment of user code; the local engine only."),
        "tools": list_of(_tool(), "Tools for models, beside the built-in ones.", maxItems=MAX_TOOLS),
        "mounts": list_of(
            object_of(
                {
                    "source": text("A folder beside the manifest or below --runtime-sources; the local engine only."),
                    "claim": text("A PersistentVolumeClaim of the sandboxes' namespace; in a cluster only."),
                    "configMap": text("A ConfigMap of the sandboxes' namespace; in a cluster only."),
                    "target": text("Where sandboxes see it, e.g. /data."),
                    "readOnly": {"type": "boolean", "default": True},
                },
                required=["target"],
            ),
            "Data that every sandbox sees.",
            maxItems=MAX_MOUNTS,
        ),
        "egress": list_of(
            {PRESERVE: True},
            "What sandboxes may reach: `any`, a preset (pypi, npm, github, debian), a name, *.NAME, an address or a"
            " CIDR, each with :PORTS if need be, or a mapping with host, ports, methods and paths. In a cluster also"
            " `dns`, or an egress rule of a NetworkPolicy. Nothing else is reachable.",
        ),
        "secrets": list_of(_secret(), "Credentials that requests get outside of sandboxes.", maxItems=MAX_SECRETS),
        "maxResources": object_of(
            {
                "cpu": quantity("Cores."),
                "memory": quantity("Bytes."),
                "processes": whole_number(8, 1_000_000),
            },
            description="The most that a session may be resized to; without it, or without a field, no more than the"
            " limit itself.",
        ),
        "egressLimits": object_of(
            {
                "connections": whole_number(1, 65536),
                "bytes": quantity("Bytes that a session may move in all."),
                "rate": quantity("Bytes per second, both directions together."),
            },
            description="What each session may use of its egress.",
        ),
        "pod": object_of(
            {
                "spread": choice(["spread", "pack", "balanced"], "How pods lie over the nodes; by default as set."),
                "nodeSelector": text_map(),
                "tolerations": list_of(any_object()),
                "affinity": any_object(),
                "topologySpreadConstraints": list_of(any_object()),
                "schedulerName": text(),
                "queue": {
                    "type": "string",
                    "pattern": QUEUE,
                    "description": "Volcano's queue.",
                    EXPECTED: "a Queue's name: lower-case letters, digits, - and .",
                },
                "gang": {
                    **whole_number(1, 1000),
                    "description": "Warm sandboxes that Volcano places together, or none of them.",
                },
                "priorityClassName": text(),
                "runtimeClassName": text(),
                "dnsPolicy": text(),
                "dnsConfig": any_object(),
                "workspaceSize": quantity("sizeLimit of the workspace's emptyDir."),
            }
        ),
    }


QUEUE = "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"  # a name of Kubernetes, as Queues have it
PORTS = "a port (8000) or a range (9000-9100)"
TOOL_NAME = "up to 64 letters, digits, _ and -, and no built-in tool's name"


def _secret() -> Schema:
    """An entry of spec.wakegate.secrets, which secrets.py reads."""
    source = {
        "env": text("A variable of the gateway's environment; the local engine only."),
        "file": text("A file beside the manifest or below --runtime-sources; the local engine only."),
        "secret": text("A Kubernetes Secret beside the gateways, which its annotations lend; in a cluster only."),
        "key": text("The field of that Secret that has the value."),
    }
    return object_of(
        {
            "name": text("The variable in which sandboxes have a placeholder."),
            "hosts": list_of(text(), "Names, or *.NAME, each with :PORT if it is not 443.", maxItems=MAX_HOSTS),
            "header": text("The header that has the value, such as X-Api-Key."),
            "bearer": {"type": "boolean", "description": "The value is in `Authorization: Bearer`."},
            "basic": text("The user of `Authorization: Basic`, whose password is the value."),
            "query": text("The parameter of the query that has the value."),
            "from": object_of(source, description="Where the gateway reads the value."),
        },
        required=["name", "hosts", "from"],
    )


def _tool() -> Schema:
    """An entry of spec.wakegate.tools, which tools.py parses."""
    name = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", EXPECTED: TOOL_NAME}  # as OpenAI and Anthropic
    about = {"type": "string", "minLength": 1, "maxLength": 4096, EXPECTED: "text that tells a model what it does"}
    function = {"function": text(), "file": text(), "source": text()}
    return object_of(
        {
            "name": name,
            "description": about,
            "parameters": {**any_object(), EXPECTED: "a JSON schema with type: object"},
            "command": list_of(
                {**nul_free_text(), EXPECTED: "a list of words, the program first"},
                minItems=1,
                **{EXPECTED: "a list of words, the program first"},
            ),
            "python": object_of(
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


def _skill() -> Schema:
    """An entry of spec.wakegate.skills, which skills.py reads."""
    return object_of(
        {
            "source": text("A folder beside the manifest or below --runtime-sources; the local engine only."),
            "kept": {"type": "boolean", "description": "One sandbox for all calls of a session."},
            "limits": object_of({"cpu": quantity(), "memory": quantity(), "processes": whole_number(8, 1_000_000)}),
            "egress": list_of({PRESERVE: True}, "What its scripts may reach; without it nothing."),
            "timeout": {
                INT_OR_STRING: True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "pattern": DURATION,
                "maxLength": MAX_CHARS,
                EXPECTED: "a duration above zero, at most 1h",
            },
        },
        required=["source"],
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
