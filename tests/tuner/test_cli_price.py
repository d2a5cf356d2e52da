"""The verbs rank and estimate: documents, screens, and what they add up to."""

import jsonschema
import pytest

from tests.tuner import schemas
from tests.tuner.cli import JOB, NARROW, PLAN, meshtune


@pytest.fixture(scope="module")
def ranked():
    answer = meshtune("rank", *JOB, *NARROW, "--top", 3, "--json")
    assert answer.code == 0
    assert answer.err.startswith("simulated ")
    return answer.document


@pytest.fixture(scope="module")
def estimated():
    return meshtune("estimate", *JOB, "--plan", PLAN, "--json").document


@pytest.fixture(scope="module")
def explained():
    return meshtune("estimate", *JOB, "--plan", PLAN, "--explain", "--json").document


def test_rank_prints_the_documented_form(ranked):
    jsonschema.validate(ranked, schemas.RANK)


def test_the_ledger_adds_up(ranked):
    plans = ranked["plans"]
    assert plans["enumerated"] == sum(plans["removed"].values()) + plans["too_large"] + plans["feasible"]


def test_the_best_plans_are_in_order_and_as_many_as_asked(ranked):
    times = [row["step_time_s"] for row in ranked["best"]]
    assert len(times) == 3
    assert times == sorted(times)


def test_the_parts_add_up_to_the_totals(ranked):
    for row in ranked["best"]:
        assert sum(row["time_s"].values()) == pytest.approx(row["step_time_s"])
        assert sum(row["memory_bytes"].values()) == pytest.approx(row["peak_memory_bytes"])


def test_the_interval_holds_the_prediction(ranked):
    for row in ranked["best"]:
        low, high = row["interval_s"]
        assert 0 < low < row["step_time_s"] < high


def test_another_metric_gives_another_order(ranked):
    leanest = meshtune("rank", *JOB, *NARROW, "--metric", "peak_memory", "--top", 1, "--json").document[
        "best"
    ][0]
    assert leanest["peak_memory_bytes"] <= min(row["peak_memory_bytes"] for row in ranked["best"])


def test_set_narrows_what_is_ranked(ranked):
    assert {row["plan"]["tp"] for row in ranked["best"]} <= {2, 4}


def test_a_space_file_narrows_and_set_wins_over_it(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("tp = [4]\npp = [1]\nmicro_batch = [1]\n")
    narrow = [word for word in NARROW if not word.startswith(("tp=", "pp=", "micro"))]
    settings = [word for word in narrow if word != "--set"]
    flags = [word for setting in [*settings, "pp=2"] for word in ("--set", setting)]
    best = meshtune("rank", *JOB, "--space", path, *flags, "--json").document["best"]
    assert {(row["plan"]["tp"], row["plan"]["pp"]) for row in best} == {(4, 2)}


def test_the_rank_screen_fits_a_hundred_columns():
    answer = meshtune("rank", *JOB, *NARROW)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 100
    for word in (
        "8.03 B parameters",
        "enumerated",
        "too large for the memory",
        "MFU",
        "analytic",
        "assumed",
        '--plan "',
    ):
        assert word in answer.out


def test_the_plan_that_rank_prints_can_be_estimated(ranked):
    screen = meshtune("rank", *JOB, *NARROW, "--top", 1).out
    plan = " ".join(screen.split('--plan "')[1].split('"')[0].split())
    again = meshtune("estimate", *JOB, "--plan", plan, "--json").document
    assert again["step_time_s"] == pytest.approx(ranked["best"][0]["step_time_s"])


def test_estimate_prints_the_documented_form(estimated):
    jsonschema.validate(estimated, schemas.ESTIMATE)


def test_the_fullest_stage_is_the_peak(estimated):
    stages = [stage["peak_memory_bytes"] for stage in estimated["stages"]]
    assert len(stages) == 2
    assert max(stages) == pytest.approx(estimated["peak_memory_bytes"])
    assert stages.index(max(stages)) == estimated["peak_stage"]


def test_the_peak_lies_in_its_interval(estimated):
    low, high = estimated["peak_memory_interval_bytes"]
    assert low < estimated["peak_memory_bytes"] < high


def test_stages_hold_all_layers(estimated):
    assert sum(stage["layers"] for stage in estimated["stages"]) == 32


def test_explain_shows_parts_and_stages():
    short, long = (meshtune("estimate", *JOB, "--plan", PLAN, *more).out for more in ([], ["--explain"]))
    assert "pipeline bubble" not in short
    for word in ("pipeline bubble", "activations", "by pipeline stage", "100.0 %"):
        assert word in long


def test_an_estimate_says_how_much_of_its_interval_rests_on_what(estimated):
    assert sum(estimated["uncertainty"].values()) == pytest.approx(1)
    assert "explanation" not in estimated
    screen = " ".join(meshtune("estimate", *JOB, "--plan", PLAN).out.split())
    assert "the interval's variance comes from constants" in screen
    assert "from the formulas themselves" in screen


def test_explain_prints_the_documented_form(explained):
    jsonschema.validate(explained, schemas.ESTIMATE)


def test_the_explained_parts_are_the_estimates(explained):
    for parts, unit, field in (("time", "seconds", "time_s"), ("memory", "bytes", "memory_bytes")):
        said = {part["part"]: part[unit] for part in explained["explanation"][parts]}
        assert said == {name: value for name, value in explained[field].items() if value}


def test_every_constant_a_part_rests_on_is_listed(explained):
    listed = {constant["name"] for constant in explained["explanation"]["constants"]}
    parts = [*explained["explanation"]["time"], *explained["explanation"]["memory"]]
    assert {each["constant"] for part in parts for each in part["rests_on"]} <= listed


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_explanation_fits_its_screen(columns):
    screen = meshtune("estimate", *JOB, "--plan", PLAN, "--explain", columns=columns).out
    assert max(map(len, screen.splitlines())) <= columns
    words = " ".join(screen.split())
    for text in ("(p - 1) / v x (F + B)", "arXiv:2104.04473", "device.gemm_efficiency (measured,"):
        assert text in words


def test_dp_is_what_the_devices_leave():
    plan = meshtune("estimate", *JOB, "--plan", "tp=2 pp=2", "--json").document["plan"]
    assert plan["dp"] == 4


def test_a_plan_that_does_not_fit_is_still_estimated_and_says_so():
    answer = meshtune("estimate", *JOB, "--plan", "tp=1 pp=1 micro_batch=4")
    assert answer.code == 0
    assert "does not fit" in answer.out
    assert "does not fit the device's" in answer.out


def test_a_plan_of_the_narrowed_space_is_priced_as_it_is():
    asked = ["estimate", *JOB, "--plan", PLAN, "--json"]
    assert meshtune(*asked, "--set", "tp=2,4", "--set", "zero=1").document == meshtune(*asked).document
