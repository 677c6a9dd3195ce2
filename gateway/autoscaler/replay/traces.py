"""Reads arrival traces of many formats into one shape: sorted arrival times and a span.

Recognised by content, not by name; gzip is unpacked:

| format | looks like |
|---|---|
| arrivals | header `seconds`, then one arrival a line, seconds since the start |
| binned | header `timestamp,value`, ISO times at even distances |
| functions | header `function,minute_1,...`: one trace per line |
| k6 | `--out csv=` (`metric_name,timestamp,..`) or `--out json=` (JSON lines); the metric http_reqs |
| locust | `--csv` `..._stats_history.csv`: the growth of Total Request Count of the Aggregated rows |
| access log | common or combined format, `[10/Oct/2000:13:55:36 -0700]`; an address that appears starts a session |
| history | our recorded claims, JSON lines: `{"runtime": .., "bucket": 1 or 60, "counts": [[second, claims], ..]}` |

Arrivals within a bin are spread evenly at random with a fixed seed. Times keep the time of day (UTC) if the trace has
one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay import synthetic
from gateway.autoscaler.replay.trace import Trace
from gateway.core.errors import BadRequestError

_MAX_ARRIVALS = 50_000_000  # of a trace: 400 MB, and twice that while they are made
_MAX_SPAN_S = 3660 * 86400.0  # of a trace: a replay looks once a minute, also while nothing comes
_LOG_TIME = re.compile(r"\[(\d{2}/\w{3}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\]")


class _TooManyError(Exception):
    """A trace with more arrivals than are read."""


def spread(counts: Floats, width: float, start: float, seed: int) -> Floats:
    """Arrival times for counts per bin of `width` seconds, uniform within each bin."""
    if (total := float(counts.sum())) > _MAX_ARRIVALS:
        raise _TooManyError(f"{total:.3g} arrivals are more than {_MAX_ARRIVALS:,}; thin them with PATH:scale=0.01")
    rng = np.random.default_rng(seed)
    whole = counts.astype(np.int64)
    return np.sort(start + np.repeat(np.arange(len(whole)) * width, whole) + rng.random(int(whole.sum())) * width)


def thin(counts: Floats, scale: float, seed: int) -> Floats:
    """Counts times `scale`, the fraction rounded up as often as it is large, so that the mean is kept."""
    # 0.4 claims become one in two bins of five: rounding each bin would lose quiet runtimes altogether.
    return counts if scale == 1.0 else np.floor(counts * scale + np.random.default_rng(seed).random(len(counts)))


def read_traces(argument: str, seed: int = 1) -> list[Trace]:
    """The traces of `PATH[:scale=X][:days=N]` (a file of functions holds many), or of `synthetic:NAME`.

    Raises BadRequestError with the file, the line and what would be right.
    """
    if argument.startswith("synthetic:"):
        return [synthetic.make(argument.removeprefix("synthetic:"), seed)]
    path, *options = argument.split(":")
    scale, days = 1.0, None
    for option in options:
        key, _, value = option.partition("=")
        try:
            number = float(value)
            if key not in ("scale", "days") or not 0.0 < number < math.inf:
                raise ValueError
        except ValueError:
            raise BadRequestError(f"{argument}: {option!r} is not scale=NUMBER or days=NUMBER, above 0") from None
        scale, days = (number, days) if key == "scale" else (scale, number)
    try:
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadRequestError(f"{path}: cannot be read ({error})") from error
    name = Path(path).name.partition(".")[0]
    try:
        traces = _reader_of(path, text)(path, name, text, scale, seed)
    except (csv.Error, _TooManyError) as error:
        raise BadRequestError(f"{path}: cannot be read ({error})") from error
    if any(trace.span > _MAX_SPAN_S for trace in traces):
        raise BadRequestError(f"{path}: its times lie more than {_MAX_SPAN_S / 86400.0:.0f} days apart")
    traces = [trace.cut(days * 86400.0) if days is not None else trace for trace in traces]
    if not any(len(trace.arrivals) for trace in traces):
        raise BadRequestError(f"{path}: holds no arrivals")
    return traces


_Read = Callable[[str, str, str, float, int], list[Trace]]


def _reader_of(path: str, text: str) -> _Read:
    head = text[:4096].lstrip()
    first = head.split("\n", 1)[0].strip()
    if first == "seconds":
        return _arrivals
    if first.startswith("timestamp,value"):
        return _binned
    if first.startswith("function,minute_1"):
        return _functions
    if first.startswith("metric_name,timestamp"):
        return _k6_csv
    if first.startswith("Timestamp,User Count"):
        return _locust
    if first.startswith("{"):
        # Both are JSON lines.
        return _history if '"counts"' in head else _k6_json
    if _LOG_TIME.search(first):
        return _access_log
    raise BadRequestError(
        f"{path}: not a trace that is understood: its first line is {first[:60]!r}; expected one of `seconds`, "
        "`timestamp,value`, `function,minute_1,..`, k6 csv or json, locust stats_history, an access log, or recorded "
        "claims (docs/autoscaler.md)"
    )


def _rows(path: str, text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _at(path: str, line: int, value: str | None, convert: Callable[[str], float]) -> float:
    """A number or time of a line. Raises BadRequestError for what is none, or not a finite one."""
    try:
        number = convert(value or "")
        if math.isfinite(number):
            return number
    except (ValueError, OverflowError):
        pass
    raise BadRequestError(f"{path}:{line}: {_short(value)} cannot be read as a number or time") from None


def _count(path: str, line: int, value: str | None) -> float:
    """A number of arrivals."""
    number = _at(path, line, value, float)
    if number < 0.0:
        raise BadRequestError(f"{path}:{line}: {_short(value)} is no number of arrivals: it is less than 0")
    return number


def _short(value: str | None) -> str:
    return repr(value if value is None or len(value) <= 60 else value[:60] + "...")


def _column(
    path: str, rows: Sequence[dict[str, str]], name: str, read: Callable[[str, int, str | None], float]
) -> Floats:
    """One column of a file with a line of headers."""
    return np.array([read(path, i + 2, row.get(name)) for i, row in enumerate(rows)])


def _iso(value: str) -> float:
    at = datetime.fromisoformat(value)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _whole(name: str, arrivals: Floats, scale: float, seed: int) -> list[Trace]:
    if not len(arrivals):
        return []
    # Single arrivals are dropped at random. They cannot be multiplied without inventing how they come together.
    if scale < 1.0:
        arrivals = arrivals[np.random.default_rng(seed).random(len(arrivals)) < scale]
    arrivals = np.sort(arrivals)
    return (
        [Trace(name, arrivals, float(np.floor(arrivals[0])), float(np.floor(arrivals[-1])) + 1.0)]
        if len(arrivals)
        else []
    )


def _arrivals(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    lines = text.split()[1:]
    values = np.array([_at(path, i + 2, line, float) for i, line in enumerate(lines)])
    return _whole(name, values, scale, seed)


def _binned(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    rows = _rows(path, text)
    times = _column(path, rows, "timestamp", lambda file, line, value: _at(file, line, value, _iso))
    values = _column(path, rows, "value", _count)
    if len(times) < 2:
        raise BadRequestError(f"{path}: needs at least two bins to know their width")
    width = float(np.median(np.diff(times)))
    if width <= 0.0:
        raise BadRequestError(f"{path}: its bins must follow each other in time")
    # Another seed than for the spread: the two draws must not be correlated.
    arrivals = spread(thin(values, scale, seed + 6), width, float(times[0]), seed)
    return [Trace(name, arrivals, float(times[0]), float(times[0]) + len(times) * width, width)]


def _functions(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    traces = []
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        if number:
            counts = np.array([_count(path, number + 1, value) for value in row[1:]])
            arrivals = spread(thin(counts, scale, seed + 6), 60.0, 0.0, seed)
            traces.append(Trace(f"{name}/{row[0] if row else number}", arrivals, 0.0, 60.0 * len(counts)))
    return traces


def _k6_csv(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    rows = enumerate(_rows(path, text))
    times = [_at(path, i + 2, row.get("timestamp"), float) for i, row in rows if row.get("metric_name") == "http_reqs"]
    return _whole(name, np.array(times), scale, seed)


def _k6_json(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    times = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            point = json.loads(line) if line.strip() else {}
            if point.get("type") == "Point" and point.get("metric") == "http_reqs":
                times.append(_iso(point["data"]["time"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadRequestError(f"{path}:{number}: not a line of k6's JSON output") from None
    return _whole(name, np.array(times), scale, seed)


def _locust(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    rows = [row for row in _rows(path, text) if row.get("Name") == "Aggregated"]
    times = _column(path, rows, "Timestamp", lambda file, line, value: _at(file, line, value, float))
    totals = _column(path, rows, "Total Request Count", _count)
    if len(times) < 2:
        raise BadRequestError(f"{path}: needs at least two Aggregated rows")
    # Totals only grow; a row with less is of a run that was started again, and counts nothing.
    counts = thin(np.maximum(np.diff(totals, prepend=0.0), 0.0), scale, seed + 6)
    pieces = [
        spread(np.array([count]), 1.0, float(at) - 1.0, seed + i)
        for i, (at, count) in enumerate(zip(times, counts, strict=True))
    ]
    return _whole(name, np.concatenate(pieces), 1.0, seed)


def _access_log(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    times, seen = [], dict[str, float]()
    for number, line in enumerate(text.splitlines(), 1):
        found = _LOG_TIME.search(line)
        if found is None:
            if line.strip():
                raise BadRequestError(f"{path}:{number}: has no time like [10/Oct/2000:13:55:36 -0700]")
            continue
        at = _at(path, number, found.group(1), lambda at: datetime.strptime(at, "%d/%b/%Y:%H:%M:%S %z").timestamp())
        # One visitor's requests are one session until it has been silent for the default idle timeout, 15 minutes.
        visitor = line.split(" ", 1)[0]
        if at - seen.get(visitor, -1e18) > 900.0:
            times.append(at)
        seen[visitor] = at
    # The log has whole seconds. The fraction is drawn, or all sessions of a second would come at once.
    return _whole(name, np.array(times) + np.random.default_rng(seed).random(len(times)), scale, seed)


def _history(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    traces = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            width = int(document["bucket"])
            counts = np.array(document["counts"], dtype=np.float64).reshape(-1, 2)
            if width not in (1, 60) or not np.isfinite(counts).all() or (counts < 0.0).any():
                raise ValueError
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise BadRequestError(
                f'{path}:{number}: expected {{"runtime": .., "bucket": 1 or 60, "counts": [[second, claims], ..]}}, all'
                " numbers from 0 on"
            ) from None
        if len(counts):
            start, last = float(counts[:, 0].min()), float(counts[:, 0].max())
            if last - start > _MAX_SPAN_S:
                raise BadRequestError(f"{path}:{number}: its seconds lie more than ten years apart")
            bins = np.zeros(int((last - start) // width) + 1)
            np.add.at(bins, ((counts[:, 0] - start) // width).astype(int), counts[:, 1])
            arrivals = spread(thin(bins, scale, seed + 6), width, start, seed)
            traces.append(
                Trace(f"{name}/{document.get('runtime', number)}", arrivals, start, start + len(bins) * width)
            )
    return traces
