"""What `report`, `show` and `studies` print for a person."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from objectives.metrics import ENERGY_METRICS, Job, Metric, metric_named
from objectives.outcome import OutcomeOrigin
from objectives.valuing import outcome_energy_j
from search_spaces.units import DAY_S, KWH_J, gib
from tuner.report.content import StudyReport, TrialRow, accuracy, pareto_front
from tuner.report.figures import pareto_points
from tuner.report.proxies import proxies_table, proxy_lines
from tuner.report.rank_screen import job_lines
from tuner.report.tables import bar, facts, table
from tuner.report.words import count, gibibytes, percent, seconds, signed_percent, worth_words
from tuner.view import State, StudyView

BEST_SHOWN = 10
SHOWN = ("step_time", "mfu", "peak_memory")  # metrics that the table of trials has for any study


def report_screen(report: StudyReport) -> RenderableType:
    """The whole study: what was asked, what was found, how well it was predicted, what failed."""
    parts: list[RenderableType] = [summary(report)]
    if report.complete:
        parts += ["", Text("best trials", style="bold"), trials_table(report, report.ranked[:BEST_SHOWN])]
    if len(report.metrics) > 1 and report.complete:
        parts += ["", Text("Pareto front", style="bold"), front_table(report)]
    if report.importance:
        parts += ["", Text("knob importance", style="bold"), importance_table(report)]
    if report.proxies:
        parts += ["", Text("proxies", style="bold"), proxies_table(report.proxies)]
    if report.failures:
        parts += ["", Text("failed trials", style="bold"), failures_table(report.failures)]
    return Group(*parts, "", facts(report.provenance))


def outcome_screen(report: StudyReport) -> RenderableType:
    """What `tune` and `resume` end with."""
    parts: list[RenderableType] = [summary(report)]
    if report.complete:
        parts += ["", Text("best trials", style="bold"), trials_table(report, report.ranked[:BEST_SHOWN])]
    if len(report.metrics) > 1 and report.complete:
        parts += ["", Text("Pareto front", style="bold"), front_table(report)]
    if report.failures:
        parts += ["", Text("failed trials", style="bold"), failures_table(report.failures)]
    return Group(*parts)


def show_screen(report: StudyReport) -> RenderableType:
    """A study and all its trials by number."""
    cells = [
        [
            str(row.number),
            row.state,
            *([str(row.fidelity)] if report.proxies else []),
            row.words,
            seconds(row.predicted_s),
            seconds(row.measured.step_s) if row.measured else "",
            row.failed.cause if row.failed else "",
        ]
        for row in report.trials
    ]
    fidelity = ["fidelity"] if report.proxies else []
    columns = [">trial", "state", *fidelity, "~plan", ">predicted", f">{report.origin}", "cause"]
    parts: list[RenderableType] = [summary(report), "", table(columns, cells)]
    if report.proxies:
        parts += ["", Text("proxies", style="bold"), proxies_table(report.proxies)]
    return Group(*parts)


def studies_table(views: Sequence[StudyView]) -> RenderableType:
    """Studies of a storage, one a line."""
    cells = [[view.name, *_study_cells(view)] for view in views]
    return table(["~study", ">measured", ">failed", ">running", ">of", "best so far"], cells)


def _study_cells(view: StudyView) -> list[str]:
    counts = view.counts
    metric = metric_named(view.inputs.objective[0])
    best = value_words(metric, view.best.values[metric.name]) if view.best else "none"
    numbers = [counts[State.MEASURED], counts[State.FAILED], counts[State.RUNNING], view.budget_trials or ""]
    return [*map(str, numbers), f"{metric.name.replace('_', ' ')} {best}"]


def summary(report: StudyReport) -> RenderableType:
    """A study in a few lines."""
    lines = [
        ("study", report.name),
        *job_lines(report.job),
        ("trials", report.states or "none yet"),
        *proxy_lines(report),
        *_agreement(report),
    ]
    best = report.best
    if best:
        first = report.metrics[0]
        for metric, value in zip(report.metrics, best.values, strict=True):
            name = f"best {metric.name}" if metric is first else f"its {metric.name}"
            lines.append((name, f"{value_words(metric, value)}, {report.origin}"))
        lines.append(("best plan", best.plan.key))
        lines += [("what ran", f"a smaller twin: {best.proxy_words}")] if best.proxy_words else []
        lines += [("more trials", worth_words(report.worth))] if report.worth else []
        lines += _energy(best, [metric.name for metric in report.metrics])
        lines += _training(report.job, best)
    return facts(lines)


def _energy(best: TrialRow, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Energy of the best plan's step and of the whole training: of studies of energy, and of real trials."""
    ran = best.measured
    if (
        ran is None
        or best.ran is None
        or not (set(metrics) & set(ENERGY_METRICS) or ran.origin is OutcomeOrigin.MEASURED)
    ):
        return []
    if ran.energy_j is None and not set(metrics) & set(ENERGY_METRICS):
        return [("energy", "not measured")]
    job, plan = best.ran
    joules = outcome_energy_j(job, plan, ran)
    tokens = None if best.proxy_words else job.workload.train_tokens
    per_token_j = joules / job.workload.tokens_per_step
    whole = "" if tokens is None else f", {tokens * per_token_j / KWH_J:,.0f} kWh in all"
    how = "devices not measured: by the model" if ran.energy_j is None else f"devices {ran.origin}"
    words = f"{per_token_j:.3g} J/token, {joules / KWH_J:.3g} kWh a step{whole}"
    return [("energy", f"{words} ({how}; hosts and network by the model)")]


def _training(job: Job, best: TrialRow) -> list[tuple[str, str]]:
    """Days of the whole training with the best plan, where the workload says how many tokens it has."""
    tokens = job.workload.train_tokens
    if tokens is None or best.measured is None or best.proxy_words:
        return []
    days = tokens / job.workload.tokens_per_step * best.measured.step_s / DAY_S
    return [("training", f"{days:,.1f} days for {count(tokens)} tokens, without checkpoints and failures")]


def _agreement(report: StudyReport) -> list[tuple[str, str]]:
    errors = accuracy(report.complete)
    if errors is None:
        return []
    order = (
        f", {percent(errors.pair_order)} of pairs in the right order" if errors.pair_order is not None else ""
    )
    text = f"median error {percent(errors.median_ape)}, mean {signed_percent(errors.bias)}{order}"
    return [(f"predicted/{report.origin}", text)]


def trials_table(report: StudyReport, rows: list[TrialRow]) -> RenderableType:
    """Trials that ran, predicted and observed side by side."""
    limit, first = gib(report.job.cluster.device.memory_bytes), report.metrics[0]
    is_more = first.name not in SHOWN
    cells = [
        [
            str(row.number),
            row.words,
            seconds(row.predicted_s),
            seconds(row.measured.step_s),
            signed_percent(row.error or 0.0),
            *([value_cell(first, row.values[0])] if is_more else []),
            percent(row.mfu or 0.0),
            gibibytes(row.measured.peak_memory_bytes),
        ]
        for row in rows
        if row.measured
    ]
    more = [f">{column_name(first)}"] if is_more else []
    columns = [">trial", "~plan", ">predicted", f">{report.origin}", ">error", *more, ">MFU"]
    return table([*columns, f">of {limit:.1f} GiB"], cells)


def front_table(report: StudyReport) -> RenderableType:
    """The trials that no other beats in the first two objectives."""
    metrics, points = pareto_points(report)
    front = pareto_front(points, [metric.goal for metric in metrics])
    rows = [report.complete[i] for i in front]
    cells = [
        [
            str(row.number),
            row.words,
            *(value_words(m, v) for m, v in zip(report.metrics, row.values, strict=True)),
        ]
        for row in rows
    ]
    return table([">trial", "~plan", *(f">{metric.name}" for metric in report.metrics)], cells)


def importance_table(report: StudyReport) -> RenderableType:
    """Shares by every evaluator, and why one was skipped."""
    drawn = [one for one in report.importance if one.shares]
    skipped = [
        Text(f"{one.evaluator} skipped: {one.skipped}", style="dim")
        for one in report.importance
        if one.skipped
    ]
    knobs = drawn[0].shares if drawn else {}
    cells = [
        [knob, *(f"{one.shares.get(knob, 0):.2f} {bar(one.shares.get(knob, 0), 16):16}" for one in drawn)]
        for knob in knobs
    ]
    return Group(*([table(["knob", *(one.evaluator for one in drawn)], cells)] if drawn else []), *skipped)


def failures_table(rows: list[TrialRow]) -> RenderableType:
    """Trials that failed, with cause and the last line of the log."""
    cells = [
        [str(row.number), row.words, str(row.failed.cause), row.failed.message] for row in rows if row.failed
    ]
    return table([">trial", "~plan", "cause", "~message"], cells)


def value_cell(metric: Metric, value: float) -> str:
    """A metric's value under a heading that has the unit."""
    return value_words(metric, value).removesuffix(f" {metric.unit}")


def column_name(metric: Metric) -> str:
    """The heading of a column of `value_cell`s."""
    name = {"hfu": "HFU", "tokens_per_s_per_device": "tokens/s/device"}.get(metric.name, metric.name)
    is_told = metric.name in ("hfu", "step_time", "peak_memory", "mfu", "tokens_per_s_per_device")
    return name if is_told else f"{name} ({metric.unit})"


def value_words(metric: Metric, value: float) -> str:
    """A metric's value with its unit."""
    match metric.name:
        case "step_time":
            return seconds(value)
        case "peak_memory":
            return gibibytes(value)
        case "mfu" | "hfu":
            return percent(value)
        case "max_seq_len":
            return f"{value:,.0f} {metric.unit}"
        case _:
            return f"{value:,.4g} {metric.unit}"
