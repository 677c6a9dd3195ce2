"""Checks of the rules for images: keys, signatures, the sandboxes' own image, and whether the registries answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.core.errors import SettingsError, UnavailableError
from gateway.core.settings import Settings
from gateway.doctor.finding import Finding
from gateway.images.bundles import read_bundles
from gateway.images.policy import ImagePolicy, ImageRefusedError, make_policy
from gateway.images.registry import Registry


async def check_images(settings: Settings) -> AsyncIterator[Finding]:
    """Nothing but a remark without rules."""
    try:
        policy = await asyncio.to_thread(make_policy, settings)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("images", problem, "correct that flag")
        return
    if not policy.active:
        fix = "who may create runtimes may run any image; name your registries in --image-registries"
        yield Finding("images", "of any registry are allowed", fix, fatal=False)
        return
    yield Finding("images", f"allowed: {policy.registries or 'any registry'}{', signed' if policy.keys else ''}")
    if settings.image_signatures != Path():
        yield await asyncio.to_thread(check_bundles, settings.image_signatures)
    yield await check_own_image(policy, settings.picod_image)
    if policy.keys:
        for registry in policy.registries.names:
            yield await check_registry(Registry(settings.image_credentials, settings.image_ca), registry)


def check_bundles(folder: Path) -> Finding:
    """How many signatures there are in the operator's folder. Blocks."""
    try:
        count = sum(1 for _ in read_bundles(folder))
    except OSError as error:
        return Finding("signatures", f"{folder}: {error.strerror}", "name a folder that the gateway may read")
    fix = "" if count else f"cosign download signature IMAGE > {folder}/NAME.json"
    return Finding("signatures", f"{count} in {folder}", fix, fatal=False)


async def check_own_image(policy: ImagePolicy, image: str) -> Finding:
    """Whether the image of runtimes that name none is allowed."""
    try:
        return Finding("--picod-image", f"{await policy.verify(image)} is allowed")
    except ImageRefusedError as error:
        fix = "name an allowed one in --picod-image; runtimes that name an image are not concerned"
        return Finding("--picod-image", str(error), fix, fatal=False)
    except UnavailableError as error:
        return Finding("--picod-image", str(error), "runtimes without an image wait until it answers", fatal=False)


async def check_registry(registry: Registry, name: str) -> Finding:
    """Whether a registry answers."""
    try:
        status = await registry.ping(name)
    except UnavailableError as error:
        fix = "let the gateway reach it (its NetworkPolicy allows port 443), see --image-ca; or use --image-signatures"
        return Finding(f"registry {name}", str(error), fix, fatal=False)
    return Finding(f"registry {name}", f"answers with status {status}")
