"""Published figures beside ours: what reaches, how they are shown, and the rows of the table."""

import json

import jsonschema
import pytest

from search_spaces.errors import InvalidSpec, UnknownName
from tests.tuner.cli import meshtune
from tests.tuner.schemas import FINITE, TEXT, document, many, record
from tests.tuner.studies import read_study
from tuner.papers import PAPERS, load_paper, load_papers, paper_of_preset
from tuner.papers.figure import Figure, Kind, Paper, Provenance
from tuner.presets import preset_names, preset_path
from tuner.report.papers import number, papers_page


def figure(published, ours, **other):
    given = dict(
        system="made-up",
        what="time",
        unit="s",
        kind=Kind.RATIO,
        provenance=Provenance.SOURCE,
        source="table 1",
    )
    return Figure(published=published, ours=ours, **given | other)


@pytest.mark.parametrize(
    ("kind", "published", "ours", "is_reached"),
    [
        (Kind.EXACT, 1000, 1000.9, True),
        (Kind.EXACT, 1000, 1002, False),
        (Kind.RATIO, 2.0, 2.5, True),
        (Kind.RATIO, 2.0, 2.51, False),
        (Kind.RATIO, 2.0, 1.49, False),
        (Kind.ORDER, 3, 3, True),
        (Kind.ORDER, 3, 2, False),
    ],
)
def test_a_figure_is_reached_as_its_kind_asks(kind, published, ours, is_reached):
    assert figure(published, ours, kind=kind).is_reached is is_reached


def test_a_figure_may_state_its_own_share():
    assert figure(2.0, 2.9, within=0.5).is_reached
    assert not figure(2.0, 2.1, within=0.01).is_reached


def test_nothing_can_be_compared_with_a_published_zero():
    with pytest.raises(InvalidSpec, match="must not be 0"):
        figure(0.0, 1.0)


def test_the_page_has_a_row_for_each_system_and_names_the_misses():
    miss = figure(2.0, 4.0, what="memory", note="its buffers are not known")
    paper = Paper(
        name="made-up",
        title="A system",
        source="arXiv",
        presets=("one",),
        figures=lambda: (figure(2, 2), miss),
    )
    text = papers_page([(paper, paper.figures())])
    assert "| [made-up](#made-up) | time (s) | 2 | 2 | 1.000 | 1 of 2 | `meshtune papers made-up` |" in text
    assert "| memory | s | 2 | 4 | 2.000 | ratio | **no** | table 1 (source) |" in text
    assert "- memory: its buffers are not known" in text
    assert "`meshtune tune --preset one`" in text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2718480384, "2,718,480,384"),
        (0.12345678, "0.1235"),
        (38.376, "38.38"),
        (2.0, "2"),
        (1.5e6 + 0.5, "1,500,000"),
    ],
)
def test_numbers_are_written_with_the_digits_that_count(value, words):
    assert number(value) == words


def test_every_preset_is_a_study_file_of_one_paper():
    of_papers = [preset for paper in load_papers() for preset in paper.presets]
    assert sorted(of_papers) == list(preset_names())
    for name in preset_names():
        assert read_study(preset_path(name)).name == name
        assert name in paper_of_preset(name).presets


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_has_figures_of_its_own_and_says_why_it_misses_one(name):
    paper = load_paper(name)
    figures = paper.figures()
    assert figures
    assert paper.name == name == figures[0].system
    assert len({each.what for each in figures}) == len(figures)
    assert [each.what for each in figures if not each.is_reached and not each.note] == []


def test_the_page_and_the_screen_come_from_one_command(tmp_path):
    target = tmp_path / "papers.md"
    answer = meshtune("papers", "--write", str(target))
    assert answer.code == 0
    assert all(f"[{name}](#{name})" in target.read_text() for name in PAPERS)
    assert all(name in answer.out for name in PAPERS)


PAPERS_DOCUMENT = document(
    "papers",
    papers=many(
        record(
            name=TEXT, title=TEXT, source=TEXT, presets=many(TEXT, 1),
            figures=many(
                record(
                    what=TEXT, unit={"type": "string"}, published=FINITE, ours=FINITE, ratio=FINITE,
                    kind={"enum": ["exact", "ratio", "order"]}, provenance=TEXT, source=TEXT,
                    is_reached={"type": "boolean"}, note={"type": "string"},
                ), 1,
            ),
        ), 1,
    ),
)  # fmt: skip


def test_every_paper_is_a_json_document():
    answer = meshtune("papers", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    jsonschema.validate(found, PAPERS_DOCUMENT)
    assert sorted(each["name"] for each in found["papers"]) == sorted(PAPERS)


def test_what_is_no_paper_and_no_preset_is_one_sentence(tmp_path):
    with pytest.raises(UnknownName, match="paper"):
        load_paper("nothing")
    assert meshtune("tune", "--preset", "nothing").code == 2
    both = meshtune("tune", str(tmp_path / "study.toml"), "--preset", "nothing")
    assert (both.code, "must have a study file or --preset" in both.err) == (2, True)
