"""Makes local sandboxes, each with its folders, control group, process and socket, and removes all of that again."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.model import Endpoint, Runtime, RuntimeKey, SandboxId
from gateway.provider.local import (
    bwrap,
    egress,
    environments,
    health,
    interpreters,
    namespace_limits,
    process_tags,
    rlimits,
    terminals,
)
from gateway.provider.local.cgroups import Cgroup, CgroupTree
from gateway.provider.local.gpus import NO_GPUS, Gpus
from gateway.provider.local.isolation import IsolationReport
from gateway.provider.local.mount_stage import Folders
from gateway.provider.local.oom_priority import SPARED, OomPriority, set_value
from gateway.provider.local.process import Process, Restrict, StartFailedError
from gateway.provider.local.resizing import largest
from gateway.provider.local.sandbox import LocalSandbox
from gateway.provider.local.sandbox_users import SandboxIds, SandboxUsers, Shown
from gateway.provider.local.state_dir import StateDir

logger = logging.getLogger(__name__)

BACKLOG = 1024  # connections that wait in the kernel until picod accepts
KEYS_FILE = "jwks.json"

AGENT_START_S = 60.0  # as long as a rollout waits for it by default


class SandboxFactory:
    """Makes sandboxes in one state directory and removes them."""

    def __init__(
        self,
        state_dir: StateDir,
        groups: CgroupTree,
        report: IsolationReport,
        keys: Path,
        clock: Clock,
        sandbox_python: Path | None,
        start_timeout: float,
        code_context: str,
        egress_server: egress.EgressServer | None = None,
        users: SandboxUsers | None = None,
        gpus: Gpus = NO_GPUS,
    ) -> None:
        """`egress_server`: who serves the egress of sandboxes; None: they have none.

        `users`: None: all sandboxes have the gateway's. `gpus`: that sandboxes may have.
        """
        self._gpus = gpus
        self._egress_server, self._users = egress_server, users
        self._state_dir, self._groups, self._report = state_dir, groups, report
        self._limits_terminals = report.isolation == "bubblewrap" and terminals.may_be_set()
        self._keys = keys.resolve()
        self._clock = clock
        self._sandbox_python = sandbox_python
        self._start_timeout = start_timeout
        self._code_context = code_context
        self._host = bwrap.inspect_host()
        self._picod_python = interpreters.gateway_python()
        self._starting: dict[SandboxId, tuple[RuntimeKey, Process]] = {}
        self._stuck: list[Cgroup] = []  # groups that still held a dying process when they were to be removed

    async def start(self, runtime: Runtime, gpus: Sequence[str] = ()) -> LocalSandbox:
        """A healthy sandbox, unclaimed, with these GPUs. Raises StartFailedError; nothing of it remains then."""
        name = SandboxId(f"sb-{secrets.token_hex(8)}")
        born, created_at = self._clock.monotonic(), self._clock.now()
        workspace = self._state_dir.workspaces / name
        path = self._state_dir.socket_path(name)
        group, process, ids = Cgroup({}), None, None
        handovers = contextlib.ExitStack()
        try:
            if gpus and self._users is None and os.geteuid() == 0:
                # Outside it would be root, the owner of the nodes, and could change their modes for the whole machine.
                raise StartFailedError("a sandbox with a GPU needs a user of its own (--sandbox-uids)")
            ids = None if self._users is None else self._users.take()
            self._state_dir.make_workspace(name)
            group = self._groups.make(name, runtime.limits)
            handover, priority = None, None
            if self._report.isolation == "bubblewrap":
                priority = handovers.enter_context(contextlib.closing(OomPriority()))
                if self._may_reach_out(runtime):
                    handover = handovers.enter_context(contextlib.closing(egress.Handover()))
            process = await self._spawn(runtime, name, workspace, path, group, handover, priority, ids, gpus)
            endpoint = Endpoint(uds=path)
            sandbox = LocalSandbox(name, runtime, endpoint, workspace, process, group, created_at, born, ids)
            # An agent is healthy once its own program is, and to import LangChain for the first time can take 20 s.
            timeout = self._start_timeout if runtime.agent is None else max(self._start_timeout, AGENT_START_S)
            self._starting[name] = runtime.key, process
            await health.check(path, process, timeout)
            if self._limits_terminals and process.inner is not None:
                await self._limit_terminals(process.inner)
            if handover is not None and self._egress_server is not None:
                egress.begin(self._egress_server, name, runtime, handover)
        except BaseException as error:
            await self._remove(process, group, path, workspace, ids)
            if isinstance(error, (OSError, ValueError)):
                raise StartFailedError(str(error)) from error
            raise
        finally:
            self._starting.pop(name, None)
            handovers.close()
            if self._users is not None:
                self._users.hide(name)
        return sandbox

    def hint(self, runtime: RuntimeKey) -> str:
        """What sandboxes of a runtime that are being started say of what they wait for; empty: nothing."""
        for key, process in self._starting.values():
            if key == runtime and (output := process.error_output()):
                return output.splitlines()[-1]
        return ""

    def _may_reach_out(self, runtime: Runtime) -> bool:
        """Whether its isolated sandboxes have the egress proxy. Others have the machine's own network."""
        return bool(runtime.egress) and self._egress_server is not None

    async def remove(self, sandbox: LocalSandbox) -> None:
        """End it and remove its group and socket; its workspace is discarded in one rename, unless it is kept."""
        await self._remove(
            sandbox.process,
            sandbox.group,
            sandbox.endpoint.uds or "",
            sandbox.workspace,
            sandbox.ids,
            keep=lambda: sandbox.keeps_workspace,
        )

    async def _remove(
        self,
        process: Process | None,
        group: Cgroup,
        path: str,
        workspace: Path,
        ids: SandboxIds | None,
        *,
        keep: Callable[[], bool] = lambda: False,
    ) -> None:
        try:
            if process is not None:
                await process.end()
                if self._report.isolation == "process":
                    self._end_escaped(group, workspace)
            if self._users is not None and ids is not None:
                self._users.give_back(ids)  # not if `end` failed: a process that does not end keeps its id
        finally:
            # A process in an uninterruptible call keeps its group: tried again with each later removal.
            self._stuck = [other for other in (*self._stuck, group) if not other.remove()]
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            finally:
                if not keep():  # called last: it may be decided while the processes end
                    self._state_dir.discard(workspace)

    def _end_escaped(self, group: Cgroup, workspace: Path) -> None:
        """Without a pid namespace, what left picod's session is found by its group and by the tag it inherited."""
        for pidfd in (
            *group.kill(),
            *process_tags.kill_tagged(process_tags.tag(self._state_dir.owner, workspace.name)),
        ):
            os.close(pidfd)

    async def _spawn(
        self,
        runtime: Runtime,
        name: SandboxId,
        workspace: Path,
        path: str,
        group: Cgroup,
        handover: egress.Handover | None,
        priority: OomPriority | None,
        ids: SandboxIds | None,
        gpus: Sequence[str],
    ) -> Process:
        tag = process_tags.tag(self._state_dir.owner, name)
        python = interpreters.python_of(runtime, self._sandbox_python)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Made here and inherited: no folder of the host is writable inside, and the first client can connect before
            # picod runs. Leaving the block closes our copy, so that a connection fails once picod has ended.
            listener.bind(path)
            listener.listen(BACKLOG)
            if priority is not None:  # it is isolated
                config = self._config(runtime, name, workspace, python, gpus, reaches_out=handover is not None)
                return await self._spawn_isolated(runtime, name, config, group, listener, tag, handover, priority, ids)
            inside = str(workspace)
            environment = interpreters.command_environment(
                python, inside, {**runtime.environment, process_tags.VARIABLE: tag}
            )
            picod = environments.for_picod(
                runtime,
                name,
                workspace=inside,
                keys_file=str(self._keys / KEYS_FILE),
                packages=[str(interpreters.picod_folder().parent), *self._picod_python.packages],
                commands=environment,
                code_context=self._code_context,
                source=runtime.agent.source if runtime.agent is not None else "",
            )
            return await Process.start_unconfined(
                lambda fd, lifeline: interpreters.picod_command(self._picod_python, listener=fd, lifeline=lifeline),
                listener,
                tag,
                self._restrict(runtime, group, None, None),
                environment=picod,
                folder=workspace,
            )

    def _config(
        self,
        runtime: Runtime,
        name: SandboxId,
        workspace: Path,
        python: interpreters.Interpreter,
        gpus: Sequence[str],
        *,
        reaches_out: bool,
    ) -> bwrap.BwrapConfig:
        """What an isolated sandbox sees of the machine. `reaches_out`: it has the egress proxy."""
        bundle = self._state_dir.etc / egress.BUNDLE_FILE
        own = {
            "MPLCONFIGDIR": bwrap.MATPLOTLIB,
            **environments.thread_count(runtime.limits),
            **environments.for_agent(runtime),
            **(egress.environment(runtime, bundle) if reaches_out else {}),
            **self._gpus.environment(gpus),
            **runtime.environment,
        }
        picod = environments.for_picod(
            runtime,
            name,
            workspace=bwrap.WORKSPACE,
            keys_file=f"{bwrap.KEYS_FOLDER}/{KEYS_FILE}",
            packages=[bwrap.PICOD_ROOT, *self._picod_python.packages],
            commands=interpreters.command_environment(python, bwrap.WORKSPACE, own),
            code_context=self._code_context,
            source=bwrap.AGENT_FOLDER,
        )
        etc = {f"/etc/{file}": str(self._state_dir.etc / file) for file in bwrap.ETC_SYNTHETIC}
        readonly = {
            **interpreters.readonly_binds(self._picod_python, python),
            **etc,
            bwrap.KEYS_FOLDER: str(self._keys),
        }
        if reaches_out:
            readonly |= egress.bundle_binds(bundle, self._host.etc)
        if runtime.agent is not None and runtime.agent.source:
            readonly[bwrap.AGENT_FOLDER] = _unmoved(runtime.agent.source, "source")
        if gpus:
            readonly[self._gpus.libraries] = self._gpus.libraries
        readonly |= {mount.target: _unmoved(mount.source, "mounts") for mount in runtime.mounts}
        return bwrap.BwrapConfig(
            self._host,
            readonly,
            str(workspace),
            picod,
            runtime.limits,
            self._report.disable_userns,
            hidden=(str(self._state_dir.path),),
            devices=self._gpus.devices(gpus),
        )

    async def _spawn_isolated(
        self,
        runtime: Runtime,
        name: SandboxId,
        config: bwrap.BwrapConfig,
        group: Cgroup,
        listener: socket.socket,
        tag: str,
        handover: egress.Handover | None,
        priority: OomPriority,
        ids: SandboxIds | None,
    ) -> Process:
        outside, oom = None if handover is None else handover.theirs.fileno(), priority.theirs.fileno()
        shown, program, as_user = None, self._report.bwrap, None
        apart = ids is not None and ids.picod is not None
        if ids is not None:
            shown = await self._show(name, ids, config)
            limited = rlimits.command(self._limits(runtime, group, own_user=True))
            program, as_user = shown.bwrap, replace(shown.as_user, words=(*shown.as_user.words, *limited))
            config = replace(config, shown=shown.paths, apart=apart)
        assert program is not None

        def arguments(listener: int, lifeline: int) -> list[str]:
            python = self._picod_python
            code_uid = bwrap.USER_ID if apart else None
            command = interpreters.picod_command(
                python, listener=listener, lifeline=lifeline, egress=outside, oom=oom, code_uid=code_uid
            )
            return bwrap.arguments(config, command)

        return await Process.start_bubblewrap(
            program,
            arguments,
            listener,
            tag,
            self._restrict(runtime, group, shown, priority),
            syscalls=self._report.syscalls,
            inherited=(oom,) if outside is None else (oom, outside),
            as_user=as_user,
        )

    async def _show(self, name: SandboxId, ids: SandboxIds, config: bwrap.BwrapConfig) -> Shown:
        """Make what the sandbox needs visible to its user; `start` hides it again, when the sandbox has it."""
        assert self._users is not None
        private = (str(self._state_dir.etc), str(self._keys))
        binds = bwrap.minimal_binds(config.readonly, config.host).values()
        readable = tuple(each for each in binds if os.path.dirname(each) != private[0])
        return await self._users.show(name, ids, Folders(config.workspace, private, readable))

    def _limits(self, runtime: Runtime, group: Cgroup, *, own_user: bool) -> dict[int, int]:
        return rlimits.plan(
            runtime.limits,
            largest(runtime, group),
            memory_cgroup="memory" in group.folders,
            own_user_namespace=self._report.isolation == "bubblewrap",
            own_user=own_user,
        )

    def _restrict(self, runtime: Runtime, group: Cgroup, shown: Shown | None, priority: OomPriority | None) -> Restrict:
        """What puts the held process of a sandbox under its limits; one with a user of its own has some already."""
        program, as_user = (self._report.bwrap, None) if shown is None else (shown.bwrap, shown.as_user)

        async def restrict(pid: int) -> None:
            group.join(pid)  # first: what the process allocates from here on is charged to its group
            if as_user is None:
                rlimits.apply(pid, self._limits(runtime, group, own_user=False))
            if priority is not None:
                priority.begin(pid)
            else:  # picod itself, without isolation; it raises what it starts above that
                set_value(pid, SPARED)
            if self._report.namespace_limits:
                assert program is not None
                await namespace_limits.apply(program, pid, as_user)

        return restrict

    async def _limit_terminals(self, pidfd: int) -> None:
        try:
            await terminals.apply(pidfd)
        except OSError as error:  # root without capabilities, as in a container
            self._limits_terminals = False
            logger.warning("sandboxes share the machine's pseudo-terminals: %s", error.strerror)


def _unmoved(folder: str, field: str) -> str:
    """A folder that a manifest named when it was read. Raises StartFailedError if a link leads elsewhere by now."""
    if os.path.realpath(folder) != folder or not os.path.isdir(folder):
        raise StartFailedError(
            f"spec.wakegate.{field}: {folder} is not a folder any more, or a link leads elsewhere now"
        )
    return folder
