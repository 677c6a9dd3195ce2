"""Which runtimes may be served by the images of their pods: verified beside everything else, as registries are slow.

What a runtime's pods would be made of is looked at, all containers of it, not what its manifest says; then the names
that were verified are put into the manifest. A changed runtime that is refused leaves the earlier one as it was served.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gateway.core.background import Tasks
from gateway.core.backoff import backoff, jittered
from gateway.core.errors import UnavailableError
from gateway.core.model import Runtime, RuntimeKey
from gateway.images.policy import VERIFY_TIMEOUT_S, ImagePolicy, ImageRefusedError
from gateway.provider.kubernetes.template import PodDefaults, make_template

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 2.0, 60.0  # between attempts while a registry does not answer
_LOOK_AGAIN_S = 60.0  # at an image without a signature: it may be signed by now


@dataclass(slots=True, eq=False)
class Verdict:
    """What became of a runtime. `admitted` is what to serve: of an earlier version while this one is not admitted."""

    runtime: Runtime
    admitted: Runtime | None = None
    refused: str = ""  # why it is not served
    unverified: str = ""  # why that is not known yet, after a first attempt
    settled: bool = False  # after a first attempt


class Admission:
    """The verdicts, by runtime. `on_change` is called when one was reached."""

    def __init__(self, policy: ImagePolicy, defaults: PodDefaults, on_change: Callable[[], None]) -> None:
        self._policy, self._defaults, self._on_change = policy, defaults, on_change
        self._verdicts: dict[RuntimeKey, Verdict] = {}
        self._tasks = Tasks()
        self._tasks.running = True
        self._changed = asyncio.Event()

    def review(self, declared: Collection[Runtime]) -> list[Runtime]:
        """What to serve of these now; those that are new or differ are verified from here on."""
        keys = {runtime.key for runtime in declared}
        for key in self._verdicts.keys() - keys:
            del self._verdicts[key]
        for runtime in declared:
            earlier = self._verdicts.get(runtime.key)
            if earlier is None or earlier.runtime != runtime:
                kept = earlier.admitted if earlier is not None and _uid(earlier.runtime) == _uid(runtime) else None
                verdict = self._verdicts[runtime.key] = Verdict(runtime, kept)
                if self._policy.active:
                    self._tasks.spawn(self._apply_verdict(verdict))
                else:
                    verdict.admitted, verdict.settled = runtime, True
        return [found for runtime in declared if (found := self._verdicts[runtime.key].admitted) is not None]

    async def settle(self) -> None:
        """Wait until each was looked at once, however it ended; but no longer than registries may take to answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * VERIFY_TIMEOUT_S):
                while not all(verdict.settled for verdict in self._verdicts.values()):
                    self._changed.clear()
                    await self._changed.wait()

    def of(self, key: RuntimeKey) -> Verdict | None:
        """The verdict on a runtime; None if it was not declared."""
        return self._verdicts.get(key)

    def refused(self) -> list[Runtime]:
        """Those of which no version may be served."""
        return [each.runtime for each in self._verdicts.values() if each.refused and each.admitted is None]

    async def aclose(self) -> None:
        """End the verifications under way."""
        await self._tasks.aclose()

    async def _apply_verdict(self, verdict: Verdict) -> None:
        """Until it is admitted, or another version of it was declared."""
        attempt = 0
        key = verdict.runtime.key
        while self._verdicts.get(key) is verdict:
            before = verdict.refused, verdict.unverified
            admitted, pause = None, _LOOK_AGAIN_S
            try:
                admitted = await self._admit(verdict.runtime)
                verdict.refused = verdict.unverified = ""
            except ImageRefusedError as error:
                verdict.refused, verdict.unverified = str(error), ""
            except UnavailableError as error:
                attempt += 1
                verdict.unverified = str(error)
                pause = jittered(backoff(attempt, first=_FIRST_BACKOFF_S, longest=_MAX_BACKOFF_S))
            except Exception:  # what cannot be looked at is not served, and stops no other
                logger.exception("%s: its images cannot be looked at", key)
                verdict.refused, verdict.unverified = "its images cannot be looked at; see the gateway's log", ""
            if (verdict.refused, verdict.unverified) != before and (why := verdict.unverified or verdict.refused):
                logger.warning("%s: %s: %s", key, "not served yet" if verdict.unverified else "refused", why)
            verdict.admitted, verdict.settled = admitted or verdict.admitted, True
            self._changed.set()
            self._on_change()
            if admitted is not None:
                return
            await asyncio.sleep(pause)

    async def _admit(self, runtime: Runtime) -> Runtime:
        """The runtime with its images as they were verified. Raises ImageRefusedError, UnavailableError."""
        names = set(images_of(make_template(runtime, self._defaults)["spec"]))
        verified = dict(zip(names, await asyncio.gather(*map(self._policy.verify, names)), strict=True))
        admitted = with_images(runtime, verified, self._defaults.picod_image)
        made = set(images_of(make_template(admitted, self._defaults)["spec"]))
        if made - set(verified.values()):  # a place that with_images does not know
            raise ImageRefusedError(f"cannot be named by digest: {', '.join(sorted(made - set(verified.values())))}")
        return admitted


def images_of(spec: Mapping[str, Any]) -> Iterator[str]:
    """The names of all images in a PodSpec: of containers, of what runs before them, and of volumes."""
    for holder, field in _places(spec):
        yield str(holder.get(field) or "")


def with_images(runtime: Runtime, names: Mapping[str, str], default: str) -> Runtime:
    """The runtime with other names for its images. `default`: the image of one that names none."""
    if all(name == other for name, other in names.items()):
        return runtime
    manifest = copy.deepcopy(dict(runtime.manifest))
    pod = ((manifest.get("spec") or {}).get("podTemplate") or {}).get("spec") or {}
    for holder, field in _places(pod):
        holder[field] = names.get(holder.get(field) or "", holder.get(field))
    image = runtime.image or default
    return replace(runtime, manifest=manifest, image=names.get(image, runtime.image))


def _places(spec: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            yield container, "image"
    for volume in spec.get("volumes") or ():
        if isinstance(volume.get("image"), dict):  # an image as a volume, since Kubernetes 1.31
            yield volume["image"], "reference"


def _uid(runtime: Runtime) -> Any:
    """Of its custom resource; None for one from a file."""
    return (runtime.manifest.get("metadata") or {}).get("uid")
