"""Bodies of other products' APIs."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import COUNT, FLAG, METADATA, MOMENT, TEXT, Schema, array_of, nullable, obj, ref

_E2B_LISTED: dict[str, Schema] = {
    "sandboxID": TEXT,
    "templateID": TEXT,
    "alias": TEXT,
    "clientID": TEXT,
    "envdVersion": TEXT,
    "startedAt": MOMENT,
    "endAt": MOMENT,
    "state": {"enum": ["running", "paused"]},
    "cpuCount": COUNT,
    "memoryMB": COUNT,
    "diskSizeMB": COUNT,
    "metadata": METADATA,
}

COMPATIBLE: dict[str, Schema] = {
    "E2BError": obj("code message", code=COUNT, message=TEXT, error_code=TEXT),
    "E2BNewSandbox": obj(
        templateID=TEXT,
        timeout={"type": "number", "minimum": 0},
        metadata=METADATA,
        envVars={"type": "object", "additionalProperties": TEXT},
        autoPause=FLAG,
        autoResume=obj(enabled=FLAG),
        allow_internet_access=FLAG,
    ),
    "E2BTimeout": obj(timeout={"type": "number", "minimum": 0}, duration={"type": "number", "minimum": 0}),
    "E2BSandbox": obj(
        "sandboxID templateID clientID envdVersion",
        sandboxID=TEXT,
        templateID=TEXT,
        alias=TEXT,
        clientID=TEXT,
        envdVersion=TEXT,
        envdAccessToken=TEXT,
        trafficAccessToken=TEXT,
        domain=nullable(TEXT),
    ),
    "E2BListedSandbox": obj("sandboxID templateID clientID startedAt endAt state envdVersion", **_E2B_LISTED),
    "E2BSandboxDetail": obj(
        "sandboxID templateID clientID startedAt endAt state envdVersion",
        **_E2B_LISTED,
        domain=nullable(TEXT),
        lifecycle=obj(autoResume=FLAG, onTimeout={"enum": ["pause", "kill"]}),
        allowInternetAccess=FLAG,
    ),
    "E2BLogs": obj("logs", logs=array_of(obj("timestamp message level", timestamp=MOMENT, message=TEXT, level=TEXT))),
    "AgentScopeArguments": {"type": "object"},
    "AgentScopeAnswer": {"type": "object", "required": ["data"]},
    "AgentScopeError": obj("detail", detail=TEXT),
    "OpenTerminalError": obj("detail error", detail=TEXT, error=TEXT),
    "AgentSandboxError": obj("detail message", detail=TEXT, message=TEXT),
    "KubernetesStatus": obj(
        "kind status message reason code",
        kind=TEXT, apiVersion=TEXT, metadata={"type": "object"}, status=TEXT, message=TEXT, reason=TEXT,
        code={"type": "integer"},
    ),
    "JupyterError": obj("message", message=TEXT, reason=nullable(TEXT)),
    "JupyterVersion": obj("version", version=TEXT),
    "JupyterSpecs": obj("default kernelspecs", default=TEXT, kernelspecs={"type": "object"}),
    "JupyterNew": obj(name=nullable(TEXT), path=nullable(TEXT), kernel={"type": "object"}, type=TEXT),
    "JupyterKernel": obj(
        "id name execution_state", id=TEXT, name=TEXT, last_activity=TEXT, execution_state=TEXT, connections=COUNT
    ),
    "JupyterSession": obj("id kernel", id=TEXT, path=TEXT, name=TEXT, type=TEXT, kernel=ref("JupyterKernel")),
    "DifyRun": obj(
        "language code", language={"enum": ["python3", "nodejs"]}, code=TEXT, preload=TEXT, enable_network=FLAG
    ),
    "DifyRan": obj(
        "code message data", code={"type": "integer"}, message=TEXT, data=obj("stdout error", stdout=TEXT, error=TEXT)
    ),
    "DifyAnswer": obj("code message data", code={"type": "integer"}, message=TEXT, data={"type": "object"}),
    "DifyError": obj("code message", code={"type": "integer"}, message=TEXT, data={"type": "null"}),
}  # fmt: skip
