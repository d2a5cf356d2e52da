"""The HTML report: one file, no network, nothing of the user's unescaped, every picture where its data is."""

import json
import re
from html.parser import HTMLParser

import pytest

from objectives.cost.step import estimate
from search_spaces.plan import Plans
from tests.tuner.report_example import HOSTILE, study_report
from tuner.report import figures
from tuner.report.page import page
from tuner.report.parts import TIME_PARTS


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the data of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.titles, self._inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        if self._inside == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def text():
    return page(study_report(name=HOSTILE))


@pytest.fixture(scope="module")
def own_text(text):
    """The page without plotly's code."""
    return re.sub(r"<script>.{100000,}?</script>", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def pictures(text):
    scripts = Reader(text).scripts
    return [json.loads(script) for script in scripts if script.startswith('{"data"')]


def test_every_section_is_there(own_text):
    assert Reader(own_text).titles == [
        "History", "Predicted against simulated", "Where the step goes", "Pareto front",
        "Memory by pipeline stage",
        "Knob importance", "Trials", "Provenance",
    ]  # fmt: skip


def test_nothing_is_fetched_from_elsewhere(text):
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes


def test_plotly_is_there_once(text):
    assert len(re.findall(r"\* plotly\.js v", text)) == 1


def test_foreign_text_is_escaped_everywhere(own_text):
    assert 'alert("1")' not in own_text.replace('\\u003cscript>alert(\\"1\\")', "")
    assert "<script>alert" not in own_text
    assert "&lt;script&gt;alert" in own_text


def test_every_picture_has_its_place_and_data(own_text, pictures):
    places = [attributes for _, attributes in Reader(own_text).tags if attributes.get("class") == "plot"]
    assert len(places) == len(pictures) == 6
    assert all(picture["data"] for picture in pictures)


def test_failures_are_listed_with_cause_and_log(own_text):
    assert '<span class="failed">crash</span>' in own_text
    assert own_text.count("<details>") == 12
    assert "line 1" in own_text


def test_evaluators_are_named_on_the_picture(pictures):
    assert [trace["name"] for trace in pictures[-1]["data"]] == ["PED-ANOVA", "fANOVA"]


def test_a_study_without_a_result_still_has_a_page():
    text = page(study_report(0))
    assert "No trial has run yet" in text
    assert "PED-ANOVA skipped: 0 trials ran, 8 are needed" in text


@pytest.mark.parametrize("n_trials", [1, 2])
def test_a_study_with_hardly_a_result_has_all_other_pictures(n_trials):
    assert len([s for s in Reader(page(study_report(n_trials))).scripts if s.startswith('{"data"')]) == 5


def test_a_single_objective_is_set_against_memory():
    metrics, points = figures.pareto_points(study_report(metrics=("step_time",)))
    assert [metric.name for metric in metrics] == ["step_time", "peak_memory"]
    assert points.shape == (11, 2)


def test_the_bars_of_a_plan_add_up_to_its_predicted_step():
    report = study_report()
    bars = [trace for trace in figures.time_breakdown(report, 3)["data"] if trace["type"] == "bar"]
    sums = [sum(trace["x"][i] for trace in bars) for i in range(3)]
    predicted = estimate(report.job, Plans.of(row.plan for row in report.ranked[:3])).step_s
    assert sums == pytest.approx(list(predicted))
    assert {trace["name"] for trace in bars} <= {part.label for part in TIME_PARTS.values()}
