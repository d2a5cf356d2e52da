"""The verb simulate: its document, screen, trace and page, and what it refuses."""

import json

import jsonschema
import pytest

from objectives.simulator.schedules import program
from objectives.simulator.schedules.csv_file import csv_of, write_csv
from tests.tuner import schemas
from tests.tuner.cli import JOB, complaint, meshtune

PLAN = "tp=2 pp=4 dp=2 micro_batch=1 zero=1 sequence_parallel=true overlap_dp=true"
EXPERTS = ["--model", "mixtral-8x7b", *JOB[2:]]
EXPERT_PLAN = "tp=2 pp=2 dp=4 ep=4 etp=1 micro_batch=1 zero=1 sequence_parallel=true"


def simulated(*arguments, job=JOB, plan=PLAN):
    answer = meshtune("simulate", *job, "--plan", plan, *arguments, "--json")
    assert answer.code == 0, answer.err
    return answer.document


@pytest.fixture(scope="module")
def document():
    return simulated()


@pytest.mark.parametrize("detail", ["passes", "pieces"])
def test_simulate_prints_the_documented_form(detail):
    found = simulated("--detail", detail)
    jsonschema.validate(found, schemas.SIMULATE)
    assert found["detail"] == detail


def test_every_rank_s_seconds_add_up_to_the_step(document):
    for rank in document["ranks"]:
        assert sum(rank["time_s"].values()) == pytest.approx(document["step_time_s"])


def test_every_rank_s_bytes_add_up_to_its_peak(document):
    for rank in document["ranks"]:
        assert sum(rank["memory_bytes"].values()) == pytest.approx(rank["peak_memory_bytes"])
    peaks = [rank["peak_memory_bytes"] for rank in document["ranks"]]
    assert max(peaks) == document["peak_memory_bytes"] == peaks[document["peak_rank"]]


def test_1f1b_holds_a_micro_batch_less_on_every_rank(document):
    assert [len(rank["held_micro_batches"]) for rank in document["ranks"]] == [4, 3, 2, 1]


def test_the_closed_form_stands_beside_the_simulation(document):
    estimated = meshtune("estimate", *JOB, "--plan", PLAN, "--json").document
    assert document["closed_form"]["step_time_s"] == estimated["step_time_s"]
    ratio = document["step_time_s"] / estimated["step_time_s"]
    assert document["difference"] == pytest.approx(ratio - 1)


def test_where_they_differ_a_reason_is_given(document):
    assert abs(document["difference"]) < 1e-3 or document["reasons"]
    pieces = simulated("--detail", "pieces")
    assert len(pieces["reasons"]) == len(document["reasons"]) + 1


def test_without_a_pipeline_they_agree():
    alone = simulated(plan="tp=4 pp=1 dp=4 micro_batch=1 zero=1")
    assert abs(alone["difference"]) < 1e-3
    assert alone["reasons"] == []
    assert alone["bubble"]["makespan_s"] == pytest.approx(0, abs=1e-9)


def test_seeds_give_a_distribution():
    seeds = simulated("--jitter", 0.1, "--seeds", 9)["seeds"]
    low, middle, high = (seeds["step_time_s"][name] for name in ("p05", "p50", "p95"))
    assert seeds["n"] == 9
    assert low < middle < high


@pytest.mark.parametrize("flags", [("--straggler", "1=1.5"), ("--slow-link", "0=50"), ("--detail", "pieces")])
def test_what_is_slow_slows_the_step(flags, document):
    assert simulated(*flags)["step_time_s"] > document["step_time_s"]


@pytest.mark.parametrize("load", ["zipf", "zipf:1.5", "0.6," + ",".join(["0.05"] * 7)])
def test_uneven_experts_slow_the_step(load):
    even = simulated("--expert-load", "uniform", job=EXPERTS, plan=EXPERT_PLAN)["step_time_s"]
    assert simulated("--expert-load", load, job=EXPERTS, plan=EXPERT_PLAN)["step_time_s"] > even


def test_a_schedule_file_is_run_in_place_of_the_plan_s_schedule(tmp_path, document):
    path = tmp_path / "order.csv"
    write_csv(program("1f1b", 4, 32), path)
    assert simulated("--schedule-file", path)["step_time_s"] == pytest.approx(document["step_time_s"])
    write_csv(program("gpipe", 4, 32), path)
    gpipe = simulated("--schedule-file", path)
    assert gpipe["peak_memory_bytes"] > 2 * document["peak_memory_bytes"] > 0
    assert any("schedule file" in reason for reason in gpipe["reasons"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda rows: [rows[0], rows[1].removesuffix(",1B3")], ["rank 1", "B(micro-batch 3", "line 2"]),
        (lambda rows: [rows[0], rows[1] + ",1F3"], ["rank 1", "1F3", "line 2"]),
        (lambda rows: [rows[0].replace("0F3", "0X3"), rows[1]], ["rank 0", "0X3", "line 1"]),
        (lambda rows: [",".join(reversed(rows[0].split(","))), rows[1]], ["rank 0", "line 1"]),
    ],
    ids=["missing", "doubled", "no pass", "impossible"],
)
def test_a_schedule_file_that_cannot_run_is_refused_with_the_place(spoil, words, tmp_path):
    path = tmp_path / "order.csv"
    path.write_text("\n".join(spoil(csv_of(program("1f1b", 2, 4)).splitlines())) + "\n")
    plan = "tp=2 pp=2 dp=4 micro_batch=4 zero=1"
    told = complaint("simulate", *JOB, "--plan", plan, "--schedule-file", path)
    for word in words:
        assert word in told


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--detail", "piece"], "did you mean 'pieces'?"),
        (["--straggler", "first"], "--straggler must be RANK=FACTOR, as in 3=1.2; got 'first'"),
        (["--straggler", "9=1.5"], "a slow rank must be one of the 4 there are, counted from 0; got 9"),
        (["--straggler", "1=0.5"], "takes from 1 to a million times as long; got 1: 0.5"),
        (["--straggler", "1=fast"], "--straggler must hold numbers; got 'fast'"),
        (["--slow-link", "1=2", "--slow-link", "1=3"], "--slow-link must name each rank once; got '1=3'"),
        (["--jitter", "-1"], "jitter, a spread of logarithms, must be from 0 to 10; got -1.0"),
        (["--expert-load", "zapf"], "--expert-load must be uniform, zipf"),
        (["--seeds", "0"], "--seeds"),
        (["--schedule-file", "no-such.csv"], "a schedule file must be readable text"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, list) else "",
)
def test_bad_input_is_answered_with_a_sentence(flags, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in complaint("simulate", *JOB, "--plan", PLAN, *flags)


def test_a_trace_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    told = complaint("simulate", *JOB, "--plan", PLAN, "--trace", tmp_path)
    assert "the output must be a file that can be written" in told


def test_a_schedule_file_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "order.csv"
    write_csv(program("1f1b", 2, 8), path)
    told = complaint("simulate", *JOB, "--plan", PLAN, "--schedule-file", path)
    assert "the plan's 4 ranks and 32 micro-batches; got 2 ranks and 8 micro-batches" in told


@pytest.mark.parametrize("flags", [[], ["--detail", "pieces", "--jitter", "0.05", "--seeds", "3"]], ids=len)
def test_the_screen_fits_a_hundred_columns(flags):
    answer = meshtune("simulate", *JOB, "--plan", PLAN, *flags)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 100
    for word in ("simulated", "closed form", "bubble", "exposed", "by pipeline rank", "held by"):
        assert word in answer.out
    assert ("over seeds" in answer.out) is bool(flags)


def test_trace_and_page_are_written(tmp_path):
    trace, page = tmp_path / "t.json", tmp_path / "deep" / "p.html"
    answer = meshtune("simulate", *JOB, "--plan", PLAN, "--trace", trace, "--html", page)
    assert answer.err == f"wrote {trace}\nwrote {page}\n"
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1, 2, 3}
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "backward (B)" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_page_of_a_crowded_timeline_shows_its_ends_closer_and_needs_no_plotly(tmp_path):
    page = tmp_path / "p.html"
    meshtune("simulate", *JOB[:-3], 128, *JOB[-2:], "--plan", PLAN, "--html", page)
    assert page.read_text().count("<svg") == 2
    assert page.stat().st_size < 500_000
    assert "Plotly" not in page.read_text()


def test_a_synthesized_order_fits_is_written_and_no_slower_than_the_schedules_with_names(tmp_path):
    target = tmp_path / "order.csv"
    answer = meshtune("simulate", *JOB, "--plan", PLAN, "--synthesize", target, "--json")
    assert answer.code == 0, answer.err
    assert f"wrote {target}: " in answer.err.replace("\n", "")
    again = simulated("--schedule-file", target)
    assert again["step_time_s"] == answer.document["step_time_s"]
    named = simulated(plan=f"{PLAN} schedule=zb-h1")
    assert again["step_time_s"] <= named["step_time_s"] * (1 + 1e-9)
    assert answer.document["peak_memory_bytes"] <= answer.document["memory_limit_bytes"]


@pytest.mark.parametrize(
    ("plan", "more", "match"),
    [
        (PLAN, ["--schedule-file", "x.csv"], "give one"),
        ("tp=2 pp=1 dp=8 micro_batch=1", [], "pp above 1"),
        ("tp=1 pp=2 dp=8 micro_batch=1", [], "leave memory for activations"),
        (f"{PLAN} recompute=full", [], "must not recompute whole layers"),
    ],
    ids=["two orders", "no pipeline", "no memory", "layers done again"],
)
def test_what_cannot_be_synthesized_is_refused_and_nothing_is_written(tmp_path, plan, more, match):
    target = tmp_path / "order.csv"
    said = complaint("simulate", *JOB, "--plan", plan, "--synthesize", target, *more)
    assert match in said.replace("\n", " ")
    assert not target.exists()
