"""What the control surfaces put into the audit trail: one line for each operation that changes something or runs code.

A refusal for the caller's credentials, or for a quota, is recorded as well, also of operations that only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.core.clock import Clock
from gateway.core.errors import LimitError, WakegateError
from gateway.core.identity import current
from gateway.sessions.membership import ElsewhereError

# By operation of openapi/table.py. Those that are not here only read.
ACTIONS: Mapping[str, str] = {
    "create_session": "session.create",
    "create_code_interpreter": "session.create",
    "create_agent_runtime": "session.create",
    "create_container": "session.create",
    "update_session": "session.update",
    "delete_session": "session.delete",
    "delete_code_interpreter": "session.delete",
    "delete_agent_runtime": "session.delete",
    "delete_container": "session.delete",
    "end_mcp_session": "session.delete",
    "hibernate_session": "session.hibernate",
    "wake_session": "session.wake",
    "create_session_token": "session.token",
    "create_agent_bundle": "agent.upload",
    "create_agent_environment": "agent.install",
    "create_agent": "agent.create",
    "update_agent": "agent.update",
    "delete_agent": "agent.delete",
    "stop_agent": "agent.stop",
    "start_agent": "agent.start",
    "change_agent_rollout": "agent.rollout",
    "invoke_agent_async": "task.create",
    "cancel_agent_task": "task.cancel",
    "retry_agent_task": "task.retry",
    "delete_agent_task": "task.delete",
    "flat_create_agent": "agent.create",
    "flat_delete_agent": "agent.delete",
    "flat_stop_agent": "agent.stop",
    "flat_start_agent": "agent.start",
    "create_console_session": "console.login",
    "delete_console_session": "console.logout",
    "create_key": "key.create",
    "revoke_key": "key.revoke",
    "rotate_key": "key.rotate",
    "put_tenant": "tenant.put",
    "delete_tenant": "tenant.delete",
    "run_tool_calls": "tool.call",
    "post_mcp_message": "tool.call",
    "agentscope_create": "session.create",
    "agentscope_create_from_pool": "session.create",
    "agentscope_call_tool": "tool.call",
    "agentscope_start": "session.wake",
    "agentscope_stop": "session.hibernate",
    "agentscope_release": "session.delete",
    "agentscope_cleanup": "session.delete",
    "agentscope_write_file": "file.write",
    "agentscope_write_files": "file.write",
    "agentscope_move_entry": "file.write",
    "agentscope_make_directory": "file.write",
    "agentscope_delete_entry": "file.delete",
    "librechat_exec": "run.once",
    "librechat_exec_programmatic": "run.once",
    "librechat_upload": "file.write",
    "librechat_upload_batch": "file.write",
    "librechat_delete_file": "file.delete",
    "open_terminal_run_command": "command.run",
    "open_terminal_send_process_input": "command.run",
    "open_terminal_kill_process": "command.run",
    "open_terminal_create_terminal": "terminal.open",
    "open_terminal_delete_terminal": "terminal.close",
    "open_terminal_send_user_terminal_input": "command.run",
    "open_terminal_proxy_get": "port.open",
    "open_terminal_proxy_post": "port.open",
    "open_terminal_proxy_put": "port.open",
    "open_terminal_proxy_patch": "port.open",
    "open_terminal_proxy_delete": "port.open",
    "open_terminal_set_cwd": "session.update",
    "open_terminal_write_file": "file.write",
    "open_terminal_replace_file_content": "file.write",
    "open_terminal_make_directory": "file.write",
    "open_terminal_move_entry": "file.write",
    "open_terminal_upload_file": "file.write",
    "open_terminal_delete_entry": "file.delete",
    "jupyter_create_kernel": "session.create",
    "jupyter_create_session": "session.create",
    "jupyter_delete_kernel": "session.delete",
    "jupyter_delete_session": "session.delete",
    "jupyter_save_file": "file.write",
    "jupyter_create_in_folder": "file.write",
    "jupyter_create_file": "file.write",
    "jupyter_rename_file": "file.write",
    "jupyter_create_checkpoint": "file.write",
    "jupyter_restore_checkpoint": "file.write",
    "jupyter_delete_file": "file.delete",
    "jupyter_delete_checkpoint": "file.delete",
    "jupyter_restart_kernel": "session.update",
    "jupyter_interrupt_kernel": "session.update",
    "run_once": "run.once",
    "dify_run": "run.once",
    "dify_update_dependencies": "run.dependencies",  # nothing is installed; a client asks for it all the same
    "agent_sandbox_create_claim": "session.create",
    "agent_sandbox_patch_claim": "session.update",
    "agent_sandbox_delete_claim": "session.delete",
    "agent_sandbox_patch_sandbox": "session.update",
    "e2b_create_sandbox": "session.create",
    "e2b_create_sandbox_v1": "session.create",
    "e2b_kill_sandbox": "session.delete",
    "e2b_connect_sandbox": "session.wake",
    "e2b_connect_sandbox_v1": "session.wake",
    "e2b_resume_sandbox": "session.wake",
    "e2b_pause_sandbox": "session.hibernate",
    "e2b_set_timeout": "session.update",
    "e2b_refresh_sandbox": "session.update",
    "e2b_fork_sandbox": "session.fork",
    "e2b_snapshot_sandbox": "session.snapshot",
    "e2b_update_network": "session.update",
    "create_container_file": "file.write",
    "delete_container_file": "file.delete",
}
_WITH_CONTENT = frozenset(("command.run", "tool.call", "run.once", "task.create"))


def audited(operation: str, handler: Handler, audit: AuditLog, clock: Clock) -> Handler:
    """Wrap the handler of an operation: its outcome is recorded in the audit trail.

    Raises AuditUnavailableError, before anything is done, if a record is required and cannot be written.
    """
    recorder = _Recorder(operation, audit, clock)

    async def recorded(request: Request) -> Response:
        recorder.check()
        try:
            response = await handler(request)
        except ElsewhereError:
            raise  # the gateway that owns the session runs the operation and records it
        except WakegateError as error:
            recorder.failed(request, error)
            raise
        recorder.done(request, response)
        return response

    return recorded


class _Recorder:
    """Writes the audit trail's lines about one operation: what was asked, and what was answered."""

    def __init__(self, operation: str, audit: AuditLog, clock: Clock) -> None:
        self._operation, self._audit, self._clock = operation, audit, clock
        self._action = ACTIONS.get(operation)

    def check(self) -> None:
        """Raises AuditUnavailableError."""
        if self._action is not None:
            self._audit.check()

    def done(self, request: Request, response: Response) -> None:
        if self._action is not None and _is_call(self._operation, request):
            self._audit.record(self._event(self._action, request, response.status_code, "", response))

    def failed(self, request: Request, error: WakegateError) -> None:
        denied = denial_of(error)
        # Refusals are recorded for operations that only read as well: who tried keys or other tenants' ids shows there.
        if not isinstance(error, LimitError):
            if denied or self._action is not None:
                self._audit.record(self._event(denied or self._action or "", request, error.status, error.code))
            return
        actor = actor_of(request)
        left_out = self._audit.refusals.left_out((actor.tenant, actor.subject, error.code, error.limit))
        if left_out is not None:
            event = self._event(denied, request, error.status, error.code)
            self._audit.record(replace(event, detail={**event.detail, "limit": error.limit, "left_out": left_out}))

    def _event(
        self, action: str, request: Request, status: int, code: str, response: Response | None = None
    ) -> AuditEvent:
        created = getattr(request.state, "created", None)
        return AuditEvent(
            at=self._clock.now(),
            action=action,
            actor=actor_of(request),
            status=status,
            code=code,
            session=_session_of(request, response),
            runtime=str(created.runtime) if created is not None else "",
            request_id=(request.scope.get("state", {}).get("request_id") or b"").decode("latin-1"),
            detail=self._detail(action, request),
        )

    def _detail(self, action: str, request: Request) -> dict[str, str | int | float | bool]:
        detail: dict[str, str | int | float | bool] = {"operation": self._operation}
        body: bytes = getattr(request.state, "body", b"")
        if action in _WITH_CONTENT and body:
            detail |= {"bytes": len(body), "sha256": sha256(body).hexdigest()}
            if self._audit.text:
                # 64 KiB: as JSON with every character escaped, a line still fits into the bound of the trail
                # (audit/chain.py).
                detail["text"] = body[:65536].decode("utf-8", "replace")
        for name in ("key_id", "task"):
            if (named := request.path_params.get(name)) is not None:
                detail[name] = str(named)[:64]
        return detail


def denial_of(error: WakegateError) -> str:
    """The action recorded for an error that refuses the caller or exceeds a quota; empty for any other error."""
    if isinstance(error, LimitError):
        return "quota.denied"
    return "auth.denied" if error.status in (401, 403) else ""


def actor_of(request: Request) -> Actor:
    """The caller of a request, as the audit trail records it."""
    identity = request.scope.get("state", {}).get("identity") or current()
    client = request.scope.get("client")
    return Actor(
        subject=identity.subject,
        tenant=identity.tenant,
        role=str(identity.role),
        key_id=identity.key_id,
        address=client[0] if client else "",
    )


def _session_of(request: Request, response: Response | None) -> str:
    # From what is certain to what is claimed: the path, what the handler found or created, the answer, the request's
    # headers.
    for name in ("session_id", "container_id", "sandbox_id"):
        if (named := request.path_params.get(name)) is not None:
            return str(named)
    created = getattr(request.state, "created", None)
    known = created.id if created is not None else getattr(request.state, "session_id", None)
    if known is None and response is not None:
        known = response.headers.get("x-session-id")
    return str(known or request.headers.get("x-session-id") or request.headers.get("mcp-session-id") or "")


def _is_call(operation: str, request: Request) -> bool:
    """Whether it is recorded: of MCP's messages, only calls of tools and the beginning of a session are."""
    if operation != "post_mcp_message":
        return True
    try:
        # Malformed messages are recorded as calls: what they were meant to be is unknown.
        message = orjson.loads(getattr(request.state, "body", b""))
    except orjson.JSONDecodeError:
        return True
    return not isinstance(message, dict) or message.get("method") in ("tools/call", "initialize")
