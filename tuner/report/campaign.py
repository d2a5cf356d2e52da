"""A campaign as its readers see it: one line a member, the best of all, failures by cause and over time."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType

from objectives.metrics import Goal, metric_named
from objectives.outcome import Failed, Measured
from search_spaces.units import KWH_J
from tuner.campaign import Campaign
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
    metric = metric_named(campaign.lead.inputs.objective[0])
    rows = [
        [
            member.family,
            str(member.n_nodes),
            str(view.counts[State.MEASURED]),
            str(view.counts[State.FAILED]),
            value_words(metric, view.best.values[metric.name]) if view.best else "none yet",
            plan_words(view.best.plan) if view.best and view.best.plan else "",
        ]
        for member, view in zip(campaign.members, views, strict=True)
    ]
    columns = ["family", ">nodes", ">measured", ">failed", f">best {metric.name}", "~plan"]
    return Group(table(columns, rows), "", facts(_lines(campaign, views)))


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


def _lines(campaign: Campaign, views: Sequence[StudyView]) -> list[tuple[str, str]]:
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
    return [*found, ("energy of a step", f"{joules:.3g} kWh over all measured trials{left}")]
