"""Operations of other products' APIs, as their clients ask for them: AgentCube, OpenAI, E2B, Jupyter, Dify.

Paths, methods and answers follow from theirs; the errors have each product's own shape.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.openapi.common import LIMIT, PAGE, RUNTIME, ok
from gateway.api.openapi.document import Answer, Operation, Parameter
from gateway.api.openapi.schemas import RUNTIME_NAME, TEXT, Schema, ref
from gateway.core.model import Kind


def _agentcube(kind: Kind) -> dict[str, Operation]:
    name, path = kind.singular.replace("-", "_"), f"/v1/{kind.singular}"
    create = Operation(
        "POST",
        path,
        "agentcube",
        f"Create a session of a {kind.singular}.",
        ok("Sandbox"),
        body=ref("NewSandbox"),
        error="Message",
    )
    delete = Operation(
        "DELETE", path + "/sessions/{session_id}", "agentcube", "End a session.", ok("Message"), error="Message"
    )
    return {f"create_{name}": create, f"delete_{name}": delete}  # fmt: skip


AGENTCUBE: Mapping[str, Operation] = {**_agentcube(Kind.CODE_INTERPRETER), **_agentcube(Kind.AGENT_RUNTIME)}

_FILES = "/v1/containers/{container_id}/files"
_BYTES = Answer("The bytes.", None, "application/octet-stream")
CONTAINERS: Mapping[str, Operation] = {
    "create_container":
        Operation("POST", "/v1/containers", "containers", "Create a container.", ok("Container"), (RUNTIME,),
              body=ref("NewContainer"), error="OpenAIError"),
    "list_containers":
        Operation("GET", "/v1/containers", "containers", "List containers.", ok("Containers"),
              (*PAGE, Parameter("name", "Only those of this name.")), error="OpenAIError", sandbox=False),
    "get_container":
        Operation("GET", "/v1/containers/{container_id}", "containers", "Get a container.", ok("Container"),
              error="OpenAIError"),
    "delete_container":
        Operation("DELETE", "/v1/containers/{container_id}", "containers", "End a container.", ok("Deleted"),
              error="OpenAIError"),
    "create_container_file":
        Operation("POST", _FILES, "containers", "Upload a file.", ok("ContainerFile"), body=ref("Upload"),
              body_type="multipart/form-data", error="OpenAIError"),
    "list_container_files":
        Operation("GET", _FILES, "containers", "List files.", ok("ContainerFiles"), PAGE, error="OpenAIError"),
    "get_container_file":
        Operation("GET", _FILES + "/{file_id}", "containers", "Get a file's metadata.", ok("ContainerFile"),
                  error="OpenAIError"),
    "delete_container_file":
        Operation("DELETE", _FILES + "/{file_id}", "containers", "Delete a file.", ok("Deleted"), error="OpenAIError"),
    "get_container_file_content":
        Operation("GET", _FILES + "/{file_id}/content", "containers", "Read a file.",
              {200: _BYTES, 206: _BYTES, 304: Answer("Not modified."), 416: Answer("The range is beyond its end.")},
              error="OpenAIError", more=(Answer("", None, "*/*"),)),
}  # fmt: skip

_E2B = "/sandboxes/{sandbox_id}"
_E2B_PAGE = (
    Parameter("metadata", "Pairs key=value joined by &, each percent-encoded."),
    Parameter("state", "running, paused or both, joined by a comma."),
    Parameter("limit", "How many at most.", LIMIT),
    Parameter("nextToken", "x-next-token of the page before."),
)


def _e2b(
    method: str,
    path: str,
    summary: str,
    answers: Mapping[int, Answer],
    *more: Parameter,
    body: str = "",
    sandbox: bool = True,
) -> Operation:
    return Operation(
        method, path, "e2b", summary, answers, more, body=ref(body) if body else None, error="E2BError", sandbox=sandbox
    )


_SANDBOX = ref("E2BSandbox")
_SECOND: Schema = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999}
_NONE = {501: Answer("Wakegate has no such thing.", ref("E2BError"))}
_LISTED = {200: Answer("Newest first.", {"type": "array", "items": ref("E2BListedSandbox")})}
_CONNECTED = {200: Answer("It was running.", _SANDBOX), 201: Answer("It was paused.", _SANDBOX)}
E2B: Mapping[str, Operation] = {
    "e2b_create_sandbox":
        _e2b("POST", "/v2/sandboxes", "Create a sandbox.", {201: Answer("Created.", _SANDBOX)}, body="E2BNewSandbox"),
    "e2b_create_sandbox_v1":
        _e2b("POST", "/sandboxes", "Create a sandbox (older clients).", {201: Answer("Created.", _SANDBOX)},
             body="E2BNewSandbox"),
    "e2b_list_sandboxes":
        _e2b("GET", "/v2/sandboxes", "List sandboxes.", _LISTED, *_E2B_PAGE, sandbox=False),
    "e2b_list_sandboxes_v1":
        _e2b("GET", "/sandboxes", "List sandboxes (older clients).", _LISTED, *_E2B_PAGE, sandbox=False),
    "e2b_get_sandbox":
        _e2b("GET", _E2B, "Get a sandbox.", ok("E2BSandboxDetail")),
    "e2b_kill_sandbox":
        _e2b("DELETE", _E2B, "End a sandbox.", {204: Answer("Ended.")}),
    "e2b_connect_sandbox":
        _e2b("POST", "/v2" + _E2B + "/connect", "Wake a sandbox, and extend its timeout.", _CONNECTED,
             body="E2BTimeout"),
    "e2b_connect_sandbox_v1":
        _e2b("POST", _E2B + "/connect", "Wake a sandbox (older clients).", _CONNECTED, body="E2BTimeout"),
    "e2b_resume_sandbox":
        _e2b("POST", _E2B + "/resume", "Wake a sandbox (oldest clients).", _CONNECTED, body="E2BTimeout"),
    "e2b_pause_sandbox":
        _e2b("POST", _E2B + "/pause", "Hibernate a sandbox.", {204: Answer("Paused.")}),
    "e2b_set_timeout":
        _e2b("POST", _E2B + "/timeout", "Set the time that is left.", {204: Answer("Set.")}, body="E2BTimeout"),
    "e2b_refresh_sandbox":
        _e2b("POST", _E2B + "/refreshes", "Extend the time that is left.", {204: Answer("Extended.")},
             body="E2BTimeout"),
    "e2b_get_sandbox_metrics":
        _e2b("GET", _E2B + "/metrics", "What it uses now.",
             {200: Answer("One sample, or none.", {"type": "array", "items": {"type": "object"}})},
             Parameter("start", "Only from this second since 1970 on.", _SECOND),
             Parameter("end", "Only up to this one.", _SECOND)),
    "e2b_get_sandbox_logs":
        _e2b("GET", "/v2" + _E2B + "/logs", "Its log.", ok("E2BLogs")),
    "e2b_fork_sandbox":
        _e2b("POST", _E2B + "/fork", "Not supported.", _NONE),
    "e2b_snapshot_sandbox":
        _e2b("POST", _E2B + "/snapshots", "Not supported.", _NONE),
    "e2b_update_network":
        _e2b("PUT", _E2B + "/network", "Not supported.", _NONE),
}  # fmt: skip

# In the query: with a header that names a runtime, a path without a session is one of a new sandbox.
_RUNTIME_ASKED = Parameter("runtime", "The runtime of the kernel's session.", RUNTIME_NAME)
_KERNELS, _NOTEBOOKS = "/jupyter/api/kernels", "/jupyter/api/sessions"


def _jupyter(
    method: str, path: str, summary: str, answers: Mapping[int, Answer], *, body: bool = False, sandbox: bool = True
) -> Operation:
    return Operation(
        method, path, "jupyter", summary, answers, (_RUNTIME_ASKED,) if body else (),
        body=ref("JupyterNew") if body else None, error="JupyterError", sandbox=sandbox,
    )  # fmt: skip


def _array(schema: str) -> dict[int, Answer]:
    return {200: Answer("All of them.", {"type": "array", "items": ref(schema)})}


_ENDED = {204: Answer("Done.")}
_CONTENTS = "/jupyter/api/contents"
_FOLDER, _FILE = _CONTENTS + "/{session_id}", _CONTENTS + "/{session_id}/{path}"
_CONTENT_ASKED = (
    Parameter("content", "0: without the content.", {"enum": ["0", "1"]}),
    Parameter("type", "What it has to be.", {"enum": ["directory", "file", "notebook"]}),
    Parameter("format", "Of a file's content.", {"enum": ["text", "base64"]}),
)
_MODEL = {"type": "object", "required": ["name", "path", "type"]}
_CHECKPOINT = {"type": "object", "required": ["id", "last_modified"]}


def _contents(
    method: str, path: str, summary: str, schema: Schema | None, *more: Parameter, status: int = 200, body: bool = False
) -> Operation:
    return Operation(
        method, path, "jupyter", summary, {status: Answer("Done.", schema)}, more,
        body={"type": "object"} if body else None, error="JupyterError", sandbox=path != _CONTENTS,
    )  # fmt: skip


_JUPYTER_CONTENTS: Mapping[str, Operation] = {
    # First those whose path ends in more than {path}, which takes all that follows.
    "jupyter_list_checkpoints":
        _contents("GET", _FILE + "/checkpoints", "A file's checkpoints: one at most.",
                  {"type": "array", "items": _CHECKPOINT}),
    "jupyter_create_checkpoint":
        _contents("POST", _FILE + "/checkpoints", "Copy a file as its checkpoint.", _CHECKPOINT, status=201),
    "jupyter_restore_checkpoint":
        _contents("POST", _FILE + "/checkpoints/{checkpoint}", "Restore it.", None, status=204),
    "jupyter_delete_checkpoint":
        _contents("DELETE", _FILE + "/checkpoints/{checkpoint}", "Delete it.", None, status=204),
    "jupyter_list_contents":
        _contents("GET", _CONTENTS, "The kernels, as folders of their files.", _MODEL),
    "jupyter_get_folder":
        _contents("GET", _FOLDER, "The files of a kernel's workspace.", _MODEL, *_CONTENT_ASKED),
    "jupyter_get_file":
        _contents("GET", _FILE, "A file, notebook or folder, with its content.", _MODEL, *_CONTENT_ASKED),
    "jupyter_save_file":
        _contents("PUT", _FILE, "Save a file or notebook, or make a folder.", _MODEL, body=True),
    "jupyter_create_in_folder":
        _contents("POST", _FOLDER, "Create an untitled file, or a copy.", _MODEL, status=201, body=True),
    "jupyter_create_file":
        _contents("POST", _FILE, "Create an untitled file in a folder, or a copy.", _MODEL, status=201, body=True),
    "jupyter_rename_file":
        _contents("PATCH", _FILE, "Rename it within its kernel.", _MODEL, body=True),
    "jupyter_delete_file":
        _contents("DELETE", _FILE, "Delete a file or a folder.", None, status=204),
}  # fmt: skip
JUPYTER: Mapping[str, Operation] = {
    **_JUPYTER_CONTENTS,
    "jupyter_version":
        _jupyter("GET", "/jupyter/api", "The version of Jupyter Server whose API this is.", ok("JupyterVersion"),
                 sandbox=False),
    "jupyter_list_kernelspecs":
        _jupyter("GET", "/jupyter/api/kernelspecs", "The kernels that can be started.", ok("JupyterSpecs"),
                 sandbox=False),
    "jupyter_list_kernels":
        _jupyter("GET", _KERNELS, "List kernels.", _array("JupyterKernel"), sandbox=False),
    "jupyter_create_kernel":
        _jupyter("POST", _KERNELS, "Start a kernel: a session with its code context.",
                 {201: Answer("Started.", ref("JupyterKernel"))}, body=True),
    "jupyter_get_kernel":
        _jupyter("GET", _KERNELS + "/{session_id}", "Get a kernel.", ok("JupyterKernel")),
    "jupyter_delete_kernel":
        _jupyter("DELETE", _KERNELS + "/{session_id}", "End a kernel and its session.", _ENDED),
    "jupyter_restart_kernel":
        _jupyter("POST", _KERNELS + "/{session_id}/restart", "Restart it without its variables.",
                 ok("JupyterKernel")),
    "jupyter_interrupt_kernel":
        _jupyter("POST", _KERNELS + "/{session_id}/interrupt", "Interrupt the code that it runs.", _ENDED),
    "jupyter_list_sessions":
        _jupyter("GET", _NOTEBOOKS, "List notebooks' sessions: one for each kernel.", _array("JupyterSession"),
                 sandbox=False),
    "jupyter_create_session":
        _jupyter("POST", _NOTEBOOKS, "Start a kernel for a notebook.",
                 {201: Answer("Started.", ref("JupyterSession"))}, body=True),
    "jupyter_get_session":
        _jupyter("GET", _NOTEBOOKS + "/{session_id}", "Get a notebook's session.", ok("JupyterSession")),
    "jupyter_delete_session":
        _jupyter("DELETE", _NOTEBOOKS + "/{session_id}", "End it with its kernel.", _ENDED),
}  # fmt: skip

# Of each method of AgentScope's sandbox server: what it does.
_AGENTSCOPE = {
    "create": "Create a sandbox: a session.",
    "create_from_pool": "The same; warm pools are the gateway's own.",
    "get_session_mapping": "The sandboxes of one `session_ctx_id`.",
    "list_session_keys": "All `session_ctx_id` of the caller's sandboxes.",
    "get_info": "Describe a sandbox.",
    "check_health": "Whether there is a sandbox.",
    "get_status": "`running`, or `exited` while it is hibernated.",
    "list_tools": "The tools of a sandbox.",
    "call_tool": "Run a tool.",
    "start": "Wake a sandbox.",
    "stop": "Hibernate a sandbox.",
    "release": "End a sandbox and its session.",
    "cleanup": "End all of the caller's sandboxes.",
}
_FILES = "/agentscope/proxy/{session_id}/workspace/"
_ENTRY = {"type": "object", "properties": {"path": TEXT, "name": TEXT, "type": TEXT}}
_PATH_ASKED = Parameter("path", "Below /workspace, or relative to it.", required=True)


def _agentscope_file(
    method: str, verb: str, summary: str, answers: Mapping[int, Answer], *more: Parameter, body: Schema | None = None
) -> Operation:
    return Operation(method, _FILES + verb, "agentscope", summary, answers, more, body=body, error="AgentScopeError")


_AGENTSCOPE_FILES: Mapping[str, Operation] = {
    "agentscope_server_health":
        Operation("GET", "/agentscope/health", "agentscope", "That the server is there.",
                  {200: Answer("It is.", {"type": "object"})}, sandbox=False),
    "agentscope_read_file":
        _agentscope_file("GET", "file", "A file's content.", {200: Answer("It.", {}, "application/octet-stream")},
                         _PATH_ASKED, Parameter("format", "The content type.", {"enum": ["text", "bytes"]})),
    "agentscope_write_file":
        _agentscope_file("PUT", "file", "Write a file: the body.", {200: Answer("Written.", _ENTRY)}, _PATH_ASKED),
    "agentscope_write_files":
        _agentscope_file("POST", "files:batch", "Write the `files` of a form to its `paths`.",
                         {200: Answer("Written.", {"type": "array", "items": _ENTRY})}),
    "agentscope_list_directory":
        _agentscope_file("GET", "list", "What is below a folder.",
                         {200: Answer("All of it.", {"type": "array", "items": _ENTRY})}, _PATH_ASKED,
                         Parameter("depth", "1 if absent.", {"type": "integer", "minimum": 1})),
    "agentscope_file_exists":
        _agentscope_file("GET", "exists", "Whether there is a file.", {200: Answer("`exists`.", {"type": "object"})},
                         _PATH_ASKED),
    "agentscope_delete_entry":
        _agentscope_file("DELETE", "entry", "Delete a file or a folder.", _ENDED, _PATH_ASKED),
    "agentscope_move_entry":
        _agentscope_file("POST", "move", "Move `source` to `destination`.", {200: Answer("Moved.", _ENTRY)},
                         body=ref("AgentScopeArguments")),
    "agentscope_make_directory":
        _agentscope_file("POST", "mkdir", "Make the folder `path`.", {200: Answer("`created`.", {"type": "object"})},
                         body=ref("AgentScopeArguments")),
}  # fmt: skip
AGENTSCOPE: Mapping[str, Operation] = {
    **_AGENTSCOPE_FILES,
    **{f"agentscope_{method}": Operation(
        "POST", f"/agentscope/{method}", "agentscope", summary, ok("AgentScopeAnswer"),
        (_RUNTIME_ASKED,) if method.startswith("create") else (), body=ref("AgentScopeArguments"),
        error="AgentScopeError",
    )
    for method, summary in _AGENTSCOPE.items()},
}  # fmt: skip

_DIFY_DEPENDENCIES = "/v1/sandbox/dependencies"
DIFY: Mapping[str, Operation] = {
    "dify_run":
        Operation("POST", "/v1/sandbox/run", "dify", "Run a program in a sandbox of its own.", ok("DifyRan"),
                  (RUNTIME,), body=ref("DifyRun"), error="DifyError"),
    "dify_list_dependencies":
        Operation("GET", _DIFY_DEPENDENCIES, "dify", "Packages that code can import.", ok("DifyAnswer"),
                  error="DifyError", sandbox=False),
    "dify_update_dependencies":
        Operation("POST", _DIFY_DEPENDENCIES + "/update", "dify", "The same: nothing is installed.",
                  ok("DifyAnswer"), error="DifyError", sandbox=False),
    "dify_refresh_dependencies":
        Operation("GET", _DIFY_DEPENDENCIES + "/refresh", "dify", "The same.", ok("DifyAnswer"), error="DifyError",
                  sandbox=False),
}  # fmt: skip


_CLAIMS = "/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxclaims"
_SANDBOXES = "/apis/agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxes"
_KUBE_LIST = (
    Parameter("fieldSelector", "metadata.name=NAME."),
    Parameter("labelSelector", "KEY=VALUE pairs, joined by commas."),
    Parameter("watch", "true: a line of JSON for each change, for `timeoutSeconds`."),
    Parameter("timeoutSeconds", "Of a watch; 600 at most."),
    Parameter("resourceVersion", "Ignored: a watch begins with what there is."),
)


def _kube(
    method: str, path: str, summary: str, *, status: int = 200, body: bool = False, more: tuple[Parameter, ...] = ()
) -> Operation:
    document = {"type": "object"}
    return Operation(
        method, path, "agent-sandbox", summary, {status: Answer("Done.", document)}, more,
        body=document if body else None, error="KubernetesStatus",
    )  # fmt: skip


AGENT_SANDBOX: Mapping[str, Operation] = {
    "agent_sandbox_create_claim":
        _kube("POST", _CLAIMS, "Create a SandboxClaim: a session.", status=201, body=True),
    "agent_sandbox_list_claims":
        _kube("GET", _CLAIMS, "List or watch SandboxClaims.", more=_KUBE_LIST),
    "agent_sandbox_get_claim":
        _kube("GET", _CLAIMS + "/{name}", "Get a SandboxClaim."),
    "agent_sandbox_patch_claim":
        _kube("PATCH", _CLAIMS + "/{name}", "Answers the claim: its labels are kept as they were made.", body=True),
    "agent_sandbox_delete_claim":
        _kube("DELETE", _CLAIMS + "/{name}", "Delete a SandboxClaim: its session ends."),
    "agent_sandbox_list_sandboxes":
        _kube("GET", _SANDBOXES, "List or watch Sandboxes.", more=_KUBE_LIST),
    "agent_sandbox_get_sandbox":
        _kube("GET", _SANDBOXES + "/{sandbox_id}", "Get a Sandbox."),
    "agent_sandbox_patch_sandbox":
        _kube("PATCH", _SANDBOXES + "/{sandbox_id}", "Set spec.operatingMode: hibernate or wake.", body=True),
}  # fmt: skip
