"""The schema of spec.wakegate: the fields that are Wakegate's own.

Entries of lists have a function each, named after the module that reads them.
"""

from __future__ import annotations

from gateway.core.model import PoolMode
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
    list_of,
    nul_free_text,
    object_of,
    quantity,
    sandbox_count,
    text,
    text_map,
    whole_number,
)

MAX_TOOLS = 100
MAX_MOUNTS = 32
MAX_SCHEDULES = 20
MAX_SKILLS = 20
MAX_SECRETS, MAX_HOSTS = 32, 32
QUEUE = "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"  # a name of Kubernetes, as Queues have it
PORTS = "a port (8000) or a range (9000-9100)"
TOOL_NAME = "up to 64 letters, digits, _ and -, and no built-in tool's name"


def invocation() -> Schema:
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


def schedules() -> Schema:
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


def wakegate_fields() -> dict[str, Schema]:
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


def skill() -> Schema:
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
