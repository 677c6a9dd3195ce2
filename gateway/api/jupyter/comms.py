"""Comms, by which widgets talk to their front end: messages in both directions beside the code that runs. Pure.

A client's message is given to the kernel as a silent run that calls the handlers of its comm, after the code that runs
before it, as in Jupyter; what they print, show and answer comes back as that run's events. Rejected: the kernel's own
shell channel passed through, on which a client could send anything.
Source: jupyter-client.readthedocs.io/en/stable/messaging.html, "Custom Messages".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.api.jupyter.frames import FrameError
from gateway.api.sandbox_json import BadAnswerError

COMMS = ("comm_open", "comm_msg", "comm_close")
_MAX_NAME_CHARS = 256
_MAX_COMMS = 10_000
_LIST_TYPE = "application/x-wakegate-comms+json"
# Base64, so that nothing in a message is Python, or one of IPython's magic commands.
_DELIVER = (
    "(lambda m: getattr(__import__('IPython').get_ipython().kernel.comm_manager, m['kind'])(None, None, "
    "{{'header': {{}}, 'parent_header': {{}}, 'metadata': m['metadata'], 'content': m['content'], 'buffers': "
    "[memoryview(__import__('base64').b64decode(b)) for b in m['buffers']]}}))"
    "(__import__('json').loads(__import__('base64').b64decode('{}')))"
)
LIST_COMMS = (
    "__import__('IPython').display.display({'" + _LIST_TYPE + "': {each.comm_id: each.target_name for each in "
    "list(__import__('IPython').get_ipython().kernel.comm_manager.comms.values())[:"
    + str(_MAX_COMMS)
    + "]}}, raw=True)"
)


def delivering(message: Mapping[str, Any]) -> str:
    """The code that gives a client's message to the kernel. Raises FrameError for one that is no comm's."""
    kind, content = message["header"]["msg_type"], message["content"]
    for name in ("comm_id", "target_name") if kind == "comm_open" else ("comm_id",):
        value = content.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS:
            raise FrameError(f"content.{name}: expected a text of 1 to {_MAX_NAME_CHARS} characters")
    data = content.get("data")
    if not isinstance(data if data is not None else {}, dict):
        raise FrameError("content.data: expected an object")
    metadata, buffers = message.get("metadata"), message.get("buffers") or []
    document = {
        "kind": kind,
        "content": {**content, "data": data or {}},
        "metadata": metadata if isinstance(metadata, dict) else {},
        "buffers": [base64.b64encode(each).decode() for each in buffers if isinstance(each, bytes)],
    }
    return _DELIVER.format(base64.b64encode(orjson.dumps(document)).decode())


def of_comm(data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Sequence[bytes]] | None:
    """Type, content and raw data of the message of a `comm` event; None for what is none. Raises BadAnswerError."""
    kind, content, buffers = data.get("type"), data.get("content"), data.get("buffers")
    if kind not in COMMS or not isinstance(content, dict) or not isinstance(buffers, list):
        return None
    try:
        return kind, content, [base64.b64decode(each, validate=True) for each in buffers if isinstance(each, str)]
    except binascii.Error:
        raise BadAnswerError("the sandbox's answer: buffers are not base64") from None


def comms_of(events: Sequence[Mapping[str, Any]], target: Any) -> dict[str, dict[str, str]]:
    """The open comms of a kernel by id, from the events of LIST_COMMS; of one target's name, if that is a text."""
    for event in events:
        data = event.get("data")
        found = data.get(_LIST_TYPE) if isinstance(data, dict) else None
        if isinstance(found, dict):
            return {
                name: {"target_name": value}
                for name, value in found.items()
                if isinstance(value, str) and (value == target or not isinstance(target, str))
            }
    return {}
