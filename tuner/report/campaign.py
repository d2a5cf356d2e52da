"""A campaign as its readers see it: one line a member, the best of all, failures by cause and over time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from html import escape
from typing import Any

from rich.console import Group, RenderableType

from objectives.metrics import Goal, metric_named
from objectives.outcome import Failed, Measured
from search_spaces.units import KWH_J
from tuner.campaign import Campaign
from tuner.report.content import StudyReport
from tuner.report.from_study import trial_row
from tuner.report.page import (
    agreement_section,
    definitions,
    history_section,
    html_document,
    html_table,
    section,
)
from tuner.report.study_screen import value_words
from tuner.report.tables import facts, table
from tuner.report.words import percent, plan_words
from tuner.view import State, StudyView, TrialRecord

THIRDS = 3


def best_of(views: Sequence[StudyView]) -> tuple[StudyView, TrialRecord] | None:
    """The measured trial with the best value of the first metric, and its study."""
    metric = metric_named(views[0].inputs.objective[0])
    sign = 1.0 if metric.goal is Goal.MINIMIZE else -1.0
    found = [(view, best) for view in views if (best := view.best) is not None]
    return min(found, key=lambda pair: sign * pair[1].values[metric.name], default=None)


def failure_shares(views: Sequence[StudyView]) -> list[float]:
    """Share of failed trials in each third of the campaign by time: how well it learns what does not run."""
    finished = [trial for view in views for trial in view.finished]
    finished.sort(key=lambda trial: trial.ended or datetime.max)
    size = max(-(-len(finished) // THIRDS), 1)
    pieces = [finished[i : i + size] for i in range(0, len(finished), size)]
    return [sum(trial.state is State.FAILED for trial in piece) / len(piece) for piece in pieces]


def energy_kwh(views: Sequence[StudyView]) -> tuple[float, int]:
    """Energy of a step of every trial that says it, in kWh, and how many trials do not."""
    outcomes = [trial.outcome for view in views for trial in view.measured]
    known = [each.energy_j for each in outcomes if isinstance(each, Measured) and each.energy_j is not None]
    return sum(known) / KWH_J, len(outcomes) - len(known)


def campaign_screen(campaign: Campaign, views: Sequence[StudyView]) -> RenderableType:
    """Members, the best of all, failures and energy."""
    columns, rows = members_table(campaign, views)
    return Group(table([*columns[:-1], f"~{columns[-1]}"], rows), "", facts(campaign_lines(campaign, views)))


def campaign_page(campaign: Campaign, views: Sequence[StudyView]) -> str:
    """The same as one HTML file, with the trials of all members in the order in which they ended."""
    report = together(campaign, views)
    found = definitions(campaign_lines(campaign, views))
    ran = [history_section(report), agreement_section(report)] if report.complete else []
    note = f"Each has a report of its own, as {views[0].name}."
    members = section("Studies", note, html_table(*members_table(campaign, views)), wide=True)
    head = f"<h1>{escape(campaign.name)}</h1><dl>{found}</dl><br>"
    return html_document(campaign.name, f'{head}<div class="grid">{"".join([*ran, members])}</div>')


def together(campaign: Campaign, views: Sequence[StudyView]) -> StudyReport:
    """All members' trials as those of one study, numbered in the order in which they ended."""
    lead = campaign.lead.inputs
    pairs = [(view, trial) for view in views for trial in view.finished]
    pairs.sort(key=lambda pair: pair[1].ended or datetime.max)
    rows = [row for view, trial in pairs if (row := trial_row(view, trial)) is not None]
    return StudyReport(
        name=campaign.name,
        job=lead.job,
        metrics=tuple(metric_named(name) for name in lead.objective),
        trials=tuple(replace(row, number=i) for i, row in enumerate(rows)),
    )


def members_table(campaign: Campaign, views: Sequence[StudyView]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of a line for each member; numbers begin with `>`, the plan comes last."""
    metric = metric_named(campaign.lead.inputs.objective[0])
    is_proxied = any(view.by_proxy for view in views)
    rows = [
        [
            member.family,
            str(member.n_nodes),
            str(view.counts[State.MEASURED]),
            *([str(view.counts[State.PROXY])] if is_proxied else []),
            str(view.counts[State.FAILED]),
            value_words(metric, view.best.values[metric.name]) if view.best else "none yet",
            plan_words(view.best.plan) if view.best and view.best.plan else "",
        ]
        for member, view in zip(campaign.members, views, strict=True)
    ]
    proxies = [">proxies"] if is_proxied else []
    columns = ["family", ">nodes", ">measured", *proxies, ">failed", f">best {metric.name}", "plan"]
    return columns, rows


def campaign_document(campaign: Campaign, views: Sequence[StudyView]) -> dict[str, Any]:
    """The same for programs."""
    metric = campaign.lead.inputs.objective[0]
    best = best_of(views)
    joules, unknown = energy_kwh(views)
    return {
        "schema": "meshtune.campaign",
        "version": 1,
        "name": campaign.name,
        "nodes": campaign.n_nodes,
        "metric": metric,
        "members": [
            {
                "study": view.name,
                "family": member.family,
                "nodes": member.n_nodes,
                "measured": view.counts[State.MEASURED],
                "failed": view.counts[State.FAILED],
                "best": view.best.values[metric] if view.best else None,
                "plan": view.best.plan.key if view.best and view.best.plan else None,
            }
            for member, view in zip(campaign.members, views, strict=True)
        ],
        "best": best[0].name if best else None,
        "failures": dict(_failures(views)),
        "failure_shares": failure_shares(views),
        "step_energy_kwh": joules,
        "trials_without_energy": unknown,
    }


def _failures(views: Sequence[StudyView]) -> Counter[str]:
    outcomes = [trial.outcome for view in views for trial in view.finished]
    return Counter(str(each.cause) for each in outcomes if isinstance(each, Failed))


def campaign_lines(campaign: Campaign, views: Sequence[StudyView]) -> list[tuple[str, str]]:
    """What all members together found, as names and words."""
    metric, best = metric_named(campaign.lead.inputs.objective[0]), best_of(views)
    found = [("campaign", f"{campaign.name}: {campaign.n_nodes} nodes, {len(views)} studies")]
    if best is not None:
        view, trial = best
        value = value_words(metric, trial.values[metric.name])
        found.append(("best of all", f"{value}: {view.name}, {trial.plan.key if trial.plan else ''}"))
    causes = _failures(views)
    words = ", ".join(f"{n} {cause}" for cause, n in causes.most_common())
    shares = ", ".join(percent(share) for share in failure_shares(views))
    found.append(("failures", f"{words or 'none'}; of each third in time: {shares or 'none'}"))
    joules, unknown = energy_kwh(views)
    left = f"; {unknown} trials without" if unknown else ""
    return [*found, ("energy", f"{joules:.3g} kWh, one step of every measured trial{left}")]
