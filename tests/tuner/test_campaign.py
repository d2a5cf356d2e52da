"""Campaigns: families side by side on one allocation, stopped and gone on with, one from another's table."""

import json
import threading
from dataclasses import replace

import pytest

from objectives.measurements.runs import read_measurements
from objectives.outcome import Measured
from search_spaces.documents import read_toml
from search_spaces.errors import InvalidSpec
from search_spaces.units import KWH_J
from tests.tuner.cli import complaint, meshtune
from tests.tuner.studies import read_study
from tuner import cli_campaign
from tuner.budget import Budget, Stop
from tuner.campaign import CAMPAIGN_ATTRIBUTE, Campaign, Share, campaign_from_tables, stored_campaign
from tuner.campaign_run import run_campaign
from tuner.config import read_config
from tuner.events import ignore
from tuner.papers.campaign import two_starts
from tuner.recorded import write_studies
from tuner.report.campaign import best_of, energy_kwh, failure_shares
from tuner.storage import open_storage
from tuner.study import open_study, tune
from tuner.view import load_study

FILE = """
[study]
name = "two"
storage = "sqlite:///two.db"
[cluster]
preset = "alps"
devices = 32
[workload]
seq_len = 2048
global_batch = 64
[space]
cp = 1
recompute = "none"
[objective]
metric = "mfu"
[runner]
executor = "in-process"
parallel = 3
options = { hidden = 0.3, crash_probability = 0.1, n_steps = 2 }
[budget]
trials = 8
[campaign]
share = "SHARE"
[campaign.families.dense]
model = { preset = "qwen3-8b" }
nodes = [2, 4]
space = { tp = [1, 2] }
[campaign.families.small]
model = { preset = "phi-3-mini" }
nodes = 1
space = { tp = 1, pp = [1, 2] }
"""


@pytest.fixture
def campaign_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "two.toml"
    file.write_text(FILE.replace("SHARE", "even"))
    return file


def of_trials(campaign, trials):
    members = [
        replace(each, config=replace(each.config, budget=Budget(trials=trials))) for each in campaign.members
    ]
    return replace(campaign, members=tuple(members))


def test_each_family_and_size_is_a_study_with_its_own_knobs(campaign_file):
    campaign = read_study(campaign_file)
    assert isinstance(campaign, Campaign)
    assert [each.config.name for each in campaign.members] == ["two/dense/2n", "two/dense/4n", "two/small/1n"]
    assert [each.config.inputs.cluster.n_devices for each in campaign.members] == [8, 16, 4]
    narrowed = [each.config.inputs.space.narrowed for each in campaign.members]
    assert narrowed[0]["tp"] == (1, 2)
    assert "pp" not in narrowed[0]
    assert narrowed[2]["pp"] == (1, 2)
    assert campaign.n_nodes == 8


def test_a_campaign_runs_side_by_side_and_goes_on_where_it_stopped(campaign_file):
    campaign = read_study(campaign_file)
    first = run_campaign(of_trials(campaign, 4))
    assert first.stop is Stop.TRIALS
    assert 1 < first.most_busy_nodes <= campaign.n_nodes
    again = stored_campaign("two/dense/2n", "two", campaign.lead.storage, open_storage("two.db"))
    assert [each.n_nodes for each in again.members] == [2, 4, 1]
    second = run_campaign(of_trials(again, 8))
    before = [{trial.plan for trial in view.finished} for view in first.views]
    after = [{trial.plan for trial in view.finished} for view in second.views]
    assert all(old <= new for old, new in zip(before, after, strict=True))
    assert sum(len(view.finished) for view in second.views) == 8
    assert all(view.finished for view in second.views)  # even: every member had its turn


def test_outcomes_of_a_campaign_keep_failures_and_energy(campaign_file):
    views = run_campaign(read_study(campaign_file)).views
    joules, unknown = energy_kwh(views)
    outcomes = [trial.outcome for view in views for trial in view.measured]
    assert joules == pytest.approx(
        sum(each.energy_j for each in outcomes if isinstance(each, Measured)) / KWH_J
    )
    assert unknown == 0
    failed = sum(len(view.finished) - len(view.measured) for view in views)
    assert sum(failure_shares(views)) > 0 or failed == 0
    best = max(trial.values["mfu"] for view in views for trial in view.measured)
    assert best_of(views)[1].values["mfu"] == best


def test_hopeful_members_get_more_trials(campaign_file):
    """Of equal turns each member gets its share; by hope that of the lowest MFU gets less, but never none."""
    campaign_file.write_text(FILE.replace("SHARE", "hope").replace("trials = 8", "trials = 12"))
    campaign = read_study(campaign_file)
    assert campaign.share is Share.HOPE
    views = run_campaign(campaign).views
    counts = [len(view.finished) for view in views]
    reached = [view.best.values["mfu"] for view in views]
    worst = reached.index(min(reached))
    assert 1 <= counts[worst] == min(counts) < 12 / len(views)


def test_a_start_from_another_familys_table_needs_fewer_trials():
    """Where the formula's order is wrong on a hidden machine; by itself it needs every second candidate."""
    cold, warm = two_starts(5)
    assert cold.trials > 5
    assert warm.trials < cold.trials / 2
    assert warm.error < cold.error / 3


def test_a_second_campaign_starts_from_the_firsts_table(campaign_file, tmp_path):
    """The first is stopped; its CSV alone corrects what the second expects of another model."""
    views = run_campaign(of_trials(read_study(campaign_file), 8)).views
    write_studies(views, tmp_path / "first.csv")
    rows = read_measurements(tmp_path / "first.csv")
    assert len(rows.runs) == sum(len(view.finished) for view in views)
    assert not rows.rejected
    text = (
        '[study]\nname = "NAME"\nstorage = "sqlite:///two.db"\nWARM\n[model]\npreset = "llama-3-8b"\n'
        '[cluster]\npreset = "alps"\ndevices = 8\n[workload]\nseq_len = 2048\nglobal_batch = 64\n'
        '[space]\ncp = 1\nrecompute = "none"\n[runner]\nexecutor = "in-process"\nparallel = 1\n'
        "options = { hidden = 0.3, n_steps = 2 }\n[budget]\ntrials = 6\n"
    )
    trials = {}
    for name, warm in (("cold", ""), ("warm", 'warm_start = ["first.csv"]')):
        file = tmp_path / f"{name}.toml"
        file.write_text(text.replace("NAME", name).replace("WARM", warm))
        trials[name] = tune(read_config(file)).view.measured
    errors = {
        name: [abs(each.predicted.step_s / each.outcome.step_s - 1) for each in found]
        for name, found in trials.items()
    }
    best = min(each.outcome.step_s for found in trials.values() for each in found)
    needed = {
        name: next((i for i, each in enumerate(found, 1) if each.outcome.step_s <= 1.01 * best), 99)
        for name, found in trials.items()
    }
    assert errors["warm"][0] < errors["cold"][0]
    assert needed["warm"] <= needed["cold"]


def test_the_command_line_runs_reports_and_goes_on(campaign_file, tmp_path):
    ran = meshtune("tune", str(campaign_file), "--trials", "3")
    assert ran.code == 0
    assert "dense-8b" not in ran.out
    assert "best of all" in ran.out
    report = meshtune("report", "two", "--storage", "sqlite:///two.db", "--csv", "runs.csv", "--json")
    document = json.loads(report.out)
    assert document["schema"] == "meshtune.campaign"
    assert sum(each["measured"] + each["failed"] for each in document["members"]) == 3
    assert len(read_measurements(tmp_path / "runs.csv").runs) == 3
    assert meshtune("report", "two", "--storage", "sqlite:///two.db", "--html", "two.html").code == 0
    assert_page((tmp_path / "two.html").read_text(), 3)
    assert meshtune("resume", "two", "--storage", "sqlite:///two.db", "--trials", "5").code == 0
    assert cli_campaign.stored("one", "sqlite:///two.db") is None
    counts = [
        len(load_study(name, "two.db").finished) for name in ("two/dense/2n", "two/dense/4n", "two/small/1n")
    ]
    assert sum(counts) == 5


def assert_page(text, n_trials):
    """The history has every trial of all members, and each member has a line."""
    history = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    drawn = history["data"][0]["x"] + [x for each in history["data"][2:] for x in each["x"]]
    assert sorted(drawn) == list(range(n_trials))
    assert all(f"<td>{family}</td>" in text for family in ("dense", "small"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nodes = [2, 4]", "nodes = [2, 9]", "must fit on the campaign's 8 nodes"),
        ("nodes = [2, 4]", "nodes = [2, 2]", "whole numbers from 1, each once"),
        ("nodes = 1\n", "", "must have the key families.small.nodes"),
        ('share = "even"', 'share = "luck"', "share"),
        ('executor = "in-process"', 'executor = "ray"', "must share one Ray cluster"),
        ('name = "two"', "", "must have a name"),
        ("space = { tp = 1,", "space = { tq = 1,", "did you mean 'tp'"),
        ('share = "even"', 'share = "even"\nnodes = 9', "at most the 8 that [cluster] devices fill"),
        ('name = "two"', "name = 2", "must have a name; got 2"),
        ('name = "two"', 'name = " "', "must have a name"),
        ("families.small", 'families."a/b"', "a printable name without /"),
        ("families.small", 'families."a\\nb"', "a printable name without /"),
        ("families.small", 'families.""', "a printable name without /"),
        ("share =", "shore =", "did you mean 'share'"),
    ],
)
def test_what_is_no_campaign_is_one_sentence(campaign_file, old, new, words):
    text = campaign_file.read_text()
    assert old in text
    campaign_file.write_text(text.replace(old, new))
    with pytest.raises(InvalidSpec) as error:
        run_campaign(read_study(campaign_file))
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["campaign", "space"])
def test_a_table_of_a_campaign_that_is_none_is_one_sentence(campaign_file, name):
    tables = {**read_toml(campaign_file), name: 3}
    with pytest.raises(InvalidSpec, match=rf"\[{name}\] must be a table of keys; got 3"):
        campaign_from_tables(tables, folder=campaign_file.parent, where="the file")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "gpt2"), "[campaign.families.dense] has of its own; got model preset"),
        (("--set", "pp=1"), "[campaign.families.small] has of its own; got space pp"),
        (("--name", ""), "a campaign must have a name; got ''"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(campaign_file, flags, words):
    assert words in complaint("tune", str(campaign_file), *flags)


def test_a_family_s_table_that_is_none_is_one_sentence(campaign_file):
    text = campaign_file.read_text()
    campaign_file.write_text(text.replace("space = { tp = 1, pp = [1, 2] }", "space = 3"))
    assert "families.small.space: input should be an object; got 3" in complaint("tune", str(campaign_file))


@pytest.mark.parametrize("n_made", [1, 2])
def test_a_campaign_killed_while_it_was_made_says_the_way_out(campaign_file, monkeypatch, n_made):
    """Its first member's study alone, or a second one that has not yet been told what it belongs to."""
    campaign = read_study(campaign_file)
    one, two, _ = campaign.members
    storage = open_storage(campaign.lead.storage)
    first = open_study(one.config, storage, ignore)
    first.book.note(CAMPAIGN_ATTRIBUTE, campaign.document(one))
    if n_made == 2:
        open_study(two.config, storage, ignore)
    left = "two/dense/4n, two/small/1n"
    said = complaint("resume", "two", "--storage", "sqlite:///two.db")
    assert f"campaign 'two' must have all its studies; got no {left}" in said
    assert "run tune with the campaign's file again" in said
    done = run_campaign(of_trials(campaign, 3))
    assert sum(len(view.finished) for view in done.views) == 3
    assert meshtune("resume", "two", "--storage", "sqlite:///two.db", "--trials", "3").code == 0


def test_an_interrupted_campaign_gives_its_trials_back(campaign_file, monkeypatch):
    """What runs when it stops is re-queued, not lost: a later driver may have it at once."""
    campaign, asked = read_study(campaign_file), threading.Event()

    class Heard:
        def __enter__(self):
            return asked.is_set

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("tuner.campaign_run.interruptible", Heard)

    def on_member(member):
        def hear(event):
            if type(event).__name__ == "TrialFinished":
                asked.set()

        return hear

    stopped = run_campaign(campaign, on_member=on_member)
    assert stopped.stop is Stop.INTERRUPTED
    monkeypatch.undo()
    monkeypatch.chdir(campaign_file.parent)
    done = run_campaign(campaign)
    assert sum(len(view.finished) for view in done.views) == 8


def test_device_hours_end_a_campaign(campaign_file):
    campaign = read_study(campaign_file)
    budget = Budget(trials=100, device_hours=1.0)
    members = [replace(each, config=replace(each.config, budget=budget)) for each in campaign.members]
    result = run_campaign(replace(campaign, members=tuple(members)))
    assert result.stop is Stop.DEVICE_HOURS
    assert 3600 <= sum(view.device_s for view in result.views) < 2 * 3600
