"""A pod as the cache keeps it: the few facts that decisions rest on, read from the API's JSON. Pure.

10,000 pods as JSON are some hundred megabytes, as these records some ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from gateway.core.model import Endpoint, Kind, RuntimeKey, Sandbox, SandboxId, SessionId, StartKind
from gateway.provider.kubernetes import names

PICOD_PORT = 8080
PICOD_CONTAINER = "picod"
CODE_CONTAINER = "wakegate-code"  # the init container that waits for an agent's files (code.py)
KEYS_FOLDER = "/run/wakegate/keys"

_STARTS = {each.value: each for each in StartKind}

# ErrImagePull is not here: it comes with the first failed pull, and ImagePullBackOff once the kubelet has tried again.
# A container that waits for one of these will not start by waiting longer.
_MAX_PRINTED, _PRINTED_LINES = 2000, 3  # characters and lines of a container's log, in the reason for its end
_FATAL_REASONS = {
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "CrashLoopBackOff",
    "RunContainerError",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of ours. Times are epoch seconds."""

    uid: str
    namespace: str
    name: str
    version: str  # resourceVersion
    runtime: RuntimeKey
    claimed: bool
    session: str  # "" while warm
    claim: str
    start: StartKind
    template: str
    ip: str
    port: int
    ready: bool
    deleting: bool
    victim: bool
    created_at: float
    started_at: float  # activeDeadlineSeconds counts from here
    node: str
    problem: str  # why it cannot get ready, for people; "" while it may
    ended: str  # why the whole pod ended; "" while it lives
    restarted: str  # why picod ended since the claim, and was started again by the kubelet; "" when it did not
    restarts: int
    disruption: str = ""  # why it is being deleted, where the cluster says so: an eviction, a drain, a preemption
    unexplained: bool = False  # it ended, and its status gives no reason: perhaps an event does
    awaits: tuple[str, ...] = ()  # digests of files that its init container is waiting for just now
    node_away: bool = False  # its node has stopped reporting; what runs there may go on, or not

    @property
    def claimable(self) -> bool:
        """Warm, ready, and not about to go."""
        return self.ready and not (self.claimed or self.deleting or self.victim or self.ended) and bool(self.ip)

    @property
    def gone(self) -> str:
        """Why a claimed one counts as ended: what ran in it is lost, or will be in a moment. "" while it lives."""
        return self.ended or self.restarted or (self.disruption or "its pod was deleted" if self.deleting else "")

    @property
    def reachable(self) -> bool:
        """Its picod can be asked for files: also of a pod that is being evicted, also after a restart.

        The workspace is the pod's, not the container's. A lost node's pods are not ready any more.
        """
        return self.ready and bool(self.ip) and not self.ended

    def sandbox(self) -> Sandbox:
        """As the core sees it. Its id, and so the audience of its tokens, is the pod's UID."""
        return Sandbox(
            id=SandboxId(self.uid),
            runtime=self.runtime,
            endpoint=Endpoint(host=self.ip, port=self.port),
            start=self.start,
            created_at=self.created_at,
            session_id=SessionId(self.session) if self.claimed else None,
        )

    def as_deleting(self) -> Pod:
        """The same after a delete that was accepted."""
        return replace(self, deleting=True, ready=False)


def _number(notes: Mapping[str, str], name: str) -> int:
    """A number in an annotation, 0 where there is none: whoever may write pods may write any text."""
    value = notes.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0


def read_pod(obj: Mapping[str, Any]) -> Pod | None:
    """The record of a pod; None if it is not one of a runtime's."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    name = notes.get(names.RUNTIME)
    kind = next((each for each in Kind if each.singular == labels.get(names.KIND)), None)
    if name is None or kind is None:
        return None
    claimed = labels.get(names.POOL) == names.CLAIMED
    container = _picod(status.get("containerStatuses") or [])
    restarts = int(container.get("restartCount") or 0)
    return Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=metadata["resourceVersion"],
        runtime=RuntimeKey(metadata["namespace"], name, kind, _number(notes, names.REVISION)),
        claimed=claimed,
        session=notes.get(names.SESSION_ID, ""),
        claim=notes.get(names.CLAIM, ""),
        start=_STARTS.get(notes.get(names.START, ""), StartKind.WARM),
        template=notes.get(names.TEMPLATE, ""),
        ip=status.get("podIP") or "",
        port=_number(notes, names.PORT) or PICOD_PORT,
        ready=_condition(status, "Ready").get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        victim=names.VICTIM in notes,
        created_at=read_time(metadata.get("creationTimestamp")),
        started_at=read_time(status.get("startTime")),
        node=spec.get("nodeName") or "",
        problem=_problem(status),
        ended=_ended(status, container),
        # A restart while warm is harmless, as nothing had run in it. After the claim, what ran in it is lost.
        restarted=_last_end(container) if claimed and restarts > _number(notes, names.RESTARTS) else "",
        restarts=restarts,
        disruption=_disruption(status),
        unexplained=status.get("phase") in ("Failed", "Succeeded") and not status.get("reason"),
        awaits=_awaited(notes, status),
        node_away=_is_node_away(spec, status),
    )


def read_time(text: str | None) -> float:
    """An API time (RFC 3339) as epoch seconds; 0 for none."""
    if not text:
        return 0.0
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()


def _picod(statuses: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The status of picod's container; of an AgentRuntime, whose pods have none of that name, the first."""
    # A webhook may add a container of its own (a service mesh's sidecar) and put it first.
    for status in statuses:
        if status.get("name") == PICOD_CONTAINER:
            return status
    return statuses[0] if statuses else {}


def _awaited(notes: Mapping[str, str], status: Mapping[str, Any]) -> tuple[str, ...]:
    """What its template's annotation names, while the init container runs that takes it."""
    for container in status.get("initContainerStatuses") or []:
        if container.get("name") == CODE_CONTAINER and (container.get("state") or {}).get("running"):
            return tuple(filter(None, notes.get(names.CODE, "").split(",")))
    return ()


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((each for each in status.get("conditions") or [] if each.get("type") == kind), {})


def _is_node_away(spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Whether the node controller, and not the kubelet, has said that the pod is not ready.

    It does so when the node has not reported for its grace period (40 to 50 s), and changes the condition Ready alone;
    a kubelet whose probe fails changes ContainersReady too. Rejected: to read Nodes or their Leases, which are the
    cluster's and would need rights beyond the namespaces of sandboxes.
    """
    if spec.get("readinessGates"):  # then Ready may be false for a reason that somebody else gives
        return False
    ready, containers = _condition(status, "Ready"), _condition(status, "ContainersReady")
    return (ready.get("status"), containers.get("status")) == ("False", "True")


def _problem(status: Mapping[str, Any]) -> str:
    """Image errors, crash loops and pods that fit on no node, in words."""
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in statuses:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _FATAL_REASONS:
            terminated = (container.get("lastState") or {}).get("terminated") or {}
            last, printed = terminated.get("reason"), _last_lines(terminated.get("message"))
            message = waiting.get("message") or ""
            ended = f"last ended with {last}" if last else ""
            return ": ".join(filter(None, [str(waiting["reason"]), ended, printed, message]))
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return f"Unschedulable: {scheduled.get('message') or 'no node fits'}"
    return ""


def _last_lines(message: Any) -> str:
    """The end of what a container has printed (code.py asks for it), on one line; it may be anything."""
    lines = [line.strip() for line in str(message or "")[-_MAX_PRINTED:].splitlines() if line.strip()]
    return "".join(each if each.isprintable() else "?" for each in " | ".join(lines[-_PRINTED_LINES:]))


def _disruption(status: Mapping[str, Any]) -> str:
    """The condition DisruptionTarget in words."""
    found = _condition(status, "DisruptionTarget")
    if found.get("status") != "True":
        return ""
    reason, message = found.get("reason") or "Disruption", found.get("message") or ""
    evicted = reason in ("EvictionByEvictionAPI", "TerminationByKubelet", "DeletionByTaintManager")
    # A node that stops reporting gets taints; its pods first become unready and are then evicted for the taints.
    unready = _condition(status, "Ready").get("status") != "True"
    lost = reason == "DeletionByPodGC" or (reason == "DeletionByTaintManager" and unready)
    words = "its node was lost" if lost else "its pod was evicted" if evicted else reason
    return f"{words}: {message}".removesuffix(": ")


def _ended(status: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    """Why the pod ended, in words; empty while it runs."""
    if status.get("phase") in ("Failed", "Succeeded"):
        terminated = (container.get("state") or {}).get("terminated") or {}
        reason = status.get("reason") or terminated.get("reason") or status["phase"]
        return _in_words(str(reason), status.get("message") or "", terminated.get("exitCode"))
    return ""


def _last_end(container: Mapping[str, Any]) -> str:
    """Why the container's earlier process ended."""
    last = (container.get("lastState") or {}).get("terminated") or {}
    return _in_words(str(last.get("reason") or "Error"), "", last.get("exitCode"))


def _in_words(reason: str, message: str, status: int | None) -> str:
    known = {
        "OOMKilled": "out of memory",
        "Evicted": "its pod was evicted",
        "DeadlineExceeded": "its maximum duration is over",
        "NodeLost": "its node was lost",
        "NodeShutdown": "its node shut down",
    }
    words = known.get(reason, f"exited with status {status}" if status is not None else reason)
    return f"{words}: {message}" if message else words
