"""What is known of the cluster: the pods and Deployments of some namespaces, kept by watches (reflector.py).

Each write passes the server's answer to `learn`, so that a gateway sees its own writes at once; the writes of others
arrive by the watches. So neither a claim nor `find` ever lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gateway.core.background import Tasks
from gateway.core.model import RuntimeKey, SandboxId
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.client import KubeApi
from gateway.provider.kubernetes.pod import Pod, read_pod
from gateway.provider.kubernetes.pool import Deployment, read_deployment
from gateway.provider.kubernetes.reflector import Reflector


class Cache:
    """Copies by namespace. `on_pod` and `on_deployment` are called with (old, new) for each change; None is absence."""

    def __init__(
        self,
        api: KubeApi,
        namespaces: Sequence[str],
        tasks: Tasks,
        on_pod: Callable[[Pod | None, Pod | None], None],
        on_deployment: Callable[[Deployment | None, Deployment | None], None],
    ) -> None:
        self._tasks = tasks
        # By label: other pods of the namespace then cost neither memory nor events.
        self.pods = {
            namespace: Reflector(api, names.pods(namespace), read_pod, on_pod, labelSelector=names.SELECTOR)
            for namespace in namespaces
        }
        self.deployments = {
            namespace: Reflector(
                api, names.deployments(namespace), read_deployment, on_deployment, labelSelector=names.SELECTOR
            )
            for namespace in namespaces
        }
        self._refreshing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read all that is there. Raises KubeError."""
        for reflector in self._reflectors:
            await reflector.refresh()

    def follow(self) -> None:
        """Keep up with it from now on."""
        for reflector in self._reflectors:
            self._tasks.spawn(reflector.run())

    @property
    def _reflectors(self) -> list[Reflector[Any]]:
        return [*self.deployments.values(), *self.pods.values()]

    @property
    def problem(self) -> str:
        """Why what we know of the cluster may be old; "" while it is fresh."""
        reflectors: list[Reflector[Any]] = [*self.pods.values(), *self.deployments.values()]
        return next((reflector.problem for reflector in reflectors if reflector.problem), "")

    def learn(self, answer: dict[str, Any]) -> Pod | None:
        """Take in a pod that the server gave us. What is known now: None if it is dead, or not of a runtime."""
        return self.pods[answer["metadata"]["namespace"]].learn(answer)

    async def find(self, sandbox_id: SandboxId) -> Pod | None:
        """From memory; a UID that was never heard of may be another gateway's newest, so the server is asked once.

        Raises KubeError.
        """
        for attempt in range(2):
            for pods in self.pods.values():
                pod = pods.items.get(sandbox_id)
                # A UID that was deleted never comes back, so requests for a session that has ended do not list again.
                if pod is not None or pods.is_dead(sandbox_id):
                    return pod
            if attempt == 0 and self._tasks.running:
                # One list for all that ask meanwhile: a burst of requests for a session that another gateway has just
                # woken lists once. Shielded, because a client that leaves must not end the list for the others.
                if self._refreshing is None or self._refreshing.done():
                    self._refreshing = self._tasks.spawn(self._refresh())
                await asyncio.shield(self._refreshing)
        return None

    async def _refresh(self) -> None:
        for pods in self.pods.values():
            await pods.refresh()

    def deployment(self, key: RuntimeKey) -> Deployment | None:
        """A runtime's, if there is one."""
        name = names.deployment_name(key)
        # A scan, as the copy is kept by UID: there is one Deployment per runtime, and few runtimes.
        items = self.deployments[key.namespace].items.values() if key.namespace in self.deployments else ()
        return next((each for each in items if each.name == name), None)

    def forget_pods(self) -> None:
        """Forget all pods; the watches that kept them have ended."""
        for pods in self.pods.values():
            pods.items.clear()
