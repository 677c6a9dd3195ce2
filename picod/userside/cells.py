"""Changes to IPython's kernel in what a cell may do and how its end is reported. Loaded by kernel.py, as user code.

- `exit()`, `quit()` and `sys.exit()` end the cell and nothing else: the kernel and its variables stay.
- An error keeps its name and text where ipykernel would lose them: when the repr of the last expression fails, or the
  error itself cannot be printed. Tracebacks that are shown without ending the cell go to standard error.
- Text for a pager (`obj?`, `%psource`) is printed, as a context has none.
- Text that is no Unicode (a lone surrogate, as of file names that are no UTF-8) is shown as its escape.
- `asyncio.run`, `Runner.run` and `loop.run_until_complete` work, though the kernel's own loop runs.
- A figure is sent once, also when it is the last expression and still open; `plt.show()` sends figures of the file
  backends (Agg) too.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_MAX_CHAIN = 100  # of errors, each raised while the one before it was handled: IPython calls itself for each
_CANNOT_BE_SHOWN = "the run ended with an error that cannot be shown"


def install(app: Any, *, before_each: Callable[[], None]) -> None:
    """Install all of the above in this kernel. `before_each` is called before each run."""
    _end_cells(app.shell)
    _print_pager_text(app.shell)
    _allow_event_loops()
    _show_figures_once(app.shell)
    sys.meta_path.insert(0, _AfterMatplotlib())
    _report_errors(app.kernel, _ShownErrors(app.shell), before_each)
    _send_any_text(app.session)


# The end of a cell.


def _end_cells(shell: Any) -> None:
    from ipykernel.zmqshell import ZMQExitAutocall
    from IPython.core import interactiveshell

    class EndCell(ZMQExitAutocall):  # type: ignore[misc]
        """In place of ipykernel's, which has the kernel end 0.1 s later, and lets the rest of the cell run."""

        def __call__(self, code: object = None) -> None:
            raise SystemExit(code)

    shell.exiter = EndCell(shell)
    for name in ("exit", "quit"):
        shell.user_ns[name] = shell.user_ns_hidden[name] = shell.exiter
        shell.builtin_trap.auto_builtins[name] = shell.exiter  # for modules; IPython takes theirs away
    warn = interactiveshell.warn

    def warn_of_all_else(message: str, *arguments: Any, **options: Any) -> None:
        if not str(message).startswith("To exit: use"):
            warn(message, *arguments, **options)

    interactiveshell.warn = warn_of_all_else
    shell.events.register("post_run_cell", _ignore_status_0)


def _ignore_status_0(result: Any) -> None:
    """Drop the SystemExit of `exit()` and `exit(0)` from the cell's result: status 0 is not an error, as in a shell."""
    if result is not None and _is_orderly(result.error_in_exec):
        result.error_in_exec = None


def _is_orderly(error: BaseException | None) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


class _ShownErrors:
    """The tracebacks that IPython shows while a cell runs: the last may be how it ends, the others are printed.

    ipykernel publishes them as messages of their own, which picod does not read: it takes the error of the reply.
    """

    def __init__(self, shell: Any) -> None:
        self.last: dict[str, Any] | None = None
        self._shell = shell
        shell._showtraceback = self._show
        keep = shell._format_exception_for_storage

        def keep_any(error: BaseException, *arguments: Any, **options: Any) -> Any:
            """IPython's, for its history; it would raise what the error's own `__str__` does, and that be shown."""
            try:
                return keep(error, *arguments, **options)
            except Exception:
                return keep(RuntimeError(_CANNOT_BE_SHOWN), *arguments, **options)

        shell._format_exception_for_storage = keep_any
        show = shell.showtraceback

        def show_any(exc_tuple: Any = None, *arguments: Any, exception_only: bool = False, **options: Any) -> None:
            """IPython's; groups of exceptions in Python's own form, which it would print and leave out of the reply."""
            kind, error, trace = exc_tuple or sys.exc_info()
            if exception_only or kind is None or error is None or not _is_for_python(error):
                show(exc_tuple, *arguments, exception_only=exception_only, **options)
                return
            # The first frame is IPython's, as in its own tracebacks.
            lines = traceback.format_exception(kind, error, trace.tb_next if trace else None)
            self._show(kind, error, "".join(lines).splitlines())

        shell.showtraceback = show_any

    def begin(self) -> None:
        """Forget the traceback of the previous cell."""
        self.last = None

    def _show(self, kind: type[BaseException], error: BaseException, lines: list[str]) -> None:
        self.print_last()
        if getattr(self._shell.displayhook, "msg", None) is not None:  # as ipykernel does it: the display failed
            self._shell._last_traceback_during_displayhook = True
        self._shell._last_traceback = lines
        if not _is_orderly(error):
            self.last = {"ename": kind.__name__, "evalue": _text_of(error), "traceback": lines}

    def print_last(self) -> None:
        """Print the traceback shown last, if any: the cell went on after it, so it is not the cell's error."""
        if self.last is not None:
            print("\n".join(self.last["traceback"]), file=sys.stderr)  # noqa: T201 - the cell's own stream
            self.last = None


def _is_for_python(error: BaseException | None) -> bool:
    """Whether an error is, or came of, a group of exceptions, or of more errors than IPython can go through."""
    for _ in range(_MAX_CHAIN):
        if error is None or isinstance(error, BaseExceptionGroup):
            return error is not None
        error = error.__context__
    return True


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return _CANNOT_BE_SHOWN


def _report_errors(kernel: Any, shown: _ShownErrors, before_each: Callable[[], None]) -> None:
    """Give each failed run's reply the name, the text and the traceback of its error.

    Otherwise ipykernel replies `NoneType: None` when a display failed, and sends no reply at all when the error's own
    `__str__` raises, so that the run would last until its timeout.
    """
    do_execute = kernel.do_execute

    async def execute(*arguments: Any, **options: Any) -> dict[str, Any]:
        before_each()
        shown.begin()
        reply: dict[str, Any]
        try:
            reply = await do_execute(*arguments, **options)
        except Exception as error:
            last = shown.last or {"ename": type(error).__name__, "evalue": _CANNOT_BE_SHOWN, "traceback": []}
            return {"status": "error", **last, "execution_count": kernel.shell.execution_count - 1}
        if reply.get("status") != "error":
            shown.print_last()
        elif shown.last is not None and reply.get("ename") == "NoneType":
            reply |= shown.last
        return reply

    kernel.do_execute = execute


def _send_any_text(session: Any) -> None:
    """Encode each message whatever a repr or an error's text contains.

    jupyter_client's encoder raises for a lone surrogate: `raise ValueError(name)` of a file whose name is no UTF-8 had
    no reply, and the run lasted until its timeout. It also warns in the cell's output of every value that is no JSON.
    """
    from jupyter_client.jsonutil import json_clean, json_default

    def pack(content: Any) -> bytes:
        try:
            text = json.dumps(content, default=json_default, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # NaN, keys that are no text, objects that are no JSON
            text = json.dumps(json_clean(content), default=repr, ensure_ascii=False, skipkeys=True)
        try:
            return text.encode()
        except UnicodeEncodeError:
            return "".join(f"\\\\u{ord(each):04x}" if "\ud800" <= each <= "\udfff" else each for each in text).encode()

    session.pack = pack


# Text for a pager.


def _print_pager_text(shell: Any) -> None:
    def page(text: Any, start: int = 0, screen_lines: int = 0, pager_cmd: Any = None) -> None:
        shown = text.get("text/plain", "") if isinstance(text, dict) else text
        print(shown)  # noqa: T201 - the cell's own stream

    def show_hook(_: Any, text: Any, start: int = 0, screen_lines: int = 0) -> None:
        page(text)

    shell.set_hook("show_in_pager", show_hook, 0)
    shell.payloadpage_page = page
    shell.set_next_input = lambda text, replace=False: print(text)  # noqa: T201 - what %load would put into a cell


# Event loops.


@contextmanager
def _own_loop_aside() -> Iterator[None]:
    """While the kernel's loop runs a cell, have asyncio believe that no loop runs in this thread.

    The kernel's loop is blocked until the cell ends anyway, so another loop may run meanwhile. Rejected: nest_asyncio,
    which runs the kernel's loop recursively, so that the next cell would start in the middle of this one.
    """
    loop = asyncio._get_running_loop()
    if loop is None or threading.current_thread() is not threading.main_thread() or loop is not _kernel_loop[0]:
        yield
        return
    task, policy_loop = asyncio.current_task(loop), loop
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
        if task is not None:
            asyncio.tasks._enter_task(loop, task)
        asyncio.set_event_loop(policy_loop)  # asyncio.run sets it to None when it ends


_kernel_loop: list[asyncio.AbstractEventLoop | None] = [None]


def _allow_event_loops() -> None:
    from tornado.ioloop import IOLoop

    own = _kernel_loop[0] = IOLoop.current().asyncio_loop  # type: ignore[attr-defined]
    run, runner_run = asyncio.run, asyncio.Runner.run
    base = asyncio.base_events.BaseEventLoop
    run_forever, run_until_complete = base.run_forever, base.run_until_complete

    def run_aside(*arguments: Any, **options: Any) -> Any:
        with _own_loop_aside():
            return run(*arguments, **options)

    def runner_run_aside(self: Any, *arguments: Any, **options: Any) -> Any:
        with _own_loop_aside():
            return runner_run(self, *arguments, **options)

    def run_forever_aside(self: Any) -> None:
        with _own_loop_aside():
            run_forever(self)

    def run_until_complete_aside(self: Any, future: Any) -> Any:
        if self is own and self.is_running() and asyncio.iscoroutine(future):
            return run_aside(future)  # asyncio.get_event_loop().run_until_complete(...), as scripts have it
        with _own_loop_aside():
            return run_until_complete(self, future)

    for new, old in ((run_aside, run), (runner_run_aside, runner_run), (run_forever_aside, run_forever),
                     (run_until_complete_aside, run_until_complete)):  # fmt: skip
        new.__name__, new.__qualname__, new.__doc__ = old.__name__, old.__qualname__, old.__doc__
    asyncio.run = asyncio.runners.run = run_aside
    asyncio.Runner.run = runner_run_aside  # type: ignore[method-assign]
    base.run_forever = run_forever_aside  # type: ignore[method-assign]
    base.run_until_complete = run_until_complete_aside  # type: ignore[method-assign]


# Figures.


def _show_figures_once(shell: Any) -> None:
    """Send no picture that is equal to one of the same figure that this cell has sent already.

    matplotlib's inline backend sends every open figure at the end of a cell: one that is the last expression as well
    would be sent twice. A figure that has changed meanwhile gives another picture, and is sent.
    """
    formatter = shell.display_formatter
    format_object = formatter.format
    sent: set[tuple[int, bytes]] = set()

    def format_once(shown: Any, *arguments: Any, **options: Any) -> Any:
        data, metadata = format_object(shown, *arguments, **options)
        figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        if figure is not None and isinstance(shown, figure) and "image/png" in data:
            picture = data["image/png"]
            key = (id(shown), hashlib.sha256(picture if isinstance(picture, bytes) else picture.encode()).digest())
            if key in sent:
                return {}, {}
            sent.add(key)
        return data, metadata

    formatter.format = format_once
    shell.events.register("pre_run_cell", lambda *_: sent.clear())
    # The inline backend registers the same when it is loaded; without it a figure as last expression would be text
    # only.
    formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", _as_png)


def _as_png(figure: Any) -> Any:
    from IPython.core.pylabtools import print_figure

    return print_figure(figure, "png", bbox_inches="tight")


def _show_figures(_: type, *, block: bool | None = None) -> None:
    """`plt.show()` of a backend without windows: send all open figures, and close them, as the inline backend does."""
    from IPython.display import display
    from matplotlib._pylab_helpers import Gcf

    for manager in Gcf.get_all_fig_managers():
        display(manager.canvas.figure)
    Gcf.destroy_all()


class _AfterMatplotlib:
    """A finder that adapts matplotlib's backends once they are imported, as most contexts never load them."""

    _MODULE = "matplotlib.backend_bases"

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """The module's own spec, with a loader that adapts it afterwards; None for all others."""
        if name != self._MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_adapt(module: Any) -> None:
                execute(module)
                # The former is what a backend of today has, the latter what most still export.
                module.FigureManagerBase.pyplot_show = module._Backend.show = classmethod(_show_figures)

            spec.loader.exec_module = execute_and_adapt  # type: ignore[method-assign]
        return spec
