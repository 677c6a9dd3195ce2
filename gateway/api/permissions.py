"""Which permission each operation of the control surfaces needs. docs/security.md shows it as a table of roles.

`make_routes` refuses an operation that is missing here, so none is ever open by omission. Requests into sandboxes need
USE_SESSIONS (gateway/identity/scope.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.core.errors import UnauthorizedError
from gateway.core.identity import Permission, current
from gateway.identity.scope import require_use

PERMISSIONS: Mapping[str, Permission] = {
    "check_liveness": Permission.PUBLIC,
    "check_readiness": Permission.PUBLIC,
    "check_agentcube_health": Permission.PUBLIC,
    "check_agentcube_liveness": Permission.PUBLIC,
    "check_agentcube_readiness": Permission.PUBLIC,
    "get_openapi": Permission.PUBLIC,
    "get_resource_metadata": Permission.PUBLIC,
    "get_mcp_resource_metadata": Permission.PUBLIC,
    "render_metrics": Permission.READ_METRICS,
    "create_session": Permission.CREATE_SESSIONS,
    "get_session_egress": Permission.READ_SESSIONS,
    "list_sessions": Permission.READ_SESSIONS,
    "get_session": Permission.READ_SESSIONS,
    "update_session": Permission.MANAGE_SESSIONS,
    "delete_session": Permission.MANAGE_SESSIONS,
    "hibernate_session": Permission.MANAGE_SESSIONS,
    "wake_session": Permission.MANAGE_SESSIONS,
    "create_session_token": Permission.SHARE_SESSIONS,
    "watch_events": Permission.READ_SESSIONS,
    "get_session_logs": Permission.READ_SESSIONS,
    "create_console_session": Permission.READ_SESSIONS,
    "delete_console_session": Permission.READ_SESSIONS,
    "list_runtimes": Permission.READ_RUNTIMES,
    "explain_autoscaler": Permission.READ_POOLS,
    "autoscaler_what_if": Permission.READ_POOLS,
    "autoscaler_forecasts": Permission.READ_POOLS,
    "export_claim_history": Permission.READ_POOLS,
    "list_agents": Permission.READ_RUNTIMES,
    "get_agent": Permission.READ_RUNTIMES,
    "list_agent_revisions": Permission.READ_RUNTIMES,
    "get_agent_rollout": Permission.READ_RUNTIMES,
    "invoke_agent_async": Permission.USE_SESSIONS,
    "list_agent_tasks": Permission.READ_SESSIONS,
    "get_agent_task": Permission.READ_SESSIONS,
    "get_agent_task_result": Permission.USE_SESSIONS,
    "cancel_agent_task": Permission.USE_SESSIONS,
    "retry_agent_task": Permission.USE_SESSIONS,
    "delete_agent_task": Permission.USE_SESSIONS,
    "get_webhook_secret": Permission.MANAGE_AGENTS,
    "flat_list_agents": Permission.READ_RUNTIMES,
    "flat_get_agent": Permission.READ_RUNTIMES,
    "create_agent_bundle": Permission.MANAGE_AGENTS,
    "create_agent_environment": Permission.MANAGE_AGENTS,
    "create_agent": Permission.MANAGE_AGENTS,
    "update_agent": Permission.MANAGE_AGENTS,
    "delete_agent": Permission.MANAGE_AGENTS,
    "stop_agent": Permission.MANAGE_AGENTS,
    "start_agent": Permission.MANAGE_AGENTS,
    "change_agent_rollout": Permission.MANAGE_AGENTS,
    "flat_create_agent": Permission.MANAGE_AGENTS,
    "flat_delete_agent": Permission.MANAGE_AGENTS,
    "flat_stop_agent": Permission.MANAGE_AGENTS,
    "flat_start_agent": Permission.MANAGE_AGENTS,
    "get_usage": Permission.READ_USAGE,
    "create_key": Permission.MANAGE_KEYS,
    "list_keys": Permission.MANAGE_KEYS,
    "revoke_key": Permission.MANAGE_KEYS,
    "rotate_key": Permission.MANAGE_KEYS,
    "get_caller": Permission.READ_SESSIONS,
    "list_tenants": Permission.MANAGE_TENANTS,
    "get_own_tenant": Permission.READ_USAGE,
    "get_tenant": Permission.MANAGE_TENANTS,
    "put_tenant": Permission.MANAGE_TENANTS,
    "delete_tenant": Permission.MANAGE_TENANTS,
    "create_code_interpreter": Permission.CREATE_SESSIONS,
    "create_agent_runtime": Permission.CREATE_SESSIONS,
    "delete_code_interpreter": Permission.MANAGE_SESSIONS,
    "delete_agent_runtime": Permission.MANAGE_SESSIONS,
    "list_tools": Permission.READ_RUNTIMES,
    "run_tool_calls": Permission.USE_SESSIONS,
    "post_mcp_message": Permission.USE_SESSIONS,
    "end_mcp_session": Permission.USE_SESSIONS,
    "run_once": Permission.CREATE_SESSIONS,
    "agentscope_server_health": Permission.PUBLIC,
    "agentscope_read_file": Permission.USE_SESSIONS,
    "agentscope_write_file": Permission.USE_SESSIONS,
    "agentscope_write_files": Permission.USE_SESSIONS,
    "agentscope_list_directory": Permission.USE_SESSIONS,
    "agentscope_file_exists": Permission.USE_SESSIONS,
    "agentscope_delete_entry": Permission.USE_SESSIONS,
    "agentscope_move_entry": Permission.USE_SESSIONS,
    "agentscope_make_directory": Permission.USE_SESSIONS,
    "agentscope_create": Permission.CREATE_SESSIONS,
    "agentscope_create_from_pool": Permission.CREATE_SESSIONS,
    "agentscope_get_session_mapping": Permission.READ_SESSIONS,
    "agentscope_list_session_keys": Permission.READ_SESSIONS,
    "agentscope_get_info": Permission.READ_SESSIONS,
    "agentscope_check_health": Permission.READ_SESSIONS,
    "agentscope_get_status": Permission.READ_SESSIONS,
    "agentscope_list_tools": Permission.READ_SESSIONS,
    "agentscope_call_tool": Permission.USE_SESSIONS,
    "agentscope_start": Permission.MANAGE_SESSIONS,
    "agentscope_stop": Permission.MANAGE_SESSIONS,
    "agentscope_release": Permission.MANAGE_SESSIONS,
    "agentscope_cleanup": Permission.MANAGE_SESSIONS,
    "jupyter_version": Permission.READ_RUNTIMES,
    "jupyter_list_kernelspecs": Permission.READ_RUNTIMES,
    "jupyter_list_kernels": Permission.READ_SESSIONS,
    "jupyter_create_kernel": Permission.CREATE_SESSIONS,
    "jupyter_get_kernel": Permission.READ_SESSIONS,
    "jupyter_delete_kernel": Permission.MANAGE_SESSIONS,
    "jupyter_restart_kernel": Permission.USE_SESSIONS,
    "jupyter_interrupt_kernel": Permission.USE_SESSIONS,
    "jupyter_list_contents": Permission.READ_SESSIONS,
    "jupyter_get_folder": Permission.USE_SESSIONS,
    "jupyter_get_file": Permission.USE_SESSIONS,
    "jupyter_save_file": Permission.USE_SESSIONS,
    "jupyter_create_in_folder": Permission.USE_SESSIONS,
    "jupyter_create_file": Permission.USE_SESSIONS,
    "jupyter_rename_file": Permission.USE_SESSIONS,
    "jupyter_delete_file": Permission.USE_SESSIONS,
    "jupyter_list_checkpoints": Permission.USE_SESSIONS,
    "jupyter_create_checkpoint": Permission.USE_SESSIONS,
    "jupyter_restore_checkpoint": Permission.USE_SESSIONS,
    "jupyter_delete_checkpoint": Permission.USE_SESSIONS,
    "jupyter_list_sessions": Permission.READ_SESSIONS,
    "jupyter_create_session": Permission.CREATE_SESSIONS,
    "jupyter_get_session": Permission.READ_SESSIONS,
    "jupyter_delete_session": Permission.MANAGE_SESSIONS,
    "dify_run": Permission.CREATE_SESSIONS,
    "dify_list_dependencies": Permission.READ_RUNTIMES,
    "dify_update_dependencies": Permission.READ_RUNTIMES,
    "dify_refresh_dependencies": Permission.READ_RUNTIMES,
    "create_container": Permission.CREATE_SESSIONS,
    "list_containers": Permission.READ_SESSIONS,
    "get_container": Permission.READ_SESSIONS,
    "delete_container": Permission.MANAGE_SESSIONS,
    "create_container_file": Permission.USE_SESSIONS,
    "list_container_files": Permission.USE_SESSIONS,
    "get_container_file": Permission.USE_SESSIONS,
    "delete_container_file": Permission.USE_SESSIONS,
    "get_container_file_content": Permission.USE_SESSIONS,
    "agent_sandbox_create_claim": Permission.CREATE_SESSIONS,
    "agent_sandbox_list_claims": Permission.READ_SESSIONS,
    "agent_sandbox_get_claim": Permission.READ_SESSIONS,
    "agent_sandbox_patch_claim": Permission.MANAGE_SESSIONS,
    "agent_sandbox_delete_claim": Permission.MANAGE_SESSIONS,
    "agent_sandbox_list_sandboxes": Permission.READ_SESSIONS,
    "agent_sandbox_get_sandbox": Permission.READ_SESSIONS,
    "agent_sandbox_patch_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_create_sandbox": Permission.CREATE_SESSIONS,
    "e2b_create_sandbox_v1": Permission.CREATE_SESSIONS,
    "e2b_list_sandboxes": Permission.READ_SESSIONS,
    "e2b_list_sandboxes_v1": Permission.READ_SESSIONS,
    "e2b_get_sandbox": Permission.READ_SESSIONS,
    "e2b_kill_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_connect_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_connect_sandbox_v1": Permission.MANAGE_SESSIONS,
    "e2b_resume_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_pause_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_set_timeout": Permission.MANAGE_SESSIONS,
    "e2b_refresh_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_get_sandbox_metrics": Permission.READ_SESSIONS,
    "e2b_get_sandbox_logs": Permission.READ_SESSIONS,
    "e2b_fork_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_snapshot_sandbox": Permission.MANAGE_SESSIONS,
    "e2b_update_network": Permission.MANAGE_SESSIONS,
}


def requiring(permission: Permission, handler: Handler) -> Handler:
    """The handler, for callers that have the permission. Others get UnauthorizedError or PermissionDeniedError."""
    if permission is Permission.PUBLIC:
        return handler

    async def guarded(request: Request) -> Response:
        # Public operations are answered without a valid key, so the data path keeps the error for the others to raise.
        unauthenticated: UnauthorizedError | None = request.scope.get("state", {}).get("unauthenticated")
        if unauthenticated is not None:
            raise unauthenticated
        if permission is Permission.USE_SESSIONS:
            # The path as it was sent: decoded, `%2F` and `..` could make a path that the token does not name look like
            # one it does.
            require_use(current(), request.scope.get("raw_path") or request.url.path.encode())
        else:
            current().require(permission)
        return await handler(request)

    return guarded
