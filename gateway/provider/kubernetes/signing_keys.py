"""The signing keys of all gateways of a cluster: one Secret, whose public halves pods see in a ConfigMap.

A key is made, seen, and only then signs: the gateway that makes one writes it into the Secret; every gateway reads it
there and publishes it; a kubelet shows it to pods about a minute later; after `settle` seconds it signs. Old tokens are
good as long as their key is in the set, so nothing restarts and no request notices.

    Secret wakegate-signing-keys         <kid>.pem: private keys; may be changed by hand (kubectl), too
    ConfigMap wakegate-picod-keys        jwks.json, in each namespace with sandboxes
        annotation wakegate.io/keys      {"version": of the Secret it was made from, "since": {kid: epoch seconds}}
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.provider.kubernetes import names, shared_objects
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.sandbox.signing_keys import KeyRing

logger = logging.getLogger(__name__)

# Polled: keys change every few days, and `get` of this one Secret is then all that the gateway's Role has to grant.
_POLL_INTERVAL_S = 20.0  # the longest between two looks at the Secret
# An old key goes this long after a newer one has begun to sign: tokens live five minutes, gateways may be slow.
RETIRE_S = 3600.0


class SharedKeys:
    """A KeyRing whose folder is a copy of the Secret."""

    def __init__(
        self,
        api: KubeApi,
        ring: KeyRing,
        folder: Path,
        clock: Clock,
        gateway_namespace: str,
        namespaces: Sequence[str],
        *,
        rotation: float,
        settle: float,
    ) -> None:
        """`folder`: the ring's. `rotation`, `settle`: seconds, as the settings `key_rotation` and `key_settle`."""
        self._api, self._ring, self._clock = api, ring, clock
        self._private = folder / "private"
        self._secrets = f"/api/v1/namespaces/{gateway_namespace}/secrets"
        self._namespaces = namespaces
        self._rotation, self._settle = rotation, settle

    async def open(self) -> None:
        """Share the first gateway's keys with all others. Raises KubeError, SettingsError."""
        await self._share(self._ring.open)
        await self.turn()

    async def follow(self, on_signer: Callable[[], None]) -> None:
        """Keep in step with the Secret until cancelled. `on_signer`: another key signs, renew the tokens in use."""
        # Four looks or more within `settle`: with 180 s, a key is known to every gateway for 160 s or longer before it
        # signs.
        pause = max(0.2, min(_POLL_INTERVAL_S, self._settle / 4))
        while True:
            await asyncio.sleep(pause)
            try:
                if await self.turn():
                    on_signer()
            except WakegateError as error:
                logger.warning("signing keys: %s; the known ones go on", error)

    async def turn(self) -> bool:
        """Take up changes, make the next key or drop old ones when it is time. Whether another key signs now.

        Raises KubeError, and SettingsError for a key that cannot be read.
        """
        version = await self._share(self._ring.reload)
        since = await self._publish(version)
        now = self._clock.now()
        # The newest first. `now` for a key that is published nowhere yet.
        ages = sorted(((since.get(kid, now), kid) for kid in self._ring.kids), reverse=True)
        newest, kid = ages[0]
        change: Callable[[], None] | None = None
        # RS256 is for AgentCube's own picod, which knows one key, from its start on (engine.py).
        if self._rotation and self._ring.signer.algorithm == "EdDSA" and now - newest >= self._rotation:
            change = self._ring.rotate
            logger.info("signing key %s is %.0f s old: making the next", kid, now - newest)
        # While the newest does not sign yet, tokens of the old one are still being made.
        elif len(ages) > 1 and kid == self._ring.signer.kid and now - newest >= self._settle + RETIRE_S:
            old = [each for _, each in ages[1:]]
            change = lambda: self._ring.drop(old)  # noqa: E731 - read where it is made
            logger.info("signing keys %s sign no more: dropped", ", ".join(old))
        if change is not None:
            version = await self._share(self._ring.reload, change)
            since = await self._publish(version)
        moved = self._ring.advance(self._clock.now(), since, self._settle)
        if moved:
            logger.info("signing key %s signs from now on", self._ring.signer.kid)
        return moved

    async def _share(self, read: Callable[[], Any], change: Callable[[], None] | None = None) -> str:
        """Make the folder and the Secret the same; its resourceVersion. The Secret counts, where there is one.

        `read` has the ring read the folder. `change` is made to both, unless another gateway changed the Secret first.
        """
        path = f"{self._secrets}/{names.KEYS_SECRET}"
        known = None if change is None else self._ring.kids
        while True:
            # Read, merge, write with the version that was read; who loses against another gateway begins again.
            secret = await shared_objects.get(self._api, path)
            await asyncio.to_thread(_take_over, self._private, (secret or {}).get("data"))
            await asyncio.to_thread(read)
            # Other kids than before: another gateway has made the change that was due, and a second one would be one
            # too many.
            if change is not None and self._ring.kids == known:
                await asyncio.to_thread(change)
            data = await asyncio.to_thread(_contents, self._private)
            if secret is not None and secret.get("data") == data:
                return str(secret["metadata"]["resourceVersion"])
            body = {**(secret or shared_objects.named("Secret", names.KEYS_SECRET)), "type": "Opaque", "data": data}
            write = self._api.create(self._secrets, body) if secret is None else self._api.replace(path, body)
            if (written := await shared_objects.wrote(write)) is not None:
                return str(written["metadata"]["resourceVersion"])

    async def _publish(self, version: str) -> dict[str, float]:
        """Give the sandboxes of all namespaces the public keys; since when all of them can see each, by kid."""
        latest: dict[str, float] = {}
        for namespace in self._namespaces:
            for kid, at in (await self._publish_in(namespace, version)).items():
                latest[kid] = max(latest.get(kid, 0.0), at)
        return latest

    async def _publish_in(self, namespace: str, version: str) -> dict[str, float]:
        key_set = await asyncio.to_thread((self._ring.public_dir / "jwks.json").read_text)
        maps = f"/api/v1/namespaces/{namespace}/configmaps"
        path = f"{maps}/{names.KEYS_CONFIGMAP}"
        while True:
            present = await shared_objects.get(self._api, path)
            made_from, since = _read_note(present)
            same = present is not None and present.get("data") == {"jwks.json": key_set}
            if (same and since.keys() >= set(self._ring.kids)) or _newer(made_from, version):
                return since  # a newer one is made of keys that the next look reads
            # The first set is older than the first pods: they have it when they start.
            new = self._clock.now() - (self._settle if present is None else 0.0)
            seen = {kid: since.get(kid, new) for kid in self._ring.kids}
            body = {
                **(present or shared_objects.named("ConfigMap", names.KEYS_CONFIGMAP)),
                "data": {"jwks.json": key_set},
            }
            notes = {names.KEYS: orjson.dumps({"version": version, "since": seen}).decode()}
            body["metadata"] = {**body["metadata"], "annotations": {**body["metadata"].get("annotations", {}), **notes}}
            write = self._api.create(maps, body) if present is None else self._api.replace(path, body)
            if await shared_objects.wrote(write) is not None:
                if present is not None and since and not since.keys() & set(self._ring.kids):
                    await self._delete_warm_pods(namespace)
                return seen

    async def _delete_warm_pods(self, namespace: str) -> None:
        """Delete the warm pods of an installation that was removed without its pods; ReplicaSets make new ones.

        They have seen none of our keys, and would answer 401 until their node brings them the new set, a minute later.
        """
        logger.warning("the warm pods in %s know none of this installation's keys: they are replaced", namespace)
        selector = f"{names.SELECTOR},{names.POOL}={names.WARM}"
        for pod in (await self._api.get(names.pods(namespace), labelSelector=selector))["items"]:
            try:
                await self._api.delete(names.pods(namespace, pod["metadata"]["name"]), uid=pod["metadata"]["uid"])
            except KubeError as error:
                logger.warning("pod %s could not be deleted: %s", pod["metadata"]["name"], error)


def _read_note(present: Mapping[str, Any] | None) -> tuple[str, dict[str, float]]:
    """The version of the Secret that a ConfigMap was made from, and since when keys are in it."""
    try:
        note = orjson.loads(((present or {}).get("metadata") or {}).get("annotations", {})[names.KEYS])
        return str(note["version"]), {str(kid): float(at) for kid, at in note["since"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return "", {}


def _newer(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) > int(than)


def _take_over(private: Path, data: Mapping[str, str] | None) -> None:
    if data is None:
        return  # the keys in the folder are shared with all gateways
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    present = _contents(private)
    for name in present.keys() - data.keys():
        (private / name).unlink()
    for name, text in data.items():
        if present.get(name) != text and name.endswith(".pem"):
            # People write this Secret as well: `.name` keeps every key of it inside the folder.
            file = private / Path(name).name
            # With its mode before its content: a chmod afterwards would leave a moment in which others can read the
            # key.
            file.touch(mode=0o600)
            file.write_bytes(base64.b64decode(text))


def _contents(private: Path) -> dict[str, str]:
    return {file.name: base64.b64encode(file.read_bytes()).decode() for file in private.glob("*.pem")}
