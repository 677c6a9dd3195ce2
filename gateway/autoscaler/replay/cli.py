"""`wakegate replay`: arguments, progress on stderr, files in a folder, the table on stdout."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from gateway.autoscaler.replay import gaps, plots, report, scenarios
from gateway.autoscaler.replay.lab import MISS_RATES, POLICIES, Settings, TraceResult, parse_policies, run_trace
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.replay.traces import read_traces
from gateway.core.errors import BadRequestError

_MANY_LOOKS = 300_000  # half a minute to a minute of replay by the product's own code
_MISS_HELP = (
    "what a claim does that finds the pool empty: start its own (cold), or take the next ready (join: the local engine)"
)


def _seconds(text: str) -> float:
    """`10`, `10s`, `500ms`, `2m` to seconds."""
    # In this order: `500ms` ends in `s` as well.
    for suffix, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if suffix and not text.endswith(suffix):
            continue
        try:
            value = float(text[: len(text) - len(suffix)]) * factor
        except ValueError:
            break
        if 0.001 <= value <= 86400.0:
            return value
        break
    raise argparse.ArgumentTypeError(f"{text!r} is not a time like 10s, 500ms or 2m, from a millisecond to a day")


def _rates(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
        if values and all(0.0 < value < 1.0 for value in values):
            return values
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of miss rates between 0 and 1, like 0.01,0.05")


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
        if 0.0 <= value < 1.0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share below 1, like 0.3 or 30%")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `wakegate replay`."""
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="trace files, each PATH[:scale=X][:days=N]")
    parser.add_argument(
        "--gaps", action="append", default=[], metavar="FILE",
        help="idle gaps of sessions: a file `session,at` of their requests, or made:chat, office, agent, mixed",
    )  # fmt: skip
    parser.add_argument("--scenarios", action="store_true", help="also steps, bursts, silences and set clocks")
    parser.add_argument(
        "--runtime-lead", type=_seconds, default=10.0, metavar="TIME", help="create ordered to ready (10s)"
    )
    parser.add_argument("--tick", type=_seconds, default=1.0, metavar="TIME", help="of the control loop (1s)")
    parser.add_argument(
        "--policy", default=",".join(POLICIES), metavar="NAMES", help=f"comma separated: {','.join(POLICIES)}, fixed:N"
    )
    parser.add_argument(
        "--miss-rates", type=_rates, default=MISS_RATES, metavar="LIST", help="the predictive policy's knob"
    )
    parser.add_argument("--miss", choices=("cold", "join"), default="cold", help=_MISS_HELP)
    parser.add_argument("--max", type=int, default=512, metavar="N", help="largest pool (512)")
    parser.add_argument(
        "--warm-up", type=_share, default=0.3, metavar="SHARE", help="part of each trace that only teaches (0.3)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the spread of arrivals within bins (1)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write report.md, report.json and plots here")
    parser.add_argument("--no-plots", action="store_true", help="leave the plots out")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")


class _Bar:
    """A line on stderr that is drawn again; on anything but a terminal, one line per trace."""

    def __init__(self, total: float) -> None:
        self._total, self._done = max(total, 1.0), 0.0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, name: str, share: float, weight: float) -> None:
        """`share` of a trace that is `weight` seconds long is done."""
        done = min((self._done + share * weight) / self._total, 1.0)
        if self._terminal:
            filled = int(done * 30)
            passed = time.monotonic() - self._began
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done:4.0%} {passed:5.0f} s  {name[:36]:36}")
            sys.stderr.flush()

    def finish(self, result: TraceResult) -> None:
        """A trace is done: how much of all is, and how long each policy took."""
        name, span = result.trace.name, result.trace.span
        self._done += span
        self.show(name, 0.0, 0.0)
        took = ", ".join(f"{policy} {seconds:.1f}" for policy, seconds in result.took.items())
        ticks = f"{span / 86400.0:.3g} days at ticks of {result.settings.tick:g} s"
        start = "\n" if self._terminal else ""
        sys.stderr.write(f"{start}{self._done / self._total:4.0%} {name}: {ticks}, seconds of processor time: {took}\n")

    def close(self) -> None:
        """End the progress line of a terminal."""
        if self._terminal:
            sys.stderr.write("\n")


def _worth_compiling(traces: list[Trace]) -> bool:
    """Whether numba is there and there is so much to replay that a minute of compiling pays for itself."""
    looks = sum(len(trace.arrivals) + trace.span / 60.0 for trace in traces)
    return looks > _MANY_LOOKS and importlib.util.find_spec("numba") is not None


def _quietly(trace: Trace, settings: Settings) -> TraceResult:
    return run_trace(trace, settings, lambda _name, _share: None)


def run_all(traces: list[Trace], settings: Settings, jobs: int) -> list[TraceResult]:
    """Results in the order of the traces."""
    bar = _Bar(sum(trace.span for trace in traces))
    results: list[TraceResult] = []
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            # In the order of the traces, whichever is ready first: two runs of one command print the same report.
            for result in pool.map(_quietly, traces, [settings] * len(traces)):
                results.append(result)
                bar.finish(result)
    else:
        for trace in traces:
            # `span` is bound here: a closure would read the variable of the loop when it is called.
            results.append(run_trace(trace, settings, lambda name, share, span=trace.span: bar.show(name, share, span)))  # type: ignore[misc]
            bar.finish(results[-1])
    bar.close()
    return results


def run(args: argparse.Namespace) -> int:
    """Exit status: 0, or 2 when the input is wrong (reported on stderr)."""
    try:
        settings = Settings(
            lead=args.runtime_lead,
            tick=args.tick,
            warm_up=args.warm_up,
            most=args.max,
            joins=args.miss == "join",
            policies=parse_policies(args.policy),
            miss_rates=args.miss_rates,
        )
        if args.max < 1 or args.jobs < 1:
            raise BadRequestError("--max and --jobs must be 1 or more")
        traces = [trace for argument in args.traces for trace in read_traces(argument, args.seed)]
        # A fleet of functions has members that are called once a week; one without a claim to score is named and left
        # out.
        scored = [trace for trace in traces if (trace.arrivals >= trace.start + settings.warm_up * trace.span).any()]
        for trace in traces:
            if trace not in scored:
                sys.stderr.write(f"{trace.name}: left out, no arrivals after the warm-up\n")
        for name in args.gaps:
            law = name.removeprefix("made:")
            found = gaps.read_gaps(Path(name)) if law == name else gaps.made_gaps(law)
            sys.stdout.write(gaps.table(name, gaps.frontier(found)) + "\n\n")
        if not scored and not args.scenarios:
            if args.gaps and not args.traces:
                return 0
            raise BadRequestError(
                "no trace has arrivals after its warm-up; nothing can be scored"
                if args.traces
                else "no trace, no --gaps and no --scenarios: nothing to replay"
            )
        if _worth_compiling(scored):
            settings = replace(settings, port=True)
        results = run_all(scored, settings, args.jobs) if scored else []
        if results:
            sys.stdout.write(report.markdown(results) + "\n")
        if args.scenarios:
            played = scenarios.table([scenarios.play(each) for each in scenarios.SCENARIOS])
            sys.stdout.write(f"## Scenarios\n\n{played}\n")
            if not results:
                return 0
        if args.out is not None:
            files = report.write(results, args.out)
            if not args.no_plots:
                files += plots.draw(results, args.out)
            sys.stderr.write("wrote " + ", ".join(str(file) for file in files) + "\n")
    except BadRequestError as error:
        sys.stderr.write(f"wakegate replay: {error}\n")
        return 2
    return 0


def main() -> int:
    """`python -m gateway.autoscaler.replay`."""
    parser = argparse.ArgumentParser(prog="wakegate replay", description="Replay arrival traces against pool policies.")
    add_arguments(parser)
    return run(parser.parse_args())
