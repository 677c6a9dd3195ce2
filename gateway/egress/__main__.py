"""`python -m gateway.egress --fd N`: the egress service, which a gateway starts. It ends when descriptor N does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import uvloop

from gateway.egress.package_cache import PackageCache
from gateway.egress.service import Service

logger = logging.getLogger(__name__)

_CACHE_TRIES, _CACHE_PAUSE_S = 30, 0.1


def main() -> int:
    """Serve until the gateway has ended, however it did. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="gateway.egress", allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True, help="a socket to the gateway")
    parser.add_argument("--authority", type=Path, help="folder of the authority with which TLS is ended")
    parser.add_argument("--trust", type=Path, help="authorities of origins besides the machine's, PEM")
    parser.add_argument("--cache", type=Path, help="folder of the package cache")
    parser.add_argument("--cache-bytes", type=int, default=0, help="its size; 0: none")
    parser.add_argument("--cache-shares", type=int, default=1, help="how many processes share that size")
    parser.add_argument("--refuse", action="append", default=[], help="a network that no policy opens")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # this memory has credentials
    # Ctrl-C is for the gateway, which hibernates its sessions first: they may still use this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(_run(options))
    return 0


def _cache(options: argparse.Namespace) -> PackageCache | None:
    """A cache that cannot be used is none: downloads work without it."""
    if options.cache is None or options.cache_bytes <= 0:
        return None
    try:
        # Workers of one gateway have one state folder, and a process each: every one has a folder and its share.
        # The one of a gateway that was killed ends a moment after it.
        for _ in range(_CACHE_TRIES):
            for number in range(options.cache_shares):
                folder = options.cache / f"worker-{number}" if number else options.cache
                with contextlib.suppress(BlockingIOError):
                    return PackageCache(folder, options.cache_bytes // options.cache_shares)
            time.sleep(_CACHE_PAUSE_S)
        logger.warning("package cache: %s: in use by another process", options.cache)
    except OSError as error:
        logger.error("package cache: %s: %s", error.filename, error.strerror)
    return None


async def _run(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    end = socket.socket(fileno=options.fd)
    service = Service(
        loop, end, refused=options.refuse, authority=options.authority, trusted=options.trust, cache=_cache(options)
    )
    loop.add_signal_handler(signal.SIGTERM, service.ended.set)
    gc.freeze()
    await service.run()


if __name__ == "__main__":
    raise SystemExit(main())
