"""The runtimes of a cluster: CodeInterpreters and AgentRuntimes as they are applied, changed and deleted.

A RuntimeCatalog whose content the watches keep. What cannot be read as a runtime is not served, nor one whose images
are refused (admission.py); why stands in the object's status (status.py), where the person who applied it looks. A
changed object that is wrong leaves the runtime as it was served before: a typing error must not end a pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.agent_objects import AgentObject
from gateway.core.errors import SettingsError
from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.images.policy import ImagePolicy
from gateway.images.reference import Registries
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.admission import Admission
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.reflector import Reflector
from gateway.provider.kubernetes.template import PodDefaults
from gateway.provider.kubernetes.trust import untrusted
from gateway.runtimes.manifest import parse_runtime

logger = logging.getLogger(__name__)

# What pods are made from. resourceVersion and managedFields are not: our own writes of the status change them, and each
# would make the runtime look changed and be applied again.
_METADATA = ("name", "namespace", "uid")


@dataclass(frozen=True, slots=True)
class Declared:
    """One custom resource. `runtime` is None, and `problems` says why, when its spec is wrong."""

    uid: str
    version: str
    key: RuntimeKey
    generation: int
    runtime: Runtime | None
    problems: tuple[str, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    agent: AgentObject | None = None  # of an AgentRuntime


def agent_object(obj: Mapping[str, Any]) -> AgentObject:
    """An AgentRuntime, as agents see it."""
    metadata = obj["metadata"]
    text = (metadata.get("annotations") or {}).get(names.AGENT)
    note: Any = None
    if text is not None:
        try:
            note = orjson.loads(text)
        except ValueError:
            note = {}
        note = note if isinstance(note, Mapping) else {}
    return AgentObject(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        spec=obj.get("spec") or {},
        note=note,
        changed_by=_last_writer(metadata.get("managedFields") or ()),
    )


def _last_writer(entries: Iterable[Mapping[str, Any]]) -> str:
    """Who last wrote a spec, by the name under which it did, such as kubectl-edit."""
    written = [each for each in entries if "f:spec" in (each.get("fieldsV1") or {}) and not each.get("subresource")]
    latest = max(written, key=lambda each: str(each.get("time") or ""), default={})
    name = str(latest.get("manager") or "")
    return "" if name == names.MANAGER else name


def read_declared(obj: Mapping[str, Any], *, trusted: bool = False) -> Declared:
    """A custom resource as it is served; unless `trusted`, within the limits of trust.py.

    Its manifest keeps what pods are made from; status and history stay out.
    """
    metadata = obj["metadata"]
    agent = agent_object(obj) if obj["kind"] == Kind.AGENT_RUNTIME else None
    trusted = trusted and (agent is None or agent.note is None)
    kind = Kind(obj["kind"])
    manifest = {
        "apiVersion": names.API_VERSION,
        "kind": kind.value,
        "metadata": {name: metadata[name] for name in _METADATA},
        "spec": obj.get("spec") or {},
    }
    problems: list[str] = []
    runtime = parse_runtime(manifest, f"{kind.value} {metadata['name']}", problems, engine="kubernetes")
    if runtime is not None and not trusted and (refused := untrusted(runtime)):
        problems += refused
        runtime = None
    return Declared(
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        key=RuntimeKey(metadata["namespace"], metadata["name"], kind),
        generation=int(metadata.get("generation") or 1),
        runtime=runtime,
        problems=tuple(problems),
        status=obj.get("status") or {},
        agent=agent,
    )


class WatchedCatalog:
    """The custom resources of some namespaces, besides runtimes from files. One of a name in both: the cluster's."""

    def __init__(
        self,
        api: KubeApi,
        namespaces: Sequence[str],
        files: Iterable[Runtime] = (),
        *,
        trusted: bool = False,
        policy: ImagePolicy | None = None,
        defaults: PodDefaults | None = None,
    ) -> None:
        """`trusted`: custom resources may ask for anything that a pod can have. `policy`: rules for the images of pods,
        which `defaults` are needed to know."""
        self._files = {runtime.key: runtime for runtime in files}
        # Two tables, because a request may come for a runtime as soon as it is visible: a new one is served after the
        # provider has made its pool, a deleted one is withdrawn before the pool is taken down.
        self._wanted = dict(self._files)  # as declared
        self._served: dict[RuntimeKey, Runtime] = {}  # as the provider has it: what the core sees
        self._hosted: dict[RuntimeKey, Runtime] = {}  # revisions of agents, made by gateway/agents
        self.declared: dict[RuntimeKey, Declared] = {}
        self.changed = asyncio.Event()  # a runtime came, went, differs, or may be served now
        self.admission = Admission(
            policy or ImagePolicy(Registries(())), defaults or PodDefaults(""), lambda: self.changed.set()
        )
        self._reflectors = {
            (namespace, kind): Reflector(api, names.runtimes(kind, namespace), _reader(kind, trusted), self._on_change)
            for namespace in namespaces
            for kind in Kind
        }

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """What `get` finds: these runtimes have no revisions."""
        return self.get(key)

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime of that key; None: not declared, not valid, or not yet known to the provider."""
        return self._served.get(key)

    def all(self) -> Sequence[Runtime]:
        """All runtimes that are served and no agent's of the API, sorted by key."""
        return [self._served[key] for key in sorted(self._served) if key not in self._hosted]

    def agents(self) -> Sequence[AgentObject]:
        """All AgentRuntimes as they are in the cluster, also those that cannot be served."""
        return [each.agent for each in self.declared.values() if each.agent is not None]

    def learn(self, kind: Kind, answer: Mapping[str, Any]) -> None:
        """Take in an object of a namespace that is followed, as the server answered with it."""
        reflector = self._reflectors.get((answer["metadata"]["namespace"], kind))
        if reflector is not None:
            reflector.learn(dict(answer))

    def host(self, runtimes: Iterable[Runtime]) -> None:
        """Have these served besides: the revisions of agents."""
        self._hosted = {runtime.key: runtime for runtime in runtimes}

    def shown(self, key: RuntimeKey) -> RuntimeKey:
        """The runtime whose pool a custom resource's status tells of: of an agent, its newest revision that serves."""
        hosted = [each for each in self._hosted if each.base == key and self._hosted[each].pool.size]
        return max(hosted, key=lambda each: each.revision, default=key)

    def wanted(self) -> Sequence[Runtime]:
        """What is declared now and may be served; it is served once the provider has it, and `publish` says so."""
        every = {**self._wanted, **self._hosted}
        return self.admission.review([every[key] for key in sorted(every)])

    def withdraw(self) -> None:
        """Stop serving what is not declared any more."""
        known = self._wanted.keys() | self._hosted.keys()
        self._served = {key: runtime for key, runtime in self._served.items() if key in known}

    def publish(self, runtimes: Iterable[Runtime]) -> None:
        """These are served from now on."""
        self._served = {runtime.key: runtime for runtime in runtimes}

    async def start(self) -> None:
        """Read what there is, and serve it: the provider is given it before any request comes.

        Kinds that the cluster does not know are waited for. Raises KubeError; SettingsError for runtimes from files
        whose images are refused.
        """
        for (_, kind), reflector in self._reflectors.items():
            try:
                await reflector.refresh()
            except KubeError as error:
                # 404: the custom resource definitions are not installed. `run` lists again until they are.
                if error.http_status != 404:
                    raise
                logger.warning("the cluster has no %s yet; apply manifests/base/crds", names.plural(kind))
        self.admission.review(list(self._wanted.values()))
        await self.admission.settle()
        refused = [each for each in self.admission.refused() if self._files.get(each.key) == each]
        if refused:
            verdicts = [(each.key, self.admission.of(each.key)) for each in refused]
            raise SettingsError([f"{key}: {verdict.refused}" for key, verdict in verdicts if verdict is not None])
        self.publish(self.wanted())

    async def run(self) -> None:
        """Follow the changes until cancelled."""
        try:
            await asyncio.gather(*(reflector.run() for reflector in self._reflectors.values()))
        finally:
            await self.admission.aclose()

    def _on_change(self, old: Declared | None, new: Declared | None) -> None:
        either = new or old
        assert either is not None
        key, before = either.key, self._wanted.get(either.key)
        if new is None:
            if self.declared.get(key) is not old:
                return  # deleted and made again: the new one is known already
            del self.declared[key]
            self._wanted.pop(key, None)
            # A custom resource hid the runtime of this name from a file; without it the file's is served again.
            if key in self._files:
                self._wanted[key] = self._files[key]
        else:
            self.declared[key] = new
            if new.agent is not None and new.agent.note is not None:
                self._wanted.pop(key, None)  # its revisions are hosted
            elif new.runtime is not None:
                self._wanted[key] = new.runtime
            elif old is None or old.problems != new.problems:
                # Once per fault and not per event: our own write of the status causes an event as well.
                logger.warning("%s", "; ".join(new.problems))
        if self._wanted.get(key) != before:
            self.changed.set()


def _reader(kind: Kind, trusted: bool) -> Any:
    """Items of a list carry no kind of their own. One that is being deleted is gone for us: while its deletion waits
    (--cascade=foreground, finalizers) we would make its Deployment again each time that the collector takes it.
    """

    def read(obj: Mapping[str, Any]) -> Declared | None:
        if "deletionTimestamp" in obj["metadata"]:
            return None
        return read_declared({**obj, "kind": kind.value}, trusted=trusted)

    return read
