"""What probes found, told on a screen, in a file and as a document; probes here are made up."""

import io

import jsonschema
import pytest
from rich.console import Console

from runners.probes.baseline import baseline
from runners.probes.cases import cases_for
from runners.probes.fits import fit_machine
from runners.probes.layout import groups_of
from runners.probes.predictions import compare
from runners.probes.record import ProbesFile
from runners.probes.session import Ended, Step
from search_spaces.cluster_presets import load_cluster
from tests.runners.probe_cases import CPU, GPU, probed, truth
from tests.tuner.test_cli_probes import MEASURE
from tuner.probe_progress import STARTING, line, picture, showing_probes
from tuner.probing import ProbeReport
from tuner.report.probe_report import probe_document, probe_toml
from tuner.report.probe_screen import probe_screen


def report_of(facts, n_ranks, path, *, given=None, kept=1.0):
    base = baseline(given, facts, n_ranks=n_ranks, n_local=min(n_ranks, facts.n_devices))
    everything = probed(truth(base.cluster, facts.formats), facts, n_ranks)
    results = dict(list(everything.items())[: int(kept * len(everything))])
    fitted = fit_machine(base, results, facts=facts, n_ranks=n_ranks, name="mine")
    return ProbeReport(
        facts=facts,
        n_ranks=n_ranks,
        file=ProbesFile(path=path, results=results),
        cases=tuple(cases_for(facts, groups_of(base.cluster, n_ranks))),
        ended=Ended.DONE if kept == 1 else Ended.BUDGET,
        fitted=fitted,
        comparisons=tuple(compare(fitted.before, fitted.cluster, results)),
    )


def drawn(part, width=100, *, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    console.print(part)
    return console.file.getvalue()


@pytest.fixture(scope="module", params=["a node of accelerators", "two nodes", "processes", "one alone"])
def report(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "mine.probes.json"
    match request.param:
        case "a node of accelerators":
            return report_of(GPU, 8, path)
        case "two nodes":
            return report_of(GPU, 16, path, given="dgx-h200")
        case "processes":
            return report_of(CPU, 4, path)
    return report_of(CPU, 1, path, kept=0.5)


def test_the_document_has_the_documented_form(report, tmp_path):
    jsonschema.validate(probe_document(report, tmp_path / "mine.toml"), MEASURE)


def test_the_file_is_the_fitted_machine_and_every_measured_number_says_so(report, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(probe_toml(report))
    assert load_cluster(str(path), 1) == report.fitted.cluster
    lines = path.read_text().splitlines()
    for figure in report.fitted.figures:
        name = figure.name.rpartition(".")[2]
        assert any(each.startswith(f"{name} = ") and "measured" in each for each in lines), figure.name


def test_the_screen_names_every_number_and_what_stays_open(report):
    text = drawn(probe_screen(report))
    for figure in report.fitted.figures:
        assert figure.name in text
    for name in report.fitted.not_measured:
        assert name in text
    assert max(len(each) for each in text.splitlines()) <= 100


def test_the_screen_says_what_the_budget_left(tmp_path):
    text = drawn(probe_screen(report_of(CPU, 2, tmp_path / "a.json", kept=0.5)))
    assert "the same command goes on with them" in text
    assert "the budget ended" in text


def test_the_screen_shows_the_formulas_before_and_now(report):
    text = drawn(probe_screen(report))
    for group in {each.group for each in report.comparisons}:
        assert group.split()[0] in text


def step(report, **changes):
    given = {"case": report.cases[0], "n_done": 3, "n_all": 80, "elapsed_s": 10.0, "left_s": 110.0, **changes}
    return Step(**given)


def test_a_probe_is_a_line_once_it_is_measured(report):
    result = next(each for each in report.file.results.values() if each.kind == "memory")
    assert line(step(report)) == ""
    assert line(step(report, result=result)).startswith("probe 3 of 80: ")
    assert " ± " in line(step(report, result=result))
    assert line(step(report, why="out of memory")).endswith("no result (out of memory)")


def test_the_picture_shows_what_is_measured_and_the_time(report):
    text = drawn(picture(step(report)))
    for words in (report.cases[0].key, "3 of 80", "10 s gone, 1 min 50 s left at most"):
        assert words in text


@pytest.mark.parametrize("terminal", [True, False])
def test_before_the_first_probe_the_time_is_told(report, terminal):
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    with showing_probes(console) as hear:
        hear(step(report))
        hear(step(report, why="out of memory"))
    said = console.file.getvalue()
    assert said.count("77 probes in 1 min 50 s at most; Ctrl-C keeps them") == 1
    assert "no result (out of memory)" in said
    assert (STARTING in said) == terminal
