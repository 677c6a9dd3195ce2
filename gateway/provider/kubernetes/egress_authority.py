"""The authority with which the egress services of all gateways end TLS: one Secret, its certificate shown to pods.

The first gateway makes it, all others take it over, so that a sandbox may come to any of them. It is read when a
gateway starts, and renewed then if it ends within a year; the certificate before stays trusted, as other gateways may
still use it.

    Secret wakegate-egress-authority     authority.pem, authority.key; earlier.pem after it was renewed
    ConfigMap wakegate-egress-trust      ca.pem, in each namespace with sandboxes: all that they trust
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.egress.authority import (
    CERTIFICATE_FILE,
    KEY_FILE,
    check_authority,
    lasts,
    make_authority,
    write_authority,
)
from gateway.provider.kubernetes import names, shared_objects
from gateway.provider.kubernetes.client import KubeApi
from gateway.provider.kubernetes.template import TRUST_FILE

_EARLIER = "earlier.pem"


class SharedAuthority:
    """`folder`: where this gateway's egress service reads it. `bundle(now)`: what sandboxes trust, made from there."""

    def __init__(
        self,
        api: KubeApi,
        folder: Path,
        clock: Clock,
        gateway_namespace: str,
        namespaces: Sequence[str],
        bundle: Callable[[float], bytes],
    ) -> None:
        self._api, self._folder, self._clock, self._bundle = api, folder, clock, bundle
        self._secrets, self._namespaces = names.secrets(gateway_namespace), namespaces

    async def open(self) -> None:
        """Take it over, or make it; then publish what is trusted. Blocks no loop. Raises KubeError, SettingsError."""
        earlier = await self._share()
        bundle = await asyncio.to_thread(self._bundle, self._clock.now()) + earlier
        for namespace in self._namespaces:
            await self._publish(namespace, bundle.decode("utf-8", "replace"))

    async def _share(self) -> bytes:
        """Make the folder what the Secret is; the certificate before, if it was renewed."""
        path = f"{self._secrets}/{names.AUTHORITY_SECRET}"
        while True:
            secret = await shared_objects.get(self._api, path)
            data = dict((secret or {}).get("data") or {})
            pem, key, earlier = _read(data)
            now = self._clock.now()
            if pem and lasts(pem, now):
                await asyncio.to_thread(self._keep, pem, key)
                return earlier
            # In memory until the Secret has it: of two gateways that begin at once one is refused, and takes the
            # other's.
            made = make_authority(now)
            data = {
                CERTIFICATE_FILE: _text(made[0]),
                KEY_FILE: _text(made[1]),
                **({_EARLIER: _text(pem)} if pem else {}),
            }
            body = {
                **(secret or shared_objects.named("Secret", names.AUTHORITY_SECRET)),
                "type": "Opaque",
                "data": data,
            }
            write = self._api.create(self._secrets, body) if secret is None else self._api.replace(path, body)
            # Read again in any case: what counts is what the server has.
            await shared_objects.wrote(write)

    def _keep(self, pem: bytes, key: bytes) -> None:
        try:
            same = (self._folder / CERTIFICATE_FILE).read_bytes(), (self._folder / KEY_FILE).read_bytes()
        except OSError:
            same = b"", b""
        if same != (pem, key):
            write_authority(self._folder, pem, key)

    async def _publish(self, namespace: str, bundle: str) -> None:
        path = names.config_maps(namespace, names.TRUST_CONFIGMAP)
        while True:
            present = await shared_objects.get(self._api, path)
            if present is not None and present.get("data") == {TRUST_FILE: bundle}:
                return
            body = {
                **(present or shared_objects.named("ConfigMap", names.TRUST_CONFIGMAP)),
                "data": {TRUST_FILE: bundle},
            }
            maps = names.config_maps(namespace)
            write = self._api.create(maps, body) if present is None else self._api.replace(path, body)
            if await shared_objects.wrote(write) is not None:
                return


def _read(data: Mapping[str, Any]) -> tuple[bytes, bytes, bytes]:
    """Certificate, key, and the certificate before; all empty: there is none. Raises SettingsError."""
    if not data:
        return b"", b"", b""
    try:
        pem, key, earlier = (
            base64.b64decode(str(data.get(name, "")), validate=True) for name in (CERTIFICATE_FILE, KEY_FILE, _EARLIER)
        )
        check_authority(pem, key)
    except (ValueError, binascii.Error) as error:
        fix = "delete it, and a new one is made; running gateways have to be started again then"
        raise SettingsError(
            [f"Secret {names.AUTHORITY_SECRET}: no certificate with its key ({error}); {fix}"]
        ) from error
    return pem, key, earlier


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
