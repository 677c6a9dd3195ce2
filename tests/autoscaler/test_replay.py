"""The laboratory: the simulator is right, traces of every format are read, wrong ones refused, reports are whole."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.autoscaler.replay import baselines, cli, scenarios
from gateway.autoscaler.replay.lab import Settings, fixed_curve, parse_policies, run_trace
from gateway.autoscaler.replay.pool import Targets, simulate
from gateway.autoscaler.replay.report import fleet_frontiers_table, fleet_table
from gateway.autoscaler.replay.synthetic import make
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.replay.traces import read_traces
from gateway.core.errors import BadRequestError
from tests.support.autoscaler import poisson

pytestmark = pytest.mark.simulation


def constant(size: float) -> Targets:
    return Targets(np.array([-1000.0]), np.array([size]))


def test_simulator_counts_hits_misses_and_idle_time() -> None:
    """One warm sandbox, lead 10 s, claims at 0, 3 and 12 s: hit, miss, hit; idle is the time of unclaimed sandboxes."""
    outcome = simulate(np.array([0.0, 3.0, 12.0]), constant(1), lead=10.0, scored_from=0.0, end=30.0)

    assert (outcome.hits, outcome.claims, outcome.largest_shortfall) == (2, 3, 1)
    assert outcome.idle == pytest.approx(2.0 + 8.0)
    assert outcome.wait(0.99) == 10.0


def test_simulator_joins_the_next_ready() -> None:
    """With `join` the second claim takes the replacement of the first, 7 s later, and the third has to wait in turn."""
    outcome = simulate(np.array([0.0, 3.0, 12.0]), constant(1), lead=10.0, scored_from=0.0, end=30.0, joins=True)

    assert outcome.hits == 1
    assert outcome.waits.tolist() == [7.0, 1.0]


def test_simulator_charges_starts_that_are_given_up() -> None:
    """A target that flaps pays for the seconds its starts had run."""
    targets = Targets(np.array([0.0, 4.0]), np.array([3.0, 0.0]))
    outcome = simulate(np.array([50.0]), targets, lead=10.0, scored_from=0.0, end=60.0)

    assert outcome.idle == pytest.approx(12.0)


@pytest.mark.parametrize("joins", [False, True], ids=["cold", "join"])
def test_hindsight_curve_is_what_the_simulator_finds(joins: bool) -> None:
    """The fast formulas for fixed pools agree with the simulator."""
    trace = Trace("t", poisson(0.4, 20000.0), 0.0, 20000.0)
    curve = fixed_curve(trace, 10.0, 0.0, joins=joins)

    for size in (1, 3, 6, 9):
        outcome = simulate(trace.arrivals, constant(size), lead=10.0, scored_from=0.0, end=20000.0, joins=joins)
        assert curve.hits[size] == pytest.approx(outcome.hit_rate, abs=2e-3)
        assert curve.idle[size] == pytest.approx(outcome.mean_idle, abs=0.02)


def test_erlang_is_met_by_a_fixed_pool() -> None:
    """Four expected claims per lead time and six sandboxes: Erlang's B(6, 4) = 11.7 % are missed."""
    arrivals = poisson(0.4, 400_000.0)
    curve = fixed_curve(Trace("t", arrivals, 0.0, 400_000.0), 10.0, 0.0)

    assert 1.0 - curve.hits[6] == pytest.approx(0.1172, abs=0.004)


def test_oracle_hits_all_and_idles_never() -> None:
    """The oracle has neither misses nor idle time."""
    trace = make("steps").cut(20000.0)
    outcome = simulate(trace.arrivals, baselines.oracle(trace, 10.0, 0.0), lead=10.0, scored_from=6000.0, end=trace.end)

    assert outcome.hit_rate > 0.999
    assert outcome.mean_idle < 0.01


@pytest.mark.parametrize("name", sorted(baselines.KNOBS.keys() - {"known-rates", "known-changes"}))
def test_baselines_do_not_see_the_future(name: str) -> None:
    """What comes later changes no earlier target."""
    policy, knobs = baselines.KNOBS[name]
    trace = make("daily")
    other = Trace(
        "t", np.concatenate((trace.arrivals[trace.arrivals < 2e5], np.arange(2e5, 2.2e5, 0.05))), 0.0, trace.end
    )
    one, two = policy(trace, 10.0, knobs[1]), policy(other, 10.0, knobs[1])

    assert np.array_equal(one.levels[one.times < 2e5], two.levels[two.times < 2e5])


def test_predictive_halves_the_idle_where_rates_change() -> None:
    """On a rate that changes every few minutes, at equal hit rate, idle is at most 0.55 of the best fixed pool's."""
    result = run_trace(
        make("steps").cut(86400.0), Settings(policies=("predictive", "keda"), miss_rates=(0.02, 0.05)), lambda *_: None
    )
    predictive, fixed, keda = (result.idle_at(policy, 0.96) for policy in ("predictive", "fixed", "keda"))

    assert predictive is not None
    assert fixed is not None
    assert predictive <= 0.55 * fixed
    assert keda is None or predictive < keda


def test_known_changes_policy_lies_between_known_rates_and_fixed() -> None:
    """To learn the rate from the claims costs something, even knowing when to begin anew; less than not to learn it."""
    rng = np.random.default_rng(3)
    bins = [np.sort(rng.random(rng.poisson(rate * 300.0))) for rate in rng.choice([0.02, 0.1, 0.5], 120)]
    arrivals = np.concatenate([300.0 * (start + each) for start, each in enumerate(bins)])
    trace = Trace("t", arrivals, 0.0, 36000.0, 300.0)
    policies = ("known-rates", "known-changes", "predictive")
    result = run_trace(trace, Settings(policies=policies, miss_rates=(0.03, 0.01)), lambda *_: None)
    seer, learner, ours = (result.idle_at(p, 0.98) or np.nan for p in ("known-rates", "known-changes", "predictive"))

    assert 1.05 * seer < learner < 0.95 * result.curve.idle_at(0.98)
    assert learner < ours


def test_predictive_stays_at_a_constant_where_misses_are_many_and_even() -> None:
    """Steady claims of which a fifth may be missed: the pool does not chase single misses, within 5 % of the best."""
    arrivals = poisson(0.4, 20000.0)
    trace = Trace("t", arrivals, 0.0, 20000.0)
    result = run_trace(trace, Settings(policies=("predictive",), miss_rates=(0.2,)), lambda *_: None)

    assert result.points[0].outcome.hit_rate >= 0.79
    assert (result.points[0].idle_of_fixed or 9.9) <= 1.05


def test_fleet_table_counts_traces_that_had_nothing_to_teach_apart() -> None:
    """Of two traces only one has a hundred claims in its warm-up."""
    settings = Settings(policies=("predictive",), miss_rates=(0.1,))
    many = poisson(0.1, 10000.0)
    few = many[many > 2900.0]
    results = [
        run_trace(Trace(f"day/{name}", arrivals, 0.0, 10000.0), settings, lambda *_: None)
        for name, arrivals in (("many", many), ("few", few))
    ]

    row = fleet_table(results).splitlines()[-1].split(" | ")

    assert row[-2].endswith(" of 2")
    assert row[-1] == f"{int((results[0].points[0].idle_of_fixed or 0.0) > 1.05)} of 1 |"


def test_fleet_is_compared_with_baselines_at_equal_hits() -> None:
    """Each policy has one setting of its knob for all functions; those that do not reach a hit rate have no cell."""
    settings = Settings(policies=("predictive", "fixed", "histogram"), miss_rates=(0.1, 0.02))
    results = [
        run_trace(Trace(f"day/f{seed}", poisson(0.1, 10000.0, seed), 0.0, 10000.0), settings, lambda *_: None)
        for seed in (1, 2)
    ]

    head, _, ours, histogram = (line.strip("| ").split(" | ") for line in fleet_frontiers_table(results).splitlines())

    assert (ours[0], histogram[0], len(head)) == ("predictive", "histogram", 7)
    idle, theirs = float(ours[1]), float(histogram[1].split(" ")[0])
    assert histogram[1] == f"{theirs:.1f} ({theirs / idle:.0%})" or abs(theirs / idle - 1.0) < 0.1
    assert ours[-1] == "-"


def test_predictive_is_not_much_worse_than_fixed_on_batches() -> None:
    """Random batches cannot be foreseen: a constant pool is found and followed, within 5 % of the best."""
    result = run_trace(make("batches"), Settings(policies=("predictive",), miss_rates=(0.03,)), lambda *_: None)

    assert result.points[0].idle_of_fixed is not None
    assert result.points[0].idle_of_fixed <= 1.05


def test_predictive_foresees_timers() -> None:
    """Batches from a timer are stocked just ahead: all hits, at a small share of a fixed pool's idle."""
    result = run_trace(make("timer"), Settings(policies=("predictive",), miss_rates=(0.1,)), lambda *_: None)

    assert result.points[0].outcome.hit_rate > 0.97
    assert (result.points[0].idle_of_fixed or 1.0) < 0.1


K6_CSV = "metric_name,timestamp,metric_value\nhttp_reqs,1700000000,1\nvus,1700000000,3\nhttp_reqs,1700000002,1\n"
K6_JSON = (
    '{"type":"Metric","metric":"http_reqs","data":{}}\n'
    '{"type":"Point","metric":"http_reqs","data":{"time":"2023-11-14T22:13:20.5Z","value":1}}\n'
    '{"type":"Point","metric":"vus","data":{"time":"2023-11-14T22:13:21Z","value":1}}\n'
)
LOCUST = (
    "Timestamp,User Count,Type,Name,Total Request Count\n1700000000,1,,Aggregated,2\n"
    "1700000001,1,GET,/,3\n1700000001,1,,Aggregated,5\n"
)
LOG = (
    '10.0.0.1 - - [14/Nov/2023:22:13:20 +0000] "GET / HTTP/1.1" 200 1\n'
    '10.0.0.1 - - [14/Nov/2023:22:14:20 +0000] "GET / HTTP/1.1" 200 1\n'
    '10.0.0.2 - - [14/Nov/2023:22:15:20 +0000] "GET / HTTP/1.1" 200 1\n'
)
HISTORY = '{"runtime": "code-interpreters/default/a", "bucket": 60, "counts": [[1699999980, 3], [1700000100, 2]]}\n'


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("seconds\n0.5\n1.5\n7\n", 3),
        ("timestamp,value\n2015-02-26 21:40:00,4\n2015-02-26 21:45:00,6\n", 10),
        ("function,minute_1,minute_2\nf00,1,2\n", 3),
        (K6_CSV, 2),
        (K6_JSON, 1),
        (LOCUST, 5),
        (LOG, 2),
        (HISTORY, 5),
    ],
    ids=["arrivals", "binned", "functions", "k6 csv", "k6 json", "locust", "access log", "history"],
)
def test_trace_formats_are_recognised(tmp_path: Path, text: str, arrivals: int) -> None:
    """Each format is recognised by its content, compressed or not; arrivals are sorted and lie within the trace."""
    (tmp_path / "trace.any").write_text(text)
    (tmp_path / "trace.any.gz").write_bytes(gzip.compress(text.encode()))
    (trace,) = read_traces(str(tmp_path / "trace.any"))
    (packed,) = read_traces(str(tmp_path / "trace.any.gz"))

    assert np.array_equal(packed.arrivals, trace.arrivals)

    assert len(trace.arrivals) == arrivals
    assert np.all(np.diff(trace.arrivals) >= 0.0)
    assert trace.start <= trace.arrivals[0]
    assert trace.arrivals[-1] < trace.end


def test_traces_are_spread_by_a_fixed_seed(tmp_path: Path) -> None:
    """The same seed gives the same arrivals; a scale keeps the mean."""
    path = tmp_path / "t.csv"
    rows = "\n".join(f"2015-02-26 {i // 12:02d}:{i % 12 * 5:02d}:00,10" for i in range(240))
    path.write_text("timestamp,value\n" + rows + "\n")

    assert np.array_equal(read_traces(str(path))[0].arrivals, read_traces(str(path))[0].arrivals)
    assert not np.array_equal(read_traces(str(path), 2)[0].arrivals, read_traces(str(path))[0].arrivals)
    assert len(read_traces(f"{path}:scale=0.25")[0].arrivals) == pytest.approx(600, rel=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not a trace"),
        ("hello\n", "not a trace"),
        ("seconds\n1\nx\n", ":3: 'x'"),
        ("seconds\n", "holds no arrivals"),
        ("timestamp,value\n2015-02-26 21:40:00,4\n", "at least two bins"),
        ("timestamp,value\nnever,4\n2015-02-26 21:40:00,4\n", ":2: 'never'"),
        ('{"runtime": "x", "counts": [1]}\n', ":1: expected"),
        (K6_JSON + "{\n", ":4: not a line of k6"),
        ("seconds\n1\nnan\n", ":3: 'nan'"),
        ("seconds\n1\ninf\n", ":3: 'inf'"),
        ("seconds\n1\n1e15\n", "days apart"),
        ("timestamp,value\n2015-02-26 21:40:00,4\n2015-02-26 21:45:00,-1\n", ":3: '-1' is no number of arrivals"),
        ("timestamp,value\n2015-02-26 21:40:00,4\n2015-02-26 21:45:00\n", ":3: None"),
        ("timestamp,value\n2015-02-26 21:40:00,4\n2015-02-26 21:45:00,1e18\n", "are more than"),
        ("timestamp,value\n2015-02-26 21:40:00,4\n2015-02-26 21:40:00,4\n", "must follow each other"),
        ("timestamp,values\n2015-02-26 21:40:00,4\n2015-02-26 21:45:00,4\n", ":2: None"),
        ("timestamp,value\n" + "1" * 200_000, "cannot be read (field larger"),
        ("function,minute_1\nf00,nan\n", ":2: 'nan'"),
        (K6_CSV + "http_reqs,nan,1\n", ": 'nan'"),
        (LOG.replace("Nov", "Xyz"), ":1: '14/Xyz"),
        (HISTORY[:-20], ":1: expected"),
        (HISTORY + HISTORY[:-20], ":2: expected"),
        (HISTORY.replace("3]", "-3]"), ":1: expected"),
        (HISTORY.replace("3]", "NaN]"), ":1: expected"),
        (HISTORY.replace("1699999980", "-1e300"), ":1: "),
        (HISTORY.replace("60", "0"), ":1: expected"),
        (HISTORY.replace('"counts": [', '"counts": [' + "[" * 100_000), ":1: expected"),
    ],
)
def test_malformed_trace_is_refused_with_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    """A file that cannot be read is refused with its name, the line and what would be right."""
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(BadRequestError) as caught:
        read_traces(str(path))

    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_missing_trace_and_unknown_options_are_refused(tmp_path: Path) -> None:
    """A missing file, an unknown option and an unknown policy say what is wrong."""
    options = ("speed=3", "scale=nan", "scale=-1", "scale=inf", "days=0", "days=nan")
    for argument in (str(tmp_path / "none.csv"), "synthetic:nothing", *(f"{tmp_path}:{option}" for option in options)):
        with pytest.raises(BadRequestError):
            read_traces(argument)
    with pytest.raises(BadRequestError, match="kedda"):
        parse_policies("predictive,kedda")


def test_replay_writes_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command: table on stdout, Markdown, JSON and plots in the folder; twice the same."""
    pytest.importorskip("matplotlib")
    trace = tmp_path / "short.csv"
    trace.write_text("seconds\n" + "\n".join(f"{at:.3f}" for at in make("steps").cut(9000.0).arrivals) + "\n")
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)

    def run(folder: str) -> list[dict[str, object]]:
        args = parser.parse_args(
            [str(trace), "--runtime-lead", "5s", "--miss-rates", "0.05", "--out", str(tmp_path / folder)]
        )
        assert cli.run(args) == 0
        return json.loads((tmp_path / folder / "report.json").read_text())  # type: ignore[no-any-return]

    document = run("one")

    assert document == run("two")
    assert {point["policy"] for point in document[0]["points"]} >= {"predictive", "fixed", "keda", "oracle"}  # type: ignore[attr-defined]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "report.md",
        "report.json",
        "frontier.png",
        "short.png",
    }
    assert "| predictive |" in capsys.readouterr().out


def test_replay_refuses_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong input ends with status 2 and one line on stderr, never a traceback."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)

    assert cli.run(parser.parse_args([str(tmp_path / "none.csv")])) == 2
    assert "none.csv" in capsys.readouterr().err


def test_command_line_of_the_laboratory_works(tmp_path: Path) -> None:
    """The whole line as people write it: two traces, every policy by name, a lead time with its unit, a folder."""
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(3)
    for name in ("one", "two"):
        arrivals = np.sort(rng.random(400) * 3600.0)
        (tmp_path / f"{name}.csv").write_text("seconds\n" + "".join(f"{at:.3f}\n" for at in arrivals))
    policies = "predictive,fixed:*,keda,kpa,hpa,histogram,seasonal-naive,oracle"
    line = ["replay", "one.csv", "two.csv", "--runtime-lead", "10s", "--policy", policies, "--out", "report/"]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120.0,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "50% one" in done.stderr, "progress"
    assert "100% two" in done.stderr
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [each["trace"] for each in document] == ["one", "two"]
    for each in document:
        assert each["lead_s"] == 10.0
        named = {name.partition(":")[0] for name in policies.split(",")}
        assert {point["policy"] for point in each["points"]} == named
    for plot in ("frontier.png", "one.png", "two.png"):
        assert (tmp_path / "report" / plot).read_bytes().startswith(b"\x89PNG"), plot


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10.0), ("500ms", 0.5), ("2m", 120.0), ("7", 7.0)])
def test_lead_times_have_units(text: str, seconds: float) -> None:
    """Seconds are what is meant without a unit; what is no time is refused."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)

    assert parser.parse_args(["t", "--runtime-lead", text]).runtime_lead == seconds
    for wrong in ("-" + text, "nan", "inf", "1e300", "0", "1e-9"):
        with pytest.raises(SystemExit):
            parser.parse_args(["t", "--runtime-lead", wrong])


def test_baselines_keep_to_the_maximum() -> None:
    """No policy is compared with more sandboxes than the pool may have, fixed sizes in hindsight neither."""
    trace = Trace("t", poisson(2.0, 3000.0), 0.0, 3000.0)
    result = run_trace(trace, Settings(most=9, policies=("keda", "fixed")), lambda *_: None)

    assert max(point.targets.levels.max() for point in result.points if point.targets is not None) == 9
    assert len(result.curve.hits) == 10


def test_scenarios_are_printed_without_a_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row each; without them and without a trace there is nothing to replay, said in a sentence."""
    monkeypatch.setattr(scenarios, "SCENARIOS", (scenarios.STOP, scenarios.SILENCE))
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)

    assert cli.run(parser.parse_args(["--scenarios"])) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[4:]] == ["| stop", "| silence"]
    assert cli.run(parser.parse_args([])) == 2
    assert "nothing to replay" in capsys.readouterr().err


def test_stopped_and_silent_pools_are_given_up() -> None:
    """Nobody comes after an hour of 20 claims a second, or after a first claim: soon nothing is held."""
    stop = scenarios.play(scenarios.STOP)
    released = stop.released_after(3600.0, 1)
    assert released is not None
    assert released < 600.0
    silence = scenarios.play(scenarios.SILENCE)
    assert silence.targets.levels.max() <= 10
    assert silence.mean_target(1800.0, 24 * 3600.0) < 0.05
