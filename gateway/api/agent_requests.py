"""What requests about agents ask for, read from their bodies and queries, before anything is looked up.

Every function raises BadRequestError with the field's name, or PermissionDeniedError where the caller may not ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from gateway.agents import rollout
from gateway.agents.model import Agent
from gateway.agents.strategy import strategy_of
from gateway.core.errors import BadRequestError, ConflictError, PermissionDeniedError
from gateway.core.identity import current, is_tenant
from gateway.core.model import DEFAULT_TENANT, Kind, RuntimeKey

CHANGE_FIELDS = ("spec", "strategy", "reason", "bundle", "environment")
_CREATE_FIELDS = {"name", "namespace", "owner", "manifest", *CHANGE_FIELDS}
_LIST_FILTERS = ("phase", "owner", "namespace")
_PHASES = ("Pending", "Running", "Updating", "Stopped", "Failed")  # agent_json.phase_of
_MAX_LIST = 500
_MAX_REASON_CHARS = 500


def read_creation(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """The fields of a new agent and its spec, which is not checked yet; both may come as a whole manifest."""
    if unknown := sorted(body.keys() - _CREATE_FIELDS):
        raise BadRequestError(f"{str(unknown[0])[:64]}: unknown field; expected name, spec and strategy")
    manifest = body.get("manifest")
    if manifest is None:
        return body, body.get("spec")
    if not isinstance(manifest, Mapping) or "spec" in body:
        raise BadRequestError("manifest: expected an AgentRuntime as an object, and no spec beside it")
    metadata = manifest.get("metadata")
    if manifest.get("kind") != Kind.AGENT_RUNTIME or not isinstance(metadata, Mapping):
        raise BadRequestError("manifest: expected kind: AgentRuntime, with metadata")
    # Fields beside the manifest win, so that one file makes several agents.
    return {"name": metadata.get("name"), "namespace": metadata.get("namespace"), **body}, manifest.get("spec")


def check_change(body: Mapping[str, Any]) -> None:
    """Refuse fields that a change of an agent does not have."""
    if unknown := sorted(body.keys() - set(CHANGE_FIELDS)):
        raise BadRequestError(f"{str(unknown[0])[:64]}: cannot be changed; expected {', '.join(CHANGE_FIELDS)}")


def owner_of(body: Mapping[str, Any]) -> str:
    """The tenant that a new agent belongs to: the caller's, unless an administrator names another."""
    caller = current()
    owner = body.get("owner") or caller.tenant or DEFAULT_TENANT
    if not isinstance(owner, str) or not is_tenant(owner):
        raise BadRequestError(f"owner: expected a tenant, got {repr(owner)[:64]}")
    if owner != caller.tenant and not caller.sees_all_tenants:
        raise PermissionDeniedError("owner: an agent is its creator's tenant's; only an administrator may name another")
    return owner


def new_key(body: Mapping[str, Any], tenant: str, namespaces: Sequence[str] = ()) -> RuntimeKey:
    """The namespace and name of a new agent of a tenant. `namespaces`: those that there are; (): any."""
    own = _namespace_of(tenant, namespaces)
    namespace = body.get("namespace") or own
    if namespace != own and not current().sees_all_tenants:
        raise PermissionDeniedError(f"namespace: agents of this tenant are in {own}")
    key = agent_key(namespace, body.get("name"))
    if namespaces and namespace not in namespaces:
        raise BadRequestError(f"namespace: expected one of {', '.join(namespaces)} (--kube-namespaces)")
    return key


def agent_key(namespace: Any, name: Any) -> RuntimeKey:
    """The key of the runtime that an agent is."""
    for field, value in (("namespace", namespace), ("name", name)):
        if not isinstance(value, str) or not is_tenant(value):  # DNS labels, both
            raise BadRequestError(
                f"{field}: expected a DNS name of at most 63 characters (a-z, 0-9 and '-'), got {repr(value)[:64]}"
            )
    return RuntimeKey(namespace, name, Kind.AGENT_RUNTIME)


def asked_namespace(request: Request, namespaces: Sequence[str] = ()) -> str:
    """Where a request looks for the agent that its path names: `?namespace=`, else the caller's own."""
    return request.query_params.get("namespace") or _namespace_of(current().tenant or DEFAULT_TENANT, namespaces)


def _namespace_of(tenant: str, namespaces: Sequence[str]) -> str:
    """Each tenant has a namespace of its name, so that a name that is taken tells nothing of other tenants.

    In a cluster there are `namespaces` only: without its own a tenant's agents are in the first, beside others'.
    """
    return tenant if not namespaces or tenant in namespaces else namespaces[0]


def read_digest(body: Mapping[str, Any], name: str, old: str) -> str:
    """The digest of a bundle in field `name`; without the field `old`, and "" where it is null: none."""
    value = body.get(name, old) or ""
    if not isinstance(value, str) or (value and not (value.startswith("sha256:") and len(value) == 71)):
        raise BadRequestError(f"{name}: expected sha256: and 64 hexadecimal digits, got {repr(value)[:80]}")
    return value


def read_reason(body: Mapping[str, Any]) -> str:
    """Why its author makes a revision, in their words."""
    reason = body.get("reason") or ""
    if not isinstance(reason, str) or len(reason) > _MAX_REASON_CHARS:
        raise BadRequestError(f"reason: expected text of at most {_MAX_REASON_CHARS} characters")
    return reason


def read_move(body: Mapping[str, Any], *, in_cluster: bool) -> bool:
    """Whether sessions are moved without their files, which nothing can keep in a cluster. Raises ConflictError."""
    discard = body.get("discardFiles", False)
    if body.keys() - {"action", "discardFiles"} or not isinstance(discard, bool):
        raise BadRequestError("expected action, and with move true or false in `discardFiles`")
    if discard and not in_cluster:
        raise BadRequestError("discardFiles is for clusters: here sessions are moved with their files; leave it out")
    if in_cluster and not discard:
        raise ConflictError(
            "in a cluster an agent's pod has no picod that could keep its files: its sessions stay on their revision"
            ' until they end, or move without their files with "discardFiles": true (--discard-files)'
        )
    return discard


def read_rollout_action(body: Mapping[str, Any], by: str, now: float) -> Callable[[Agent], Agent]:
    """What becomes of an agent by the action of a request to its rollout."""
    action, to = body.get("action"), body.get("to")
    if body.keys() - {"action", "to"} or (to is not None and (type(to) is not int or action != "undo")):
        raise BadRequestError("expected action, and with undo a revision's number in `to`")
    actions: dict[str, Callable[[Agent], Agent]] = {
        "undo": lambda agent: rollout.undo(agent, to, by, strategy_of(agent), now),
        "pause": lambda agent: rollout.pause(agent, now, paused=True),
        "resume": lambda agent: rollout.pause(agent, now, paused=False),
        "promote": lambda agent: rollout.take_over(agent, now),
    }
    if not isinstance(action, str) or action not in actions:
        raise BadRequestError(f"action: expected one of {', '.join(actions)}, move, got {repr(action)[:64]}")
    return actions[action]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A page of a list: at most `limit` agents whose ids come after `after` and whose documents match `wanted`."""

    wanted: Mapping[str, str]
    after: str
    limit: int

    def matches(self, agent_id: str, document: Mapping[str, Any]) -> bool:
        """Whether an agent belongs to this page, or to one behind it."""
        return agent_id > self.after and all(document[field] == value for field, value in self.wanted.items())


def read_list_query(request: Request) -> ListQuery:
    """The filters and the page of a list of agents."""
    query = request.query_params
    if unknown := sorted(query.keys() - {*_LIST_FILTERS, "after", "limit"}):
        raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected phase, owner, namespace, after or limit")
    limit = query.get("limit", "100")
    # The length before the value: int() raises ValueError for more than 4300 digits.
    if not limit.isascii() or not limit.isdigit() or len(limit) > 3 or not 1 <= int(limit) <= _MAX_LIST:
        raise BadRequestError(f"limit: expected a whole number from 1 to {_MAX_LIST}")
    wanted = {field: query[field] for field in _LIST_FILTERS if field in query}
    if (phase := wanted.get("phase", _PHASES[0])) not in _PHASES:
        raise BadRequestError(f"phase: expected one of {', '.join(_PHASES)}, got {phase[:64]!r}")
    return ListQuery(wanted, query.get("after", ""), int(limit))
