"""Operations of Open Terminal's API, as Open WebUI asks for them. All name their chat by X-Session-Id and X-User-Id."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.openapi.document import Answer, Operation, Parameter
from gateway.api.openapi.schemas import TEXT, Schema

_BASE = "/open-terminal"
_CHAT = (
    Parameter("x-session-id", "The chat; without it, what all chats of the user share.", where="header"),
    Parameter("x-user-id", "The user of Open WebUI.", where="header"),
)
_PATH = Parameter("path", "Absolute, or relative to the chat's working directory.", required=True)
_FOLDER = Parameter("path", "The folder to search in.")
_INTEGER: Schema = {"type": "integer", "minimum": 1}
_FLAG: Schema = {"enum": ["true", "false"]}
_WAIT = Parameter("wait", "Seconds to wait for the command's end.", {"type": "number", "minimum": 0, "maximum": 300})
_TAIL = Parameter("tail", "Only the last lines.", _INTEGER)
_OBJECT: Mapping[int, Answer] = {200: Answer("Done.", {"type": "object"})}
_LIST: Mapping[int, Answer] = {200: Answer("All.", {"type": "array", "items": {"type": "object"}})}
_BYTES: Mapping[int, Answer] = {
    200: Answer("The bytes.", None, "*/*"),
    415: Answer("No text can be made of it.", {"type": "object"}),
}


def _body(*names: str, **more: Schema) -> Schema:
    return {"type": "object", "required": list(names), "properties": {**dict.fromkeys(names, TEXT), **more}}


def _of_chat(
    method: str,
    path: str,
    summary: str,
    answers: Mapping[int, Answer],
    *more: Parameter,
    body: Schema | None = None,
    body_type: str = "application/json",
) -> Operation:
    return Operation(
        method, _BASE + path, "open-terminal", summary, answers, (*_CHAT, *more), body=body, body_type=body_type,
        error="OpenTerminalError",
    )  # fmt: skip


def _of_server(path: str, summary: str) -> Operation:
    return Operation("GET", _BASE + path, "open-terminal", summary, _OBJECT, error="OpenTerminalError", sandbox=False)


_FILE: Schema = {
    "type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}},
}  # fmt: skip
_PROXY = {
    f"open_terminal_proxy_{method.lower()}": _of_chat(
        method, "/proxy/{port}/{path}", "Ask a server in the chat's sandbox.", {200: Answer("Its answer.", None, "*/*")}
    )
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
}
OPEN_TERMINAL: Mapping[str, Operation] = {
    **_PROXY,
    "open_terminal_list_ports": _of_chat("GET", "/ports", "The ports that servers in it listen on.", _OBJECT),
    "open_terminal_health": _of_server("/health", "That the server is there."),
    "open_terminal_config": _of_server("/api/config", "What it can do."),
    "open_terminal_system": _of_server("/system", "What a model is told of it."),
    "open_terminal_openapi": _of_server("/openapi.json", "Its tools for models, as an OpenAPI document."),
    "open_terminal_list_processes": _of_chat("GET", "/execute", "The chat's commands.", _LIST),
    "open_terminal_run_command":
        _of_chat("POST", "/execute", "Run a command.", _OBJECT, _WAIT, _TAIL,
                 body=_body("command", cwd=TEXT, env={"type": "object", "additionalProperties": TEXT})),
    "open_terminal_get_process_status":
        _of_chat("GET", "/execute/{process_id}/status", "A command's state and output.", _OBJECT, _WAIT, _TAIL,
                 Parameter("offset", "`next_offset` of the answer before.", {"type": "integer", "minimum": 0})),
    "open_terminal_send_process_input":
        _of_chat("POST", "/execute/{process_id}/input", "Type into a command.", _OBJECT, body=_body("input")),
    "open_terminal_kill_process":
        _of_chat("DELETE", "/execute/{process_id}", "End a command.", _OBJECT,
                 Parameter("force", "By SIGKILL.", _FLAG)),
    "open_terminal_create_terminal":
        _of_chat("POST", "/api/terminals", "An id for the user's own terminal, which its WebSocket opens.", _OBJECT),
    "open_terminal_list_terminals": _of_chat("GET", "/api/terminals", "The chat's open terminals.", _LIST),
    "open_terminal_get_terminal": _of_chat("GET", "/api/terminals/{terminal_id}", "An open terminal.", _OBJECT),
    "open_terminal_delete_terminal": _of_chat("DELETE", "/api/terminals/{terminal_id}", "End it.", _OBJECT),
    "open_terminal_read_user_terminal":
        _of_chat("GET", "/api/terminals/user/output", "What the user's terminal shows.", _OBJECT),
    "open_terminal_send_user_terminal_input":
        _of_chat("POST", "/api/terminals/user/input", "Type into it.", _OBJECT, body=_body("input")),
    "open_terminal_get_cwd": _of_chat("GET", "/files/cwd", "The chat's working directory.", _OBJECT),
    "open_terminal_set_cwd": _of_chat("POST", "/files/cwd", "Change it.", _OBJECT, body=_body("path")),
    "open_terminal_list_files":
        _of_chat("GET", "/files/list", "What is in a directory.", _OBJECT, Parameter("directory", "The directory.")),
    "open_terminal_read_file":
        _of_chat("GET", "/files/read", "A text file's lines, or a picture.", _BYTES, _PATH,
                 Parameter("start_line", "The first.", _INTEGER), Parameter("end_line", "The last.", _INTEGER)),
    "open_terminal_display_file": _of_chat("GET", "/files/display", "Whether a file is there.", _OBJECT, _PATH),
    "open_terminal_view_file": _of_chat("GET", "/files/view", "A file's bytes.", _BYTES, _PATH),
    "open_terminal_serve_file": _of_chat("GET", "/files/serve/{path}", "The same, by an absolute path.", _BYTES),
    "open_terminal_write_file":
        _of_chat("POST", "/files/write", "Write a text file.", _OBJECT, body=_body("path", "content")),
    "open_terminal_replace_file_content":
        _of_chat("POST", "/files/replace", "Replace texts in a file.", _OBJECT,
                 body=_body("path", replacements={"type": "array"})),
    "open_terminal_make_directory":
        _of_chat("POST", "/files/mkdir", "Make a folder, with its parents.", _OBJECT, body=_body("path")),
    "open_terminal_delete_entry": _of_chat("DELETE", "/files/delete", "Delete a file or a folder.", _OBJECT, _PATH),
    "open_terminal_move_entry":
        _of_chat("POST", "/files/move", "Move a file or a folder.", _OBJECT, body=_body("source", "destination")),
    "open_terminal_upload_file":
        _of_chat("POST", "/files/upload", "Upload a file of any kind.", _OBJECT,
                 Parameter("directory", "Where to.", required=True), body=_FILE, body_type="multipart/form-data"),
    "open_terminal_grep_search":
        _of_chat("GET", "/files/grep", "Search through files.", _OBJECT,
                 Parameter("query", "A regular expression.", required=True), _FOLDER,
                 Parameter("regex", "Whether it is one.", _FLAG),
                 Parameter("case_insensitive", "Letters' case does not matter.", _FLAG),
                 Parameter("include", "Only files of such a name."),
                 Parameter("match_per_line", "false: only names of files.", _FLAG),
                 Parameter("max_results", "How many at most.", _INTEGER)),
    "open_terminal_glob_search":
        _of_chat("GET", "/files/glob", "Find by wildcards.", _OBJECT, Parameter("pattern", "*.py.", required=True),
                 _FOLDER, Parameter("exclude", "But not these."), Parameter("type", "any, file or directory."),
                 Parameter("max_results", "How many at most.", _INTEGER)),
    "open_terminal_search_files":
        _of_chat("GET", "/files/search", "Find by a part of the name.", _OBJECT, Parameter("query", "The part."),
                 _FOLDER, Parameter("type", "any, file or directory."), Parameter("limit", "How many.", _INTEGER),
                 Parameter("show_hidden", "Dot files too.", _FLAG)),
}  # fmt: skip
