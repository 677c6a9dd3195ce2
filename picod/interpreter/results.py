"""Collects the output and the results of a run, within bounds, for one JSON answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from picod.commands.live_run import Source
from picod.commands.output_files import OUTPUT_FOLDER, open_output_file
from picod.commands.result_bounds import ResultBounds
from picod.config import PicodConfig
from picod.filesystem.paths import Workspace
from picod.http.request import to_json
from picod.interpreter.printed import Printed


class Collected:
    """A Listener that keeps everything for one answer. `finish` must be awaited after the run."""

    def __init__(self, config: PicodConfig, workspace: Workspace) -> None:
        self._pipes: tuple[Source, ...] = ()
        self._holds = 0  # streams whose file has too much queued
        run_id = os.urandom(8).hex()
        self._streams = {
            name: self._make_stream(f"{OUTPUT_FOLDER}/{run_id}.{name}", config, workspace)
            for name in ("stdout", "stderr")
        }
        self._bounds = ResultBounds()
        self._results: list[tuple[str, dict[str, Any]]] = []
        self._clearing = False

    def _make_stream(self, path: str, config: PicodConfig, workspace: Workspace) -> Printed:
        return Printed(
            config.max_output,
            path=path,
            max_file=config.max_spill,
            open_file=partial(open_output_file, workspace, path, config.max_spill),
            hold=self._hold,
        )

    def set_pipes(self, pipes: Iterable[Source]) -> None:
        """The sources that are paused while a stream's file has too much queued."""
        self._pipes = tuple(pipes)

    def _hold(self, wait: bool) -> None:
        self._holds += 1 if wait else -1
        for pipe in self._pipes:
            if self._holds:
                pipe.pause()
            else:
                pipe.resume()

    def output(self, stream: str, data: bytes) -> None:
        """Add printed bytes to the stream of that name."""
        self._streams[stream].take(data)

    async def finish(self) -> None:
        """End both streams and wait until their files are complete."""
        self._pipes = ()  # the next run's listener has them now: resuming them here would undo its pause
        for stream in self._streams.values():
            await stream.finish()

    def result(self, data: Mapping[str, Any] | None, display_id: str, *, update: bool, is_value: bool = False) -> None:
        """Add a result, or replace the one that it updates."""
        if self._clearing:  # `wait=True` avoids flicker: the old result stays until the new one is there
            self.clear(wait=False)
        if update:  # an animation is one result, however long it is
            for index, (known, old) in enumerate(self._results):
                if known == display_id:
                    self._bounds.release(old)
                    kept = self._bounds.admit(data)
                    self._results[index] = (display_id, kept if kept is not None else {})
            return
        kept = self._bounds.admit(data)
        if kept is not None:
            self._results.append((display_id, kept))

    def clear(self, *, wait: bool) -> None:
        """Drop the results so far; with `wait` once the next one comes."""
        self._clearing = wait
        if not wait:
            for _, kept in self._results:
                self._bounds.release(kept)
            self._results.clear()

    def comm(self, kind: str, content: Mapping[str, Any], buffers: Sequence[bytes]) -> None:
        """Left out: whoever waits for one answer is no front end of widgets."""

    @property
    def size(self) -> int:
        """A lower bound of the answer's size in bytes: escaping may add to it."""
        return sum(stream.size for stream in self._streams.values()) + self._bounds.size

    def answer(self, rest: Mapping[str, object]) -> Iterator[bytes]:
        """The answer as JSON, with the fields of `rest`, in pieces."""
        cut: dict[str, object] = {}
        for name, opening in (("stdout", b'{"stdout":"'), ("stderr", b'","stderr":"')):
            yield opening
            yield from self._streams[name].as_json()
            cut |= self._streams[name].fields(name)
        yield b'","results":['
        for index, (_, data) in enumerate(self._results):
            yield (b"," if index else b"") + to_json(data)
        yield b"]," + to_json({**cut, **self._bounds.fields(), **rest})[1:]
