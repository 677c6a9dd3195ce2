"""What is added to the pod of an agent that was deployed from code, or of a skill: files that a gateway brings.

An init container of picod's image waits for each archive (picod/receive.py) and ends when all are unpacked. The first
of the pod's own containers sees them read-only. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.core.model import Kind, Runtime
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.pod import CODE_CONTAINER, KEYS_FOLDER, PICOD_PORT
from gateway.provider.kubernetes.pod_resources import with_limits
from picod import wire

Object = dict[str, Any]

# What `wakegate deploy` names where the agent has no image of its own: it runs on the python3 of sandboxes.
NO_IMAGE = "deployed-from-code"
VOLUME_BYTES = 9 << 30  # 4 GiB of packages, packed and unpacked at once (agents/environments.py), and room for blocks
_MAX_UNPACK_BYTES = 5 << 30
_KEYS = "wakegate-keys"
_OWN_IP = {"fieldRef": {"fieldPath": "status.podIP"}}


def add_code(spec: Object, runtime: Runtime, picod_image: str) -> None:
    """Have a PodSpec wait for the archives of `runtime.code`, if there are any."""
    if not runtime.code:
        return
    image = runtime.image or picod_image
    mounts = [{"name": _volume(index), "mountPath": folder} for index, (folder, _) in enumerate(runtime.code)]
    spec["initContainers"] = [_receiver(runtime, image, mounts), *(spec.get("initContainers") or ())]
    size = str(VOLUME_BYTES)
    spec["volumes"] = [
        *(spec.get("volumes") or ()),
        *({"name": each["name"], "emptyDir": {"sizeLimit": size}} for each in mounts),
        {"name": _KEYS, "configMap": {"name": names.KEYS_CONFIGMAP}},
    ]
    agent = spec["containers"][0]
    if agent.get("image") == NO_IMAGE:
        agent["image"] = image
    agent["volumeMounts"] = [*(agent.get("volumeMounts") or ()), *({**each, "readOnly": True} for each in mounts)]
    if runtime.key.kind is Kind.AGENT_RUNTIME:
        # The end of its log, where it has ended with an error: who deployed it may not read logs of the cluster.
        agent.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
        agent["env"] = [*_environment(runtime, agent), *(agent.get("env") or ())]


def _receiver(runtime: Runtime, image: str, mounts: list[Object]) -> Object:
    return {
        "name": CODE_CONTAINER,
        "image": image,
        "ports": [{"containerPort": PICOD_PORT, "protocol": "TCP"}],
        "env": [
            {"name": wire.ENV_AUDIENCE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": wire.ENV_KEYS_FILE, "value": f"{KEYS_FOLDER}/jwks.json"},
            {"name": "PICOD_MAX_UNPACK", "value": str(_MAX_UNPACK_BYTES)},
            {"name": wire.ENV_RECEIVE, "value": ",".join(f"{folder}={digest}" for folder, digest in runtime.code)},
        ],
        "resources": with_limits({}, VOLUME_BYTES),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [*mounts, {"name": _KEYS, "mountPath": KEYS_FOLDER, "readOnly": True}],
    }


def _environment(runtime: Runtime, agent: Object) -> Iterator[Object]:
    """Where it listens, which is the pod's address as no picod stands before it; and its packages."""
    given = {str(each.get("name")) for each in agent.get("env") or ()}
    if "AGENT_HOST" not in given:
        yield {"name": "AGENT_HOST", "valueFrom": _OWN_IP}
    for name, value in runtime.environment.items():
        if name not in given:
            yield {"name": name, "value": value}


def _volume(index: int) -> str:
    return f"wakegate-code-{index}"
