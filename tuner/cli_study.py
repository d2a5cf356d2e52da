"""Verbs about studies: tune, resume, studies, show, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli_flags import JobFlags, JsonFlag, StorageFlag, job_flags
from tuner.cli_output import check_writable, command_line, err, show_json, tell, write_page
from tuner.cli_output import show as put

if TYPE_CHECKING:
    from tuner.study import StudyResult

INTERRUPTED = 130

StudyFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY.toml]", help="A study file; flags win over what it says.", show_default=False
    ),
]
PresetFlag = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="A founding paper's study instead of a file; see papers."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.")]
NameFlag = Annotated[str | None, typer.Option("--name", metavar="NAME", help="The study's name.")]
Trials = Annotated[
    int | None, typer.Option("--trials", metavar="N", help="Trials that the study may have in all.")
]
Hours = Annotated[float | None, typer.Option("--hours", metavar="H", help="Wall-clock hours of this call.")]
StopBelow = Annotated[
    float | None,
    typer.Option(
        "--stop-below",
        metavar="P",
        help="Stop where another plan is better with a probability below this; 0: never.",
    ),
]
BetterBy = Annotated[
    float | None,
    typer.Option("--better-by", metavar="X", help="What better means: a share saved, 0.02 if not given."),
]
Parallel = Annotated[int | None, typer.Option("--parallel", metavar="N", help="Trials side by side.")]
RunnerFlag = Annotated[
    str | None,
    typer.Option("--runner", metavar="KIND", help="torch, command, simulated, analytic or replay."),
]
RunnerOptions = Annotated[
    list[str] | None,
    typer.Option("--runner-option", metavar="KEY=VALUE", help="seed=1, noise=0.02, ...; may be repeated."),
]
ExecutorFlag = Annotated[
    str | None, typer.Option("--executor", metavar="KIND", help="ray (if not given), in-process or slurm.")
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option("--slurm-option", metavar="KEY=VALUE", help="mode=sbatch, nodes=2, ...; may be repeated."),
]
AddressFlag = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Join this Ray cluster instead of starting one."),
]
SamplerFlag = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME", help="meshtune (if not given), best_first, tpe, gp or random."),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampler.")]
PriorFlag = Annotated[
    str | None,
    typer.Option(
        "--prior",
        metavar="NAME",
        help="What the sampler starts from: analytic (if not given), or simulated, once before any trial.",
    ),
]
WarmFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--warm-start",
        metavar="NAME",
        help="Start from the trials of this study of the same machine, or of a CSV; may be repeated.",
    ),
]
WarmStorageFlag = Annotated[
    str | None,
    typer.Option("--warm-storage", metavar="URL", help="Where those studies are, if not in --storage."),
]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="What to optimise; given twice or more: a Pareto front."),
]
CsvFlag = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", help="Write its trials as a measurements file, failures too."),
]
HtmlFlag = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained HTML file.")
]


@job_flags
def tune(  # noqa: PLR0913 - a verb's flags are its parameters
    flags: JobFlags,
    study: StudyFile = None,
    *,
    preset: PresetFlag = None,
    name: NameFlag = None,
    trials: Trials = None,
    hours: Hours = None,
    stop_below: StopBelow = None,
    better_by: BetterBy = None,
    parallel: Parallel = None,
    runner: RunnerFlag = None,
    runner_option: RunnerOptions = None,
    executor: ExecutorFlag = None,
    ray_address: AddressFlag = None,
    slurm_option: SlurmOptions = None,
    sampler: SamplerFlag = None,
    seed: SeedFlag = None,
    prior: PriorFlag = None,
    warm_start: WarmFlag = None,
    warm_storage: WarmStorageFlag = None,
    metric: MetricFlag = None,
    storage: StorageFlag = None,
    json: JsonFlag = False,
) -> None:
    """Try the best predicted plans, learn from each trial, keep everything in a study that can be resumed."""
    from tuner import cli_campaign, cli_tables
    from tuner.campaign import Campaign
    from tuner.progress import showing
    from tuner.study import tune as run

    asked = cli_tables.Asked(
        study=dict(
            name=name,
            storage=storage,
            sampler=sampler,
            seed=seed,
            prior=prior,
            warm_start=cli_tables.warm_sources(warm_start),
            warm_storage=warm_storage,
        ),
        objective=dict(metric=metric),
        runner=dict(
            kind=runner,
            options=cli_tables.located_options(cli_tables.runner_options(runner_option)),
            parallel=parallel,
            executor=executor,
            address=ray_address,
            slurm=cli_tables.runner_options(slurm_option, "--slurm-option"),
        ),
        budget=dict(trials=trials, hours=hours, stop_below=stop_below, better_by=better_by),
    )
    config = cli_tables.study_config(cli_tables.study_file(study, preset), flags, asked)
    if isinstance(config, Campaign):
        cli_campaign.run(config, json=json)
    else:
        with showing(err()) as on_event:
            result = run(config, on_event=on_event)
        _finish(result, storage=config.storage, json=json)
    if preset and not json:
        _show_paper(preset)


def resume(  # noqa: PLR0913 - a verb's flags are its parameters
    name: Name,
    *,
    trials: Trials = None,
    hours: Hours = None,
    stop_below: StopBelow = None,
    better_by: BetterBy = None,
    parallel: Parallel = None,
    storage: StorageFlag = None,
    json: JsonFlag = False,
) -> None:
    """Go on with a study from its storage alone: no finished trial is lost, none is repeated."""
    from tuner import cli_campaign, cli_tables
    from tuner.progress import showing
    from tuner.study import resume as run
    from tuner.study import stored_config

    where = cli_tables.storage_or_default(storage)
    budget = dict(trials=trials, hours=hours, stop_below=stop_below, better_by=better_by)
    campaign = cli_campaign.stored(name, where)
    if campaign is not None:
        cli_campaign.run(cli_campaign.overridden(campaign, budget=budget, parallel=parallel), json=json)
        return
    config = cli_tables.overridden(stored_config(name, where), budget=budget, parallel=parallel)
    with showing(err()) as on_event:
        result = run(name, where, budget=config.budget, machine=config.machine, on_event=on_event)
    _finish(result, storage=where, json=json)


def _finish(result: "StudyResult", *, storage: str, json: bool) -> None:
    from tuner.budget import Stop
    from tuner.report import from_study, study_documents, study_screen

    if json:
        show_json(study_documents.tune_document(result))
    else:
        put(study_screen.outcome_screen(from_study.study_report(result.view, with_importance=False)))
    words = (result.view.name, "--storage", storage)
    if result.stop is Stop.INTERRUPTED:
        tell(f"go on with: {command_line('resume', *words)}")
        raise typer.Exit(INTERRUPTED)
    tell(f"see: {command_line('report', *words)}")


def _show_paper(preset: str) -> None:
    """The figures of the paper that a preset study belongs to."""
    from tuner.papers import paper_of_preset
    from tuner.report.papers import paper_screen

    paper = paper_of_preset(preset)
    if paper is not None:
        put("")
        put(paper_screen(paper, paper.figures()))


def studies(*, storage: StorageFlag = None, json: JsonFlag = False) -> None:
    """Studies in a storage."""
    from tuner import cli_tables
    from tuner.report import study_documents, study_screen

    views, foreign = cli_tables.all_studies(storage)
    for each in foreign:
        tell(f"left out: {each}, a study of another program")
    if json:
        show_json(study_documents.studies_document(views))
    else:
        put(study_screen.studies_table(views))


def show(name: Name, *, storage: StorageFlag = None, json: JsonFlag = False) -> None:
    """A study's summary and every one of its trials."""
    from tuner.cli_tables import storage_or_default
    from tuner.report import from_study, study_documents, study_screen
    from tuner.view import load_study

    view = load_study(name, storage_or_default(storage))
    if json:
        show_json(study_documents.study_document(view))
    else:
        put(study_screen.show_screen(from_study.study_report(view, with_importance=False)))


def report(
    name: Name,
    *,
    html: HtmlFlag = None,
    csv: CsvFlag = None,
    storage: StorageFlag = None,
    json: JsonFlag = False,
) -> None:
    """What the study found: tables, and with --html one file of pictures that needs no network."""
    from tuner import cli_campaign
    from tuner.cli_tables import storage_or_default
    from tuner.recorded import write_studies
    from tuner.report import from_study, page, study_documents, study_screen
    from tuner.view import load_study

    target, where = check_writable(html) if html else None, storage_or_default(storage)
    if cli_campaign.report(name, where, html=target, csv=csv, json=json):
        return
    view = load_study(name, where)
    if csv:
        write_studies([view], check_writable(csv))
    content = from_study.study_report(view)
    if target:
        from tuner.insight.study import explain_view

        write_page(target, page.page(content, explain_view(view, where)))
    if json:
        show_json(study_documents.study_document(view))
    else:
        put(study_screen.report_screen(content))
