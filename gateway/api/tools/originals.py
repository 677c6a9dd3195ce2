"""Writes what an answer shows in part to files in the workspace, so that the model can read the rest.

Long output is shown by its head and tail, and pictures are scaled to fit their receiver. The files are named by a hash
of their content, so the same picture shown ten times is one file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from dataclasses import replace

from gateway.api.tools.pictures import PictureLimits, fit
from gateway.api.tools.results import Image, Original, ToolResult
from gateway.api.tools.sandbox import ToolSandbox
from gateway.core.errors import WakegateError

logger = logging.getLogger(__name__)

PICTURES = ".wakegate/pictures"  # in the workspace; not among the files that list_files shows
OUTPUT = ".wakegate/output"  # picod writes long output of commands there as well
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
_MAX_SHOWN = 20  # pictures in one answer: the strictest limit of the models' APIs


async def keep_originals(sandbox: ToolSandbox, result: ToolResult, limits: PictureLimits) -> ToolResult:
    """Fit a result to its receiver: pictures are scaled, and a line of text names each file that has an original."""
    notes: list[str] = []
    images: list[Image] = []
    originals: list[Original] = []
    left = limits.max_total_bytes
    for index, image in enumerate(result.images):
        try:
            data = await asyncio.to_thread(base64.b64decode, image.data, validate=True)
        except ValueError:
            notes.append(f"picture {index + 1} is not shown: it is not base64")
            continue
        digest = hashlib.sha256(data).hexdigest()[:20]
        path = image.path or await _put(sandbox, f"{PICTURES}/{digest}.{_EXTENSIONS[image.mime]}", data)
        where = f"the original is in {path}" if path else "the original could not be kept"
        if path:
            originals.append(Original(path, image.mime, len(data)))
        if index >= _MAX_SHOWN:
            notes.append(f"picture {index + 1} is not shown: an answer holds {_MAX_SHOWN} at most; {where}")
            continue
        # An equal share of what is left, so the first of five pictures cannot use up the space of the other four; what
        # a small one does not need goes to those after it.
        share = left // (min(len(result.images), _MAX_SHOWN) - index)
        fitted = await fit(data, image.mime, limits.max_side, min(limits.max_base64_bytes, share))
        if fitted.image is None:
            notes.append(f"picture {index + 1} is not shown: {fitted.note}; {where}")
            continue
        images.append(fitted.image)
        if image.path and not fitted.note:
            originals[-1] = replace(originals[-1], is_known=True)
        left -= len(fitted.image.data)
        if fitted.note or not path:
            notes.append(f"picture {index + 1}: {fitted.note or 'shown'}; {where}")
    if result.whole is not None:
        digest = hashlib.sha256(result.whole.encode("utf-8", "replace")).hexdigest()[:20]
        path = await _put(sandbox, f"{OUTPUT}/answer-{digest}.txt", result.whole.encode("utf-8", "replace"))
        where = f"all of it is in {path}" if path else "the rest could not be kept"
        notes.append(f"this is part of {len(result.whole):,} characters; {where}")
    text = "\n".join([*([result.text] if result.text else []), *(f"[{note}]" for note in notes)])
    return replace(result, text=text, images=tuple(images), originals=tuple(originals), whole=None)


async def _put(sandbox: ToolSandbox, path: str, data: bytes) -> str:
    """Write a file and return its path; empty if that failed, for example because the disk is full."""
    try:
        reply = await sandbox.put(f"/api/files/{path}", data, once=False)
    except WakegateError as error:
        logger.warning("session %s: %s could not be kept: %s", sandbox.session_id, path, error)
        return ""
    if reply.status not in (200, 201):
        logger.warning("session %s: %s could not be kept: status %s", sandbox.session_id, path, reply.status)
        return ""
    return path
