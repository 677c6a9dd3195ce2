"""Messages that a kernel sends, made from the events of a run and from its answers. Pure.

Source: jupyter-client.readthedocs.io/en/stable/messaging.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from gateway import __version__
from gateway.api.sandbox_json import text_of

PROTOCOL = "5.3"
Message = dict[str, Any]

_LANGUAGE = {
    "name": "python",
    "version": "3.11",
    "mimetype": "text/x-python",
    "file_extension": ".py",
    "codemirror_mode": {"name": "ipython", "version": 3},
    "pygments_lexer": "ipython3",
    "nbconvert_exporter": "python",
}
KERNEL_INFO: Mapping[str, Any] = {
    "status": "ok",
    "protocol_version": PROTOCOL,
    "implementation": "ipython",
    "implementation_version": __version__,
    "language_info": _LANGUAGE,
    "banner": "Wakegate",
    "help_links": [],
}
# Answers to what notebook front ends ask besides, which nothing here can tell.
PLAIN_REPLIES: Mapping[str, Mapping[str, Any]] = {
    "kernel_info_request": KERNEL_INFO,
    "history_request": {"status": "ok", "history": []},
    "is_complete_request": {"status": "unknown"},
    "inspect_request": {"status": "ok", "found": False, "data": {}, "metadata": {}},
    "complete_request": {"status": "ok", "matches": [], "cursor_start": 0, "cursor_end": 0, "metadata": {}},
}


def make(
    kind: str,
    content: Mapping[str, Any],
    channel: str,
    parent: Mapping[str, Any],
    session: str,
    date: str,
    buffers: Sequence[bytes] = (),
) -> Message:
    """One message. `parent`: the header of the request that it answers. `buffers`: raw data of its content."""
    header = {
        "msg_id": uuid4().hex,
        "msg_type": kind,
        "username": "wakegate",
        "session": session,
        "date": date,
        "version": PROTOCOL,
    }
    return {
        "header": header,
        "msg_id": header["msg_id"],  # both at the top as well: Open WebUI reads them there
        "msg_type": kind,
        "parent_header": parent,
        "metadata": {},
        "content": content,
        "channel": channel,
        "buffers": list(buffers),
    }


def of_event(name: str, data: Mapping[str, Any], count: int) -> tuple[str, dict[str, Any]] | None:
    """Type and content of the message on iopub for an event of a run; None: it has none."""
    if name in ("stdout", "stderr"):
        return "stream", {"name": name, "text": text_of(data, "text", "")}
    if name == "clear":
        return "clear_output", {"wait": bool(data.get("wait"))}
    if name == "error":
        return "error", of_error(data)
    if name != "result" or not isinstance(data.get("data"), dict):
        return None
    # Only the last value of a cell has a number, which front ends show as Out[n]; what display() shows has none.
    content: dict[str, Any] = {"data": data["data"], "metadata": {}}
    if data.get("value") is True:
        return "execute_result", {**content, "execution_count": count}
    if display := text_of(data, "display_id", ""):
        content["transient"] = {"display_id": display}
    return ("update_display_data" if data.get("update") else "display_data"), content


def of_error(data: Mapping[str, Any]) -> dict[str, Any]:
    """An error of a run, as Jupyter names it."""
    traceback = data.get("traceback")
    lines = [str(line) for line in traceback] if isinstance(traceback, list) else str(traceback or "").split("\n")
    return {"ename": text_of(data, "name", ""), "evalue": text_of(data, "value", ""), "traceback": lines}
