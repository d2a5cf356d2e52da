"""Verbs that price plans by formula: rank and estimate."""

from typing import Annotated

import typer

from tuner.cli_flags import JobFlags, JsonFlag, job_flags
from tuner.cli_output import show, show_json, tell

TopFlag = Annotated[
    int, typer.Option("--top", metavar="N", min=1, help="How many of the best plans to show.")
]
PlanFlag = Annotated[
    str, typer.Option("--plan", metavar='"tp=8 pp=4 ..."', help="The plan as knob=value words.")
]
MetricFlag = Annotated[str, typer.Option("--metric", metavar="NAME", help="What best means.")]
SimulateFlag = Annotated[
    bool,
    typer.Option(
        "--simulate/--no-simulate", help="Let the engine time the plans again that it could put first."
    ),
]
ExplainFlag = Annotated[
    bool, typer.Option("--explain", help="Every part with its formula, source and constants; every stage.")
]


@job_flags
def rank(
    flags: JobFlags,
    *,
    top: TopFlag = 10,
    metric: MetricFlag = "step_time",
    simulate: SimulateFlag = True,
    json: JsonFlag = False,
) -> None:
    """Price every legal plan, simulate the closest; show the ledger and the best with their breakdown."""
    from tuner import api, cli_job
    from tuner.report import documents, rank_screen
    from tuner.report.rescored import cost_words

    job = cli_job.job_from(flags)
    ranking = api.rank(job, cli_job.space_from(flags), metric=metric, keep=top, simulate=simulate)
    if ranking.second:
        tell(cost_words(ranking.second))
    intervals = api.step_interval_s(job, ranking.candidates.plans)
    if json:
        show_json(documents.rank_document(job, ranking, top, intervals))
    else:
        show(rank_screen.rank_screen(job, ranking, top, intervals, metric))


@job_flags
def estimate(
    flags: JobFlags, *, plan: PlanFlag, explain: ExplainFlag = False, json: JsonFlag = False
) -> None:
    """Price one plan: step time, throughput, MFU, peak memory."""
    from objectives.cost.step import stage_profile
    from objectives.explain import explain as explained
    from search_spaces.plan import Plans
    from tuner import api, cli_job
    from tuner.report import documents, energy, explanation, rank_screen

    job = cli_job.job_from(flags)
    chosen = api.read_plan(job, plan)
    plans, profile, why = Plans.of([chosen]), stage_profile(job, chosen), explained(job, chosen)
    priced, intervals = api.estimate(job, plans), api.step_interval_s(job, plans)
    if json:
        more = {"uncertainty": explanation.uncertainty_document(why)}
        more |= {"explanation": explanation.explanation_document(why)} if explain else {}
        show_json(documents.estimate_document(job, plans, priced, intervals, profile) | more)
        return
    more_lines = [explanation.variance_line(why)]
    if explain or chosen.power_cap_w:
        more_lines = [*energy.energy_lines(job, plans, priced), *more_lines]
    show(rank_screen.estimate_screen(job, chosen, priced, intervals, more_lines))
    if explain:
        show("", rank_screen.explanation(job, priced, profile), "", explanation.explanation_screen(why))
