"""What a runtime's status says in the cluster: pure, from what is declared and what its pool is.

Ready is True only when a sandbox of it became ready; everything that stands in the way has its reason. `status.ready`
and the condition are AgentCube's own fields; `status.pool` is ours, for the printer columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.model import PoolStatus
from gateway.provider.kubernetes.admission import Verdict

LOST, ACCEPTED, SECRETS = "SandboxLost", "Accepted", "SecretsReady"  # types of conditions
# What the API accepts as a reason (metav1.Condition), without `_`, `,` and `:`.
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]*")


def make_status(
    present: Mapping[str, Any],
    generation: int,
    problems: tuple[str, ...],
    pool: PoolStatus | None,
    now: str,
    images: Verdict | None = None,
    secrets: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The whole status. `present` is the one there now: times of transition stay as long as nothing changes.

    `pool` None: the runtime is not served (yet). `now` is an API time. `images`: what the rules for images say of it.
    `secrets`: what is wrong with the values that its sandboxes' requests get; None: they get none.
    """
    accepted = acceptance(problems, images)
    holds, reason, message = ready(pool) if accepted[0] == "True" else accepted
    condition = _condition(present, "Ready", holds, reason, message, generation, now)
    conditions = [condition, _condition(present, ACCEPTED, *accepted, generation, now)]
    if pool is not None:
        conditions.append(_lost(present, generation, pool, now))
    if secrets is not None:
        held, reason, message = ("False", "NotLent", "; ".join(secrets)) if secrets else ("True", "Lent", "")
        conditions.append(_condition(present, SECRETS, held, reason, message, generation, now))
    # A merge patch replaces a list whole, so conditions of other writers are sent along.
    mine = {each["type"] for each in conditions} | {SECRETS}
    others = [each for each in present.get("conditions") or [] if each.get("type") not in mine]
    status: dict[str, Any] = {"conditions": [*others, *conditions], "ready": holds == "True"}
    if pool is not None:
        status["pool"] = {"target": pool.target, "warm": pool.ready, "claimed": pool.claimed}
    return status


def _lost(present: Mapping[str, Any], generation: int, pool: PoolStatus, now: str) -> dict[str, Any]:
    """Whether sessions lost their sandboxes of late, and why the last of them did."""
    if pool.last_loss:
        return _condition(present, LOST, "True", "SandboxEnded", pool.last_loss, generation, now)
    return _condition(present, LOST, "False", "NoneLost", "", generation, now)


def _condition(
    present: Mapping[str, Any], kind: str, holds: str, reason: str, message: str, generation: int, now: str
) -> dict[str, Any]:
    before: Mapping[str, Any] = next((each for each in present.get("conditions") or [] if each.get("type") == kind), {})
    return {
        "type": kind,
        "status": holds,
        "reason": reason,
        "message": message[:1024],
        "observedGeneration": generation,
        "lastTransitionTime": before.get("lastTransitionTime", now) if before.get("status") == holds else now,
    }


def acceptance(problems: tuple[str, ...], images: Verdict | None) -> tuple[str, str, str]:
    """The Accepted condition, whether the runtime may be served as it is declared: status, reason, message."""
    if problems:
        return "False", "InvalidSpec", "; ".join(problems)
    if images is not None and not images.settled:
        return "Unknown", "ImageUnverified", "its images are being verified"
    if images is not None and images.unverified:  # also of one that was refused before: it may have been signed since
        return "Unknown", "ImageUnverified", images.unverified
    if images is not None and images.refused:
        return "False", "ImageRefused", images.refused
    return "True", "Accepted", ""


def ready(pool: PoolStatus | None) -> tuple[str, str, str]:
    """The Ready condition of one that may be served: status, reason (one word), message."""
    # pool                                   Ready
    # None                                   Unknown  Starting
    # an error, none ready                   False    the error's first word
    # ready or claimed ones, or ever one     True     SandboxReady
    # none so far, target above 0            False    Starting
    # none so far, target 0                  Unknown  NoSandboxYet
    if pool is None:
        return "Unknown", "Starting", "no gateway has taken it up yet"
    if pool.last_error and not pool.ready:
        return "False", _word(pool.last_error), pool.last_error
    if pool.ready or pool.claimed or pool.lead_time_p50 is not None:
        problem = f"; some cannot start: {pool.last_error}" if pool.last_error else ""
        return "True", "SandboxReady", f"{pool.ready} of {pool.target} warm, {pool.claimed} claimed{problem}"
    if pool.target:
        return "False", "Starting", f"none of {pool.target} sandboxes is ready yet"
    return "Unknown", "NoSandboxYet", "its pool is empty, and no sandbox has been asked for"


def _word(error: str) -> str:
    """The first word of a failure as a reason: `ImagePullBackOff: ...`, `FailedCreate: pods ... exceeded quota`."""
    if "exceeded quota" in error:
        return "QuotaExceeded"
    found = _REASON.match(error)
    return found[0] if found and error[found.end() : found.end() + 1] == ":" else "StartFailed"
