"""A WebSocket server that echoes messages (RFC 6455, text and binary, no fragments). Standard library only.

It runs inside a sandbox, as a user's code would: `python3 echo_server.py PORT`.
"""

import asyncio
import base64
import hashlib
import sys

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one frame. Returns opcode and unmasked data."""
    first, second = await reader.readexactly(2)
    # RFC 6455, 5.2: 126 and 127 announce a length of 2 or 8 bytes.
    size = second & 127
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4) if second & 128 else bytes(4)
    data = await reader.readexactly(size)
    return first & 15, bytes(byte ^ mask[index & 3] for index, byte in enumerate(data))


def framed(opcode: int, data: bytes) -> bytes:
    """Encode one final, unmasked frame of less than 64 KiB."""
    size = len(data)
    head = bytes([128 | opcode])
    head += bytes([size]) if size < 126 else bytes([126]) + size.to_bytes(2, "big")
    return head + data


async def upgrade(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept the handshake whose head this is, and echo until the client closes."""
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in head.split(b"\r\n"))
    }
    accept = base64.b64encode(hashlib.sha1(fields[b"sec-websocket-key"] + GUID).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
    writer.write(b"sec-websocket-accept: " + accept + b"\r\n\r\n")
    opcode = 0
    while opcode != 8:
        opcode, data = await frame(reader)
        # A ping (9) is answered by a pong (10); a close (8) is echoed, then the loop ends.
        writer.write(framed(10 if opcode == 9 else opcode, data))
        await writer.drain()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client until it leaves."""
    try:
        await upgrade(await reader.readuntil(b"\r\n\r\n"), reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, KeyError):
        pass
    writer.close()


async def main() -> None:
    """Listen on the port in the first argument and serve for ever."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
