"""The operator's rules for images: where they come from, that they are named by digest, and who signed them.

Rules that need the name alone are applied at once (`problem`). A signature is looked for in the operator's own files
first, then in the registry (`verify`), and remembered by digest: what was signed once stays signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from gateway.core.errors import SettingsError, UnavailableError
from gateway.core.settings import Settings
from gateway.images.bundles import read_bundles
from gateway.images.reference import Image, Registries, parse_image
from gateway.images.registry import Registry
from gateway.images.signature import PublicKey, Signed, read_key, verify

VERIFY_TIMEOUT_S = 30.0  # of one image: two logins, a manifest, MAX_SIGNATURES documents
_CONCURRENT = 8  # images at once, over all runtimes
_MAX_REMEMBERED = 4096


class ImageRefusedError(Exception):
    """The rules do not allow an image; its text says which one, and why."""


class ImagePolicy:
    """The rules. State: digests whose signature was verified."""

    def __init__(
        self,
        registries: Registries,
        *,
        digests: bool = False,
        keys: Sequence[PublicKey] = (),
        bundles: Path = Path(),
        registry: Registry | None = None,
    ) -> None:
        """`digests`: images must be named by digest. `bundles`: a folder of signatures; the empty path for none."""
        self.registries, self.keys = registries, keys
        self._digests, self._bundles = digests, bundles
        self._registry = registry or Registry()
        self._verified: dict[str, None] = {}  # digests, the latest last
        self._slots = asyncio.Semaphore(_CONCURRENT)

    @property
    def active(self) -> bool:
        """Whether there is any rule."""
        return bool(self.registries or self._digests or self.keys)

    def problem(self, name: str) -> str:
        """Why the name alone is refused; "" if it is not."""
        if not self.active:
            return ""
        try:
            image = parse_image(name)
        except ValueError as error:
            return f"image {name[:200]!r}: {error}"
        # By the name alone: a registry that is not listed is never asked for anything.
        if not self.registries.allow(image):
            return f"image {name}: is in {image.repository}; --image-registries allows {self.registries}"
        if self._digests and not image.digest:
            return f"image {name}: --image-digests asks for {image.repository}@sha256:..., as a tag may change"
        return ""

    async def verify(self, name: str) -> str:
        """The name to run the image by: with its digest where signatures are asked for, so that what was verified is
        what runs. Raises ImageRefusedError; UnavailableError where that cannot be determined now.
        """
        if refused := self.problem(name):
            raise ImageRefusedError(refused)
        if not self.keys:
            return name
        image = parse_image(name)
        # The wait for a slot is outside of the timeout: it is no fault of this image's registry.
        async with self._slots:
            try:
                async with asyncio.timeout(VERIFY_TIMEOUT_S):
                    # Once, and the image runs by it: a tag that moves between two look-ups would be verified as one
                    # image and run as another.
                    digest = image.digest or await self._registry.digest(image)
                    await self._require_signature(image, digest)
            except TimeoutError:
                raise UnavailableError(f"image {name}: no answer within {VERIFY_TIMEOUT_S:g} s") from None
            except LookupError:
                raise ImageRefusedError(f"image {name}: {image.registry} does not have it") from None
            except UnavailableError as error:
                raise UnavailableError(f"image {name}: {error}") from None
        return name if image.digest else image.at(digest)

    async def _require_signature(self, image: Image, digest: str) -> None:
        if digest in self._verified:
            return
        # The operator's files first: they need no network, so an image of theirs starts while the registry is away.
        found = await asyncio.to_thread(self._provided)
        reasons = [verify(digest, each, self.keys) for each in found]
        if "" not in reasons:
            found = await self._registry.signatures(image, digest)
            reasons = [verify(digest, each, self.keys) for each in found]
        if "" not in reasons:
            why = ", ".join(dict.fromkeys(reasons)) or "it has no signature"
            raise ImageRefusedError(f"image {image.at(digest)}: is not signed by a key of --image-keys: {why}")
        self._verified[digest] = None  # the digest names the bytes, so this stays true; a refusal is asked for again
        if len(self._verified) > _MAX_REMEMBERED:
            del self._verified[next(iter(self._verified))]

    def _provided(self) -> list[Signed]:
        if self._bundles == Path():
            return []
        try:
            return list(read_bundles(self._bundles))
        except OSError as error:
            raise UnavailableError(f"--image-signatures {self._bundles}: {error.strerror}") from None


def make_policy(settings: Settings) -> ImagePolicy:
    """The rules that the settings name. Blocks. Raises SettingsError with every problem."""
    problems: list[str] = []
    registries, keys = Registries(()), []
    try:
        registries = Registries(each.strip() for each in settings.image_registries.split(",") if each.strip())
    except ValueError as error:
        problems.append(f"--image-registries {settings.image_registries}: {error}")
    for path in settings.image_keys:
        try:
            keys.append(read_key(path))
        except ValueError as error:
            problems.append(f"--image-keys {path}: {error}")
    if settings.image_keys and not settings.image_registries:
        problems.append(
            "--image-keys: needs --image-registries: signatures are asked of registries, and a manifest could name any"
        )
    if settings.image_signatures != Path() and not settings.image_keys:
        problems.append("--image-signatures: needs --image-keys, by which they are verified")
    if problems:
        raise SettingsError(problems)
    return ImagePolicy(
        registries,
        digests=settings.image_digests,
        keys=keys,
        bundles=settings.image_signatures,
        registry=Registry(settings.image_credentials, settings.image_ca),
    )
