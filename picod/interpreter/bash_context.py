"""Bash contexts: each run is a new bash that starts with the state in which the last one ended.

Rejected: one long-lived shell, which `exit`, `set -e` or a kill would end with all its state. So each run reads the
state that the last one wrote at its end (folder, variables, functions, aliases, options), and a run that is killed
leaves the state as it was. Background jobs keep running; `jobs` and `fg` do not know those of earlier runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from picod.commands.command_spec import encode_env
from picod.commands.exit_status import exit_status, out_of_memory
from picod.commands.pipe_reader import PipeReader
from picod.commands.processes import Child
from picod.commands.stop import Stop, first_of
from picod.interpreter.contexts import Context, Outcome, stopped, timed_out
from picod.interpreter.kernel import KernelError, Listener
from picod.interpreter.state_files import StateFiles

# $1 state, $2 code. Variables that bash sets itself, and those of this script, are not saved. Options come last: with
# `set -e` in force, reading the rest of the state could end the shell.
SCRIPT = r"""
__wg_state=$1 __wg_code=$2
shift 2
shopt -s expand_aliases
[ -r "$__wg_state" ] && . "$__wg_state" 2>/dev/null
__wg_save() {
  local __wg_status=$? __wg_name
  trap - EXIT
  # Before anything else, as the next line changes them.
  {
    set +o; shopt -p
  } > "$__wg_state.options"
  set +eu
  {
    for __wg_name in $(compgen -v); do
      case $__wg_name in
        __wg_*|BASH*|COMP_*|DIRSTACK|EPOCH*|EUID|FUNCNAME|GROUPS|HISTCMD|LINENO|OPTIND|OPTARG|PIPESTATUS|PPID|PWD) ;;
        RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID|_) ;;
        *) declare -p "$__wg_name" ;;
      esac
    done
    compgen -A function | while read -r __wg_name; do
      case $__wg_name in __wg_*) ;; *) declare -f "$__wg_name" ;; esac
    done
    alias -p
    printf 'cd -- %q\n' "$PWD"
    cat "$__wg_state.options"
  } > "$__wg_state.new" 2>/dev/null && mv -f "$__wg_state.new" "$__wg_state"
  rm -f "$__wg_state.options"
  exit "$__wg_status"
}
trap __wg_save EXIT
. "$__wg_code"
"""


class BashContext(Context):
    """A context whose state is one file of bash commands, sourced at the start of each run."""

    language = "bash"

    @property
    def state_file(self) -> str:
        """Path of the state file, outside the workspace."""
        return os.path.join(self._around.folder(), f"{self.id}.bash")

    def state(self) -> str:
        """Always `idle`: between runs there is no process."""
        return "idle"

    async def _prepare(self) -> None:
        if self._around.find("bash") is None:
            raise KernelError("there is no bash in this sandbox")

    async def _run(
        self, code: str, timeout: float, listener: Listener, stop: Stop, env: Mapping[str, str], silent: bool
    ) -> Outcome:
        code_file = f"{self.state_file}.code"
        try:
            _write(code_file, code)
        except OSError as fault:
            raise KernelError(f"cannot write the code to a file for bash: {fault.strerror}") from fault
        # By a file and not by an argument: code may be longer than the 128 KiB of one, and `ps` would show it.
        before = out_of_memory.began()
        child, pipes = self._spawn(code_file, env)
        try:
            listener.set_pipes(pipes.values())
            for name, pipe in pipes.items():
                pipe.attach(_to(listener, name))
            why = await first_of(child.exited, stop, timeout)
            if why:
                await self._around.children.kill(child)
        finally:
            if not child.exited.done():
                await self._around.children.kill(child)
            for pipe in pipes.values():
                pipe.drain()
                pipe.detach()  # the output of background jobs is read and dropped, else a full pipe would block them
        status = exit_status(child.exited.result(), before, killed_by_us=bool(why))
        count = self.execution_count + 1
        if why == "timeout":
            error: dict[str, Any] | None = timed_out(timeout, "was killed; the context is as it was before")
        elif why:
            error = stopped(why)
        elif status.code:
            error = {"name": "ExitStatus", "value": status.sentence(), "traceback": []}
        else:
            error = None
        if why == "timeout":
            return Outcome(error, count, exit_code=124, timed_out=True)
        return Outcome(error, count, exit_code=status.code, signal=status.signal)

    def _spawn(self, code_file: str, env: Mapping[str, str]) -> tuple[Child, dict[str, PipeReader]]:
        bash = self._around.find("bash")
        if bash is None:
            raise KernelError("there is no bash in this sandbox")
        argv = [bash, b"--noprofile", b"--norc", b"-c", SCRIPT.encode(), b"bash"]
        argv += [self.state_file.encode(), code_file.encode()]
        ends: list[int] = []
        try:
            for _ in ("stdout", "stderr"):
                ends += os.pipe2(os.O_CLOEXEC)
            child = self._around.children.spawn(
                bash,
                argv,
                cwd_fd=self._around.workspace.fd,
                env={**self._around.env, **encode_env(env)},
                stdout=ends[1],
                stderr=ends[3],
            )
        except OSError as error:
            for fd in ends:
                os.close(fd)
            raise KernelError(f"bash could not be started: {error.strerror}") from error
        os.close(ends[1])
        os.close(ends[3])
        return child, {"stdout": PipeReader(ends[0]), "stderr": PipeReader(ends[2])}

    async def _save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        await asyncio.to_thread(_copy, self.state_file, files.bash)
        return {"saved": 1, "unsaved": []}

    async def _load(self, files: StateFiles) -> Mapping[str, Any]:
        try:
            await asyncio.to_thread(_copy, files.bash, self.state_file)
        except OSError as error:
            return {"restored": 0, "unsaved": [{"name": "*", "reason": f"cannot be read: {error.strerror}"}]}
        return {"restored": 1, "unsaved": []}

    async def _discard(self) -> None:
        async with self._turn:
            try:
                os.unlink(self.state_file)
            except FileNotFoundError:
                pass


def _to(listener: Listener, stream: str) -> Callable[[bytes], None]:
    return lambda data: listener.output(stream, data)


def _write(path: str, code: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(code.encode())


def _copy(source: str, target: str) -> None:
    # Replaced whole: a sandbox that is killed in between leaves the state of before, never half of one.
    shutil.copyfile(source, f"{target}.new")
    os.replace(f"{target}.new", target)
