"""What agents are made of: their files and their packages. Each is answered with a digest, which an agent names.

`POST /v1/agent-bundles` takes a tar archive, `POST /v1/agent-environments` a list of requirements.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import IO

from starlette.requests import Request
from starlette.responses import Response

from gateway.agents.bundles import MAX_UPLOAD_BYTES
from gateway.agents.code import CodeStore
from gateway.agents.environments import EnvironmentBuilder
from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_chunks, read_object
from gateway.core.errors import ConflictError, QuotaExceededError, RequestTimeoutError
from gateway.core.identity import current

_UPLOADS = 16  # at a time: 1 GiB of disk
_TENANTS_UPLOADS = 4
_UPLOAD_S = 600.0
_WRITE_BYTES = 1 << 20


class AgentBundlesAPI:
    """The handlers that take the files of agents, and make the environments that they run in.

    `environments` None: sandboxes of this gateway reach no index.
    """

    def __init__(self, code: CodeStore | None, environments: EnvironmentBuilder | None) -> None:
        """None: this engine has no agents of its own."""
        self._code, self._environments = code, environments
        self._slot = asyncio.Semaphore(1)  # unpacking takes a core and the disk
        self._uploads: Counter[str] = Counter()  # under way, by tenant

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"create_agent_bundle": self._create, "create_agent_environment": self._create_environment}

    async def _create(self, request: Request) -> Response:
        if self._code is None:
            raise ConflictError("this engine has no agents of its own")
        # Not in memory, and not in the slot: whoever sends slowly would hold up everybody's uploads.
        with self._upload(current().tenant), await self._code.scratch_file() as file:
            size = await _receive(request, file)
            async with self._slot:
                digest = await self._code.add(file, current().tenant)
        return JSON({"digest": digest, "bytes": size}, 201)

    @contextlib.contextmanager
    def _upload(self, tenant: str) -> Iterator[None]:
        """One of the uploads of a tenant. Raises QuotaExceededError when there are too many."""
        for limit, used, most in (
            ("uploads", self._uploads[tenant], _TENANTS_UPLOADS),
            ("uploads of all tenants", self._uploads.total(), _UPLOADS),
        ):
            if used >= most:
                raise QuotaExceededError(
                    f"agent bundles: {used} {limit} are under way, the most that may be at a time",
                    limit=limit, value=most, used=used,
                )  # fmt: skip
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1
            self._uploads += Counter()  # without those that have none

    async def _create_environment(self, request: Request) -> Response:
        if self._environments is None:
            raise ConflictError(
                "packages cannot be installed here: sandboxes of a cluster reach the index through the gateway's egress"
                " service, which --egress-port and --egress-address start; without it name an --image that has them"
            )
        body = await read_object(request)
        requirements = body.get("requirements")
        if not isinstance(requirements, str) or len(body) > 1:
            raise ParamError("requirements", "expected the text of a requirements.txt, and no other field")
        built = await self._environments.build(requirements)
        document = {"digest": built.digest, "cached": built.cached, "seconds": round(built.seconds, 3)}
        return JSON(document, 200 if built.cached else 201)


async def _receive(request: Request, file: IO[bytes]) -> int:
    """Write the body to a file; returns its size. Raises TooLargeError, RequestTimeoutError, BadRequestError."""
    request.state.body = b""  # the audit trail does not need it
    pending, size = bytearray(), 0
    try:
        async with asyncio.timeout(_UPLOAD_S):
            async for chunk in read_chunks(request, MAX_UPLOAD_BYTES):
                pending += chunk
                if len(pending) >= _WRITE_BYTES:
                    size += await asyncio.to_thread(file.write, pending)
                    pending = bytearray()
            size += await asyncio.to_thread(file.write, pending)
    except TimeoutError:
        raise RequestTimeoutError(f"the bundle did not come within {_UPLOAD_S:g} s") from None
    return size
