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
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay import synthetic
from gateway.autoscaler.replay.trace import Trace
from gateway.core.errors import BadRequestError

_LOG_TIME = re.compile(r"\[(\d{2}/\w{3}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\]")


def spread(counts: Floats, width: float, start: float, seed: int) -> Floats:
    """Arrival times for counts per bin of `width` seconds, uniform within each bin."""
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
            if key == "scale":
                scale = float(value)
            elif key == "days":
                days = float(value)
            else:
                raise ValueError
        except ValueError:
            raise BadRequestError(f"{argument}: {option!r} is not scale=NUMBER or days=NUMBER") from None
    try:
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadRequestError(f"{path}: cannot be read ({error})") from error
    name = Path(path).name.partition(".")[0]
    traces = _reader_of(path, text)(path, name, text, scale, seed)
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
    try:
        return convert(value or "")
    except ValueError:
        raise BadRequestError(f"{path}:{line}: {value!r} cannot be read as a number or time") from None


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
    times = np.array([_at(path, i + 2, row["timestamp"], _iso) for i, row in enumerate(rows)])
    values = np.array([_at(path, i + 2, row["value"], float) for i, row in enumerate(rows)])
    if len(times) < 2:
        raise BadRequestError(f"{path}: needs at least two bins to know their width")
    width = float(np.median(np.diff(times)))
    # Another seed than for the spread: the two draws must not be correlated.
    arrivals = spread(thin(values, scale, seed + 6), width, float(times[0]), seed)
    return [Trace(name, arrivals, float(times[0]), float(times[0]) + len(times) * width, width)]


def _functions(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    traces = []
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        if number:
            counts = np.array([_at(path, number + 1, value, float) for value in row[1:]])
            arrivals = spread(thin(counts, scale, seed + 6), 60.0, 0.0, seed)
            traces.append(Trace(f"{name}/{row[0]}", arrivals, 0.0, 60.0 * len(counts)))
    return traces


def _k6_csv(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    rows = enumerate(_rows(path, text))
    times = [_at(path, i + 2, row["timestamp"], float) for i, row in rows if row["metric_name"] == "http_reqs"]
    return _whole(name, np.array(times), scale, seed)


def _k6_json(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    times = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            point = json.loads(line) if line.strip() else {}
            if point.get("type") == "Point" and point.get("metric") == "http_reqs":
                times.append(_iso(point["data"]["time"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequestError(f"{path}:{number}: not a line of k6's JSON output") from None
    return _whole(name, np.array(times), scale, seed)


def _locust(path: str, name: str, text: str, scale: float, seed: int) -> list[Trace]:
    rows = [row for row in _rows(path, text) if row.get("Name") == "Aggregated"]
    times = np.array([_at(path, i + 2, row["Timestamp"], float) for i, row in enumerate(rows)])
    totals = np.array([_at(path, i + 2, row.get("Total Request Count"), float) for i, row in enumerate(rows)])
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
        at = datetime.strptime(found.group(1), "%d/%b/%Y:%H:%M:%S %z").timestamp()
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
        except (ValueError, KeyError, TypeError):
            raise BadRequestError(
                f'{path}:{number}: expected {{"runtime": .., "bucket": 1 or 60, "counts": [[second, claims], ..]}}'
            ) from None
        if len(counts):
            start = float(counts[0, 0])
            bins = np.zeros(int((counts[-1, 0] - start) // width) + 1)
            np.add.at(bins, ((counts[:, 0] - start) // width).astype(int), counts[:, 1])
            arrivals = spread(thin(bins, scale, seed + 6), width, start, seed)
            traces.append(
                Trace(f"{name}/{document.get('runtime', number)}", arrivals, start, start + len(bins) * width)
            )
    return traces
