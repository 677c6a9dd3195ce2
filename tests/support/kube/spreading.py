"""A Service without session affinity: one port, whose connections go to each of several others in turn."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_PIECE_BYTES = 1 << 16


@contextmanager
def spreading(ports: Sequence[int]) -> Iterator[int]:
    """Its port, served until the end of the block. `ports` may grow meanwhile."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    service = threading.Thread(target=_serve, args=(listener, ports), name="service")
    service.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close does not
        service.join()
        listener.close()


def _serve(listener: socket.socket, ports: Sequence[int]) -> None:
    threads: list[threading.Thread] = []
    opened: list[socket.socket] = []
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            break
        opened.append(near)
        try:
            far = socket.create_connection(("127.0.0.1", ports[len(threads) // 2 % len(ports)]))
        except OSError:
            near.close()
            continue
        opened.append(far)
        for pair in ((near, far), (far, near)):
            threads.append(threading.Thread(target=_pass, args=pair))
            threads[-1].start()
    for each in opened:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for each in opened:
        each.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, target):  # what one side has broken off the other must not wait for
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
