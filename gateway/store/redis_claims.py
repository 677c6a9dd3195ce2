"""The history of claims (claims.py) in the Redis of the sessions.

Keys, below the store's root; Redis deletes each by itself:
    claims:<bucket>:<runtime>:<chunk>  hash: bucket start -> claims
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gateway.core.model import RuntimeKey
from gateway.store import claims, redis_scripts

# Bucket width -> seconds of history per key. A key per chunk lets Redis expire old history; within one hash it would
# have to be searched for. A chunk has at most 3600 or 1440 entries.
_CHUNK_SPAN_S = {1: 3600, 60: 86400}
_MAX_DIGITS = 15  # of a count or a time in seconds

Pipe = Callable[[str, Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]
RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisClaims:
    """Counts claims by the exchanges of a RedisStore: `pipe` of commands and `run` of a script."""

    def __init__(self, root: str, pipe: Pipe, run: RunScript) -> None:
        self._root = root
        self._pipe = pipe
        self._run = run

    async def record(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        keys: dict[str, int] = {}
        arguments: list[int] = []
        for (bucket, start), n in claims.fold(counts).items():
            key = self._chunk(runtime, bucket, start // _CHUNK_SPAN_S[bucket])
            # Redis deletes old history itself: a key expires one horizon plus its own span after its last write.
            arguments += [
                keys.setdefault(key, len(keys) + 1),
                claims.HORIZON_S[bucket] + _CHUNK_SPAN_S[bucket],
                start,
                n,
            ]
        if keys:
            await self._run(redis_scripts.CLAIMS, list(keys), arguments)

    async def history(self, runtime: RuntimeKey, since: float, now: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        oldest = claims.oldest_start(bucket, since, now)
        span = _CHUNK_SPAN_S[bucket]
        # One chunk beyond now: another replica's clock may be ahead of this one's.
        chunks = [self._chunk(runtime, bucket, chunk) for chunk in range(oldest // span, int(now) // span + 2)]
        found = await self._pipe("hgetall", [(key,) for key in chunks])
        counts = ((start, n) for chunk in found for start, n in chunk.items() if _sound(start) and _sound(n))
        return sorted((int(start), int(n)) for start, n in counts if int(start) >= oldest)

    def _chunk(self, runtime: RuntimeKey, bucket: int, chunk: int) -> str:
        return f"{self._root}claims:{bucket}:{runtime}:{chunk}"


def _sound(text: bytes) -> bool:
    """Whether it is a count or a time of ours: what anything else wrote there must not stop the sizing of pools."""
    return text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0
