"""What models are told of a terminal: its tools, as an OpenAPI document that Open WebUI makes tools of, and a prompt.

The names and fields are Open Terminal's, by which Open WebUI knows what to show; the texts are ours. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

PROMPT = (
    "You have access to a Linux computer of this chat's own. Use your tools to run commands, and to read, write and"
    " search files. Its home is /workspace: files there stay for the whole chat, also while the computer sleeps;"
    " processes and files elsewhere do not. Look at the present state before you change it, and at the output after a"
    " command. A command without output has usually succeeded. Python is there; whether the network is, depends on"
    " how the computer was set up."
)

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}


def _number(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


_LINE = {"type": "integer", "minimum": 1}
_WAIT = (
    "wait",
    {"type": "number", "minimum": 0, "maximum": 300},
    "Seconds to wait for the command's end; 5 if absent.",
)
_TAIL = ("tail", _LINE, "Only the last lines of the output, as many as this.")
_PATH = ("path", _TEXT, "The file: an absolute path, or one relative to the working directory.")
_FOLDER = ("path", _TEXT, "The folder to search in; the working directory if absent.")
_KIND = ("type", {"type": "string", "enum": ["any", "file", "directory"]}, "Only of this kind; any if absent.")
_PROCESS = ("process_id", _TEXT, "The id that run_command gave.")
Field = tuple[str, Mapping[str, Any], str]

_REPLACEMENT = {
    "type": "object",
    "required": ["target", "replacement"],
    "properties": {
        "target": {**_TEXT, "description": "The exact text to replace, spaces and line ends included."},
        "replacement": {**_TEXT, "description": "The text to put in its place."},
        "start_line": {**_LINE, "description": "Search from this line on."},
        "end_line": {**_LINE, "description": "Search up to this line."},
        "allow_multiple": {**_FLAG, "description": "Replace it wherever it is; else it must be there once."},
    },
}


def _tool(
    method: str, path: str, name: str, text: str, *fields: Field, body: tuple[Field, ...] = (), optional: str = ""
) -> tuple[str, str, dict[str, Any]]:
    """(path, method, operation). `optional`: names of fields that may be left out; those of the path never may."""
    left_out = optional.split()
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": text.partition(".")[0],
        "description": text,
        "parameters": [
            {
                "name": field,
                "in": "path" if f"{{{field}}}" in path else "query",
                "required": field not in left_out,
                "schema": schema,
                "description": said,
            }
            for field, schema, said in fields
        ],
        "responses": {"200": {"description": "Done."}},
    }
    if body:
        schema = {
            "type": "object",
            "required": [field for field, _, _ in body if field not in left_out],
            "properties": {field: {**kind, "description": said} for field, kind, said in body},
        }
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return path, method, operation


_TOOLS = (
    _tool("get", "/execute", "list_processes", "List the commands of this chat: those that run and the latest others."),
    _tool(
        "post", "/execute", "run_command",
        "Run a shell command on a terminal. The answer has its output as far as it came within `wait` seconds; a"
        " command that takes longer goes on, and get_process_status follows it by its id.",
        _WAIT, _TAIL,
        body=(
            ("command", _TEXT, "The command line, for bash."),
            ("cwd", _TEXT, "The directory to run it in; the working directory if absent."),
            ("env", {"type": "object", "additionalProperties": _TEXT}, "More variables of its environment."),
        ),
        optional="wait tail cwd env",
    ),
    _tool(
        "get", "/execute/{process_id}/status", "get_process_status",
        "Get whether a command still runs, its exit code, and its output from `offset` on.",
        _PROCESS, _WAIT, ("offset", {"type": "integer", "minimum": 0}, "next_offset of the answer before."), _TAIL,
        optional="wait offset tail",
    ),
    _tool(
        "post", "/execute/{process_id}/input", "send_process_input",
        r"Type into a command that runs. Its lines end with \n; \x03 is Ctrl-C.",
        _PROCESS, body=(("input", _TEXT, "What to type."),),
    ),
    _tool(
        "delete", "/execute/{process_id}", "kill_process", "End a command.",
        _PROCESS, ("force", _FLAG, "End it at once, by SIGKILL; else SIGTERM asks it to end."), optional="force",
    ),
    _tool(
        "get", "/files/list", "list_files", "List what is in a directory.",
        ("directory", _TEXT, "The directory; the working directory if absent."), optional="directory",
    ),
    _tool(
        "get", "/files/read", "read_file",
        "Read a text file, or some of its lines. A picture is shown to you as a picture.",
        _PATH, ("start_line", _LINE, "The first line to read."), ("end_line", _LINE, "The last line to read."),
        optional="start_line end_line",
    ),
    _tool(
        "get", "/files/display", "display_file",
        "Show a file to the user, in their own viewer. You see nothing of it; read_file is for that.", _PATH,
    ),
    _tool(
        "post", "/files/write", "write_file",
        "Write a text file; the folders that lead to it are made, and a file that is there is replaced.",
        body=(_PATH, ("content", _TEXT, "The whole content.")),
    ),
    _tool(
        "post", "/files/replace", "replace_file_content",
        "Replace exact texts in a file, one after another.",
        body=(_PATH, ("replacements", {"type": "array", "items": _REPLACEMENT}, "The replacements, in order.")),
    ),
    _tool(
        "get", "/files/grep", "grep_search", "Search the contents of text files below a folder.",
        ("query", _TEXT, "A regular expression (PCRE), or with regex=false a plain text."), _FOLDER,
        ("regex", _FLAG, "Whether query is a regular expression; true if absent."),
        ("case_insensitive", _FLAG, "Whether letters' case does not matter."),
        ("include", {"type": "array", "items": _TEXT}, "Only files whose name matches one of these, such as *.py."),
        ("match_per_line", _FLAG, "false: only the files' names; true if absent."),
        ("max_results", _number(1, 500), "How many at most; 50 if absent."),
        optional="path regex case_insensitive include match_per_line max_results",
    ),
    _tool(
        "get", "/files/glob", "glob_search", "Find files and folders below a folder by wildcards.",
        ("pattern", _TEXT, "Compared with names, and with paths below the folder, such as *.py."), _FOLDER,
        ("exclude", {"type": "array", "items": _TEXT}, "Leave out what matches one of these."), _KIND,
        ("max_results", _number(1, 500), "How many at most; 50 if absent."),
        optional="path exclude type max_results",
    ),
    _tool(
        "get", "/files/search", "search_files", "Find files and folders by a part of their name, the best match first.",
        ("query", _TEXT, "The part of the name."), _FOLDER, _KIND,
        ("limit", _number(1, 100), "How many at most; 20 if absent."),
        ("show_hidden", _FLAG, "Whether names that begin with a dot are found too."),
        optional="path type limit show_hidden",
    ),
    _tool(
        "get", "/api/terminals/user/output", "read_user_terminal",
        "Read what the user's own open terminal shows. Look before you type: a program may run in it.",
    ),
    _tool(
        "post", "/api/terminals/user/input", "send_user_terminal_input",
        "Type into the user's own open terminal, with real line feeds. The answer does not wait for what comes of it.",
        body=(("input", _TEXT, "What to type."),),
    ),
)  # fmt: skip


@lru_cache(maxsize=1)
def document() -> bytes:
    """The OpenAPI document, as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation in _TOOLS:
        paths.setdefault(path, {})[method] = operation
    info = {"title": "Open Terminal", "description": "A terminal of this chat's own.", "version": "0.14.5"}
    return orjson.dumps({"openapi": "3.1.0", "info": info, "paths": paths})
