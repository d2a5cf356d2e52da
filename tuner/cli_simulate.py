"""The verb simulate: one plan on the engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli_flags import JobFlags, JsonFlag, job_flags
from tuner.cli_output import check_writable, show, show_json, tell, write_page

if TYPE_CHECKING:
    from objectives.metrics import Job
    from objectives.simulator.randomness import Randomness
    from objectives.simulator.step import StepOptions
    from search_spaces.plan import Plan
    from tuner.second_opinion import Simulation

TIMELINE, CHANCE = "Timeline", "What differs from run to run"
PlanFlag = Annotated[
    str, typer.Option("--plan", metavar='"tp=8 pp=4 ..."', help="The plan as knob=value words.")
]
ScheduleFlag = Annotated[
    Path | None,
    typer.Option(
        "--schedule-file", metavar="FILE.csv", help="Run this order of passes (PyTorch's CSV) instead of the"
        " plan's own schedule.", rich_help_panel=TIMELINE,
    ),
]  # fmt: skip
SynthesizeFlag = Annotated[
    Path | None,
    typer.Option(
        "--synthesize", metavar="FILE.csv", help="Search an order of passes that beats the named schedules"
        " in the memory that the plan leaves, write it as PyTorch's CSV, and run it.",
        rich_help_panel=TIMELINE,
    ),
]  # fmt: skip
DetailFlag = Annotated[
    str,
    typer.Option(
        "--detail", metavar="NAME", help="passes: whole passes, as the closed form has them; pieces:"
        " groups of layers, collectives and messages that share links and slow what they run beside.",
        rich_help_panel=TIMELINE,
    ),
]  # fmt: skip
TraceFlag = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE", help="Write a trace that Perfetto opens.", rich_help_panel=TIMELINE
    ),
]
HtmlFlag = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Write one self-contained HTML file with the timeline's picture.",
        rich_help_panel=TIMELINE,
    ),
]  # fmt: skip
JitterFlag = Annotated[
    float,
    typer.Option(
        "--jitter",
        metavar="SIGMA",
        help="Spread of the logarithm of each pass's seconds.",
        rich_help_panel=CHANCE,
    ),
]
StragglerFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--straggler", metavar="RANK=FACTOR", help="A pipeline rank that takes so many times as long; may be"
        " repeated.", rich_help_panel=CHANCE,
    ),
]  # fmt: skip
SlowLinkFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--slow-link", metavar="RANK=FACTOR", help="The link behind a pipeline rank that takes so many"
        " times as long; may be repeated.", rich_help_panel=CHANCE,
    ),
]  # fmt: skip
LoadFlag = Annotated[
    str | None,
    typer.Option(
        "--expert-load", metavar="LOAD", help="How tokens choose experts: uniform, zipf, zipf:EXPONENT, or"
        " a share for every expert (0.5,0.3,...).", rich_help_panel=CHANCE,
    ),
]  # fmt: skip
SeedsFlag = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, help="Simulate so many seeds.", rich_help_panel=CHANCE)
]


@job_flags
def simulate(  # noqa: PLR0913 - a verb's flags are its parameters
    flags: JobFlags,
    *,
    plan: PlanFlag,
    schedule_file: ScheduleFlag = None,
    synthesize: SynthesizeFlag = None,
    detail: DetailFlag = "passes",
    jitter: JitterFlag = 0.0,
    straggler: StragglerFlag = None,
    slow_link: SlowLinkFlag = None,
    expert_load: LoadFlag = None,
    seeds: SeedsFlag = 1,
    trace: TraceFlag = None,
    html: HtmlFlag = None,
    json: JsonFlag = False,
) -> None:
    """Simulate one plan's step: times, bubble, communication and memory of every rank, trace and picture."""
    from search_spaces.errors import check
    from tuner import cli_job, second_opinion
    from tuner.cli_chance import chance_of
    from tuner.report import simulate_documents, simulate_page, simulate_screen

    for target in (synthesize, trace, html):
        if target:
            check_writable(target)
    check(
        not (schedule_file and synthesize),
        "--schedule-file and --synthesize each name the order to run: give one",
        "both",
    )
    job = cli_job.job_from(flags)
    chosen = cli_job.plan_from(flags, job, plan)
    if synthesize:
        _synthesize(synthesize, job, chosen)
        schedule_file = synthesize
    chance = chance_of(jitter=jitter, stragglers=straggler, slow_links=slow_link, expert_load=expert_load)
    found = second_opinion.simulate(job, chosen, _options(detail, schedule_file, chance), n_seeds=seeds)
    if trace:
        _write_trace(trace, found)
    if html:
        write_page(html, simulate_page.page(found))
    if json:
        show_json(simulate_documents.simulate_document(found))
    else:
        show(simulate_screen.simulate_screen(found))


def _synthesize(target: Path, job: "Job", plan: "Plan") -> None:
    from objectives.simulator.schedules.csv_file import write_csv
    from objectives.simulator.synthesis.of_plan import synthesize_for_plan
    from tuner.report.words import percent, seconds

    made = synthesize_for_plan(job, plan)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_csv(made.program, target)
    against = "no named schedule fits"
    if made.best_named is not None and made.gain is not None:
        against = f"{percent(made.gain)} below {made.best_named}, the best named schedule that fits"
    tell(f"wrote {target}: {seconds(made.figure_s)} of passes, {against}")


def _options(detail: str, schedule_file: Path | None, chance: "Randomness") -> "StepOptions":
    from dataclasses import replace

    from objectives.simulator.schedules.csv_file import read_csv
    from objectives.simulator.step import PLAIN, Detail, StepOptions
    from search_spaces.errors import UnknownName

    if detail not in set(Detail):
        raise UnknownName("--detail", detail, map(str, Detail))
    options = PLAIN if detail == Detail.PASSES else StepOptions()
    program = read_csv(schedule_file) if schedule_file else None
    return replace(options, randomness=chance, program=program)


def _write_trace(target: Path, found: "Simulation") -> None:
    from objectives.simulator.trace import step_spans, write_trace

    target.parent.mkdir(parents=True, exist_ok=True)
    about = {"tool": "meshtune", "model": found.job.model.name, "cluster": found.job.cluster.name,
             "plan": found.plan.key, "step_s": found.step.step_s}  # fmt: skip
    with target.open("w", encoding="utf-8") as file:
        write_trace(file, step_spans(found.step), memory=found.step.memory, about=about)
    tell(f"wrote {target}")
