"""What `rank` and `estimate` show a person."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from objectives.cost.reserve import memory_bounds_bytes
from objectives.cost.result import Estimate, StageProfile
from objectives.longest import MAX_SEQ_LEN
from objectives.metrics import Job
from objectives.ranking import Candidates, Ledger, Ranking, memory_limit_bytes
from objectives.uncertainty import constants
from objectives.valuing import metric_values
from search_spaces.cluster import Origin
from search_spaces.parameters import active_parameters, total_parameters
from search_spaces.plan import Floats, Plan, Plans
from search_spaces.units import gib
from tuner.report.energy import energy_lines, shows_energy
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, Part, memory_by_part, time_by_part
from tuner.report.rescored import simulated_cells, simulated_lines
from tuner.report.tables import bar, facts, table
from tuner.report.words import count, gibibytes, number_of, percent, plan_words, seconds

if TYPE_CHECKING:
    from tuner.foretold import Foretold  # loads SciPy's optimisers

Intervals = tuple[Floats, Floats]
Unit = Callable[[float], str]


def job_facts(job: Job) -> RenderableType:
    """Model, cluster and workload, one a line."""
    return facts(job_lines(job))


def job_lines(job: Job) -> list[tuple[str, str]]:
    """Model, cluster and workload in words."""
    model, cluster, workload = job.model, job.cluster, job.workload
    active = f", {count(active_parameters(model))} active" if model.moe else ""
    trainer = "" if workload.framework == "any" else f", as {workload.framework} runs it"
    nodes = f"{cluster.n_nodes:,} x {min(cluster.devices_per_node, cluster.n_devices)}"
    return [
        ("model", f"{model.name}: {count(total_parameters(model))} parameters{active}"),
        (
            "cluster",
            f"{cluster.name}: {cluster.n_devices:,} devices ({nodes} {cluster.device.name},"
            f" {gib(cluster.device.memory_bytes):.1f} GiB each)",
        ),
        (
            "workload",
            f"{number_of(workload.global_batch, 'sequence')} of {workload.seq_len:,} tokens a step"
            f" ({count(workload.tokens_per_step)} tokens), {workload.precision}{trainer}",
        ),
    ]


def ledger_table(ledger: Ledger) -> RenderableType:
    """Where the plans went; the lines between those enumerated and those feasible add up."""
    rows = [["enumerated", f"{ledger.enumerated:,}"]]
    rows += [[f"  removed: {rule}", f"-{n:,}"] for rule, n in ledger.removed.items() if n]
    rows += [["  too large for the memory", f"-{ledger.too_large:,}"], ["feasible", f"{ledger.feasible:,}"]]
    if ledger.priced < ledger.feasible:
        rows += [["  priced in full; the passes of the others alone take too long", f"{ledger.priced:,}"]]
    return table(["~plans", ">count"], rows)


def best_table(job: Job, ranking: Ranking, top: int, *, with_energy: bool = False) -> RenderableType:
    """The best plans, best first."""
    candidates = ranking.candidates
    joules = _joules_per_token(job, candidates, top) if with_energy else []
    step_s, peak_bytes = candidates.estimate.step_s, candidates.estimate.peak_memory_bytes
    plans = candidates.plans
    tokens, mfu = (job.values(name, step_s, peak_bytes, plans) for name in ("tokens_per_s_per_device", "mfu"))
    rows = [
        [
            str(i + 1),
            plan_words(candidates.plans.row(i)),
            seconds(step_s[i]),
            *simulated_cells(ranking, i),
            f"{tokens[i]:,.0f}",
            percent(mfu[i]),
            gibibytes(peak_bytes[i]),
            *([f"{-candidates.score[i]:,.0f}"] if ranking.metric == MAX_SEQ_LEN else []),
            *joules[i : i + 1],
        ]
        for i in range(min(top, len(candidates)))
    ]
    limit = gib(memory_limit_bytes(job))
    again = [] if ranking.second is None else [">simulated", ">differs"]
    columns = [">#", "~plan", ">step", *again, ">tok/s/dev", ">MFU", f">of {limit:.1f} GiB"]
    columns += [">longest sequence"] if ranking.metric == MAX_SEQ_LEN else []
    return table([*columns, ">J/token"] if with_energy else columns, rows)


def _joules_per_token(job: Job, candidates: Candidates, top: int) -> list[str]:
    first = candidates.take(slice(0, top))
    values = metric_values(job, "energy_per_token", first.plans, first.estimate)
    return [f"{value:.3g}" for value in values]


def rank_screen(
    job: Job, ranking: Ranking, top: int, intervals: Intervals, metric: str = "step_time"
) -> RenderableType:
    """Header, ledger, the best plans, and where the best one's time and memory go."""
    candidates = ranking.candidates
    best, with_energy = candidates.plans.row(0), shows_energy(metric, candidates.plans)
    energy = energy_lines(job, candidates.plans, candidates.estimate) if with_energy else []
    return Group(
        job_facts(job),
        "",
        ledger_table(ranking.ledger),
        "",
        best_table(job, ranking, top, with_energy=with_energy),
        "",
        Text("where the best plan's step goes", style="bold"),
        parts_table(job, ranking.candidates.estimate, 0),
        "",
        facts(
            [
                *energy,
                *simulated_lines(ranking, top),
                *origin_lines(job, intervals),
                ("best plan", f'--plan "{best.key}"'),
            ]
        ),
    )


def parts_table(job: Job, estimate: Estimate, i: int) -> RenderableType:
    """Seconds and bytes of one plan by part, with shares and bars, side by side in one table."""
    times = _part_rows(TIME_PARTS, time_by_part(estimate.time, i), seconds)
    memory = _part_rows(MEMORY_PARTS, memory_by_part(estimate.memory, i), gibibytes)
    limit = memory_limit_bytes(job)
    peak = float(estimate.peak_memory_bytes[i])
    total_s = ["step", seconds(float(estimate.step_s[i])), "100.0 %", ""]
    total_bytes = ["peak", gibibytes(peak), percent(peak / limit), "of the limit"]
    return Group(
        table(["time", ">seconds", ">share", ""], [*times, total_s]),
        "",
        table(["memory", ">bytes", ">share", ""], [*memory, total_bytes]),
    )


def _part_rows(parts: Mapping[str, Part], values: Mapping[str, float], unit: Unit) -> list[list[str | Text]]:
    total = sum(values.values())
    return [
        [
            part.label,
            unit(values[name]),
            percent(values[name] / total),
            Text(bar(values[name] / total), part.colour),
        ]
        for name, part in parts.items()
        if values[name] > 0
    ]


def explanation(job: Job, estimate: Estimate, profile: StageProfile) -> RenderableType:
    """Seconds and bytes by part, and by pipeline stage."""
    return Group(
        parts_table(job, estimate, 0), "", Text("by pipeline stage", style="bold"), stage_table(job, profile)
    )


def stage_table(job: Job, profile: StageProfile) -> RenderableType:
    """One plan, stage by stage: layers, times of a micro-batch, memory."""
    total = profile.memory.total_bytes
    limit = memory_limit_bytes(job)
    rows = [
        [
            str(i),
            str(profile.n_layers[i]),
            seconds(profile.forward_s[i]),
            seconds(profile.backward_s[i]),
            f"{profile.in_flight[i]:.3g}",
            gibibytes(total[i]),
            percent(total[i] / limit),
            bar(total[i] / limit, 16),
        ]
        for i in range(len(total))
    ]
    columns = [">stage", ">layers", ">forward", ">backward", ">in flight", ">memory", ">of limit", ""]
    return table(columns, rows)


def estimate_screen(
    job: Job, plan: Plan, estimate: Estimate, intervals: Intervals, more: Sequence[tuple[str, str]]
) -> RenderableType:
    """One plan's figures; `more` follows what is said of their origin."""
    step_s, peak = estimate.step_s, estimate.peak_memory_bytes
    limit = memory_limit_bytes(job)
    alone = job.of_plan(plan)
    n_devices = alone.cluster.n_devices
    tokens = alone.values("tokens_per_s_per_device", step_s, peak, Plans.of([plan]))[0]
    return Group(
        job_facts(job),
        facts([("plan", plan.key)]),
        "",
        facts([
            ("step time", seconds(step_s[0])),
            ("throughput", f"{tokens * n_devices:,.0f} tokens/s, {tokens:,.0f} tokens/s/device"),
            ("MFU", f"{percent(alone.mfu(step_s)[0])} of the dense {job.workload.precision} peak"),
            ("peak memory", _memory_words(estimate, limit)),
            ("its interval", _memory_interval_words(job, estimate)),
        ]),
        "",
        facts([*origin_lines(job, intervals), *more]),
    )  # fmt: skip


def foretold_lines(told: "Foretold | None") -> list[tuple[str, str]]:
    """What studies' trials foretell, and how near to them the plan is."""
    if told is None:
        return []
    interval = f"{seconds(told.low_s)} to {seconds(told.high_s)} with {percent(told.coverage)}"
    runs = f"{told.n_runs} trials on at most {told.most_devices} devices"
    nearness = f"{percent(told.trust)} of what they left of the formulas' error is kept here"
    return [("from studies", f"{seconds(told.step_s)}, {interval}; {runs}, {nearness}")]


def foretold_document(told: "Foretold") -> dict[str, Any]:
    """The same for programs."""
    values = asdict(told)
    interval = [values.pop("low_s"), values.pop("high_s")]
    return {"step_time_s": values.pop("step_s"), "interval_s": interval, **values}


def _memory_words(estimate: Estimate, limit_bytes: float) -> str:
    peak = float(estimate.peak_memory_bytes[0])
    short = gibibytes(peak - limit_bytes)
    fits = "fits" if peak <= limit_bytes else f"does not fit, {short} too large"
    return f"{gibibytes(peak)} of {gibibytes(limit_bytes)} on stage {estimate.peak_stage[0]}: {fits}"


def _memory_interval_words(job: Job, estimate: Estimate) -> str:
    """What the context and the allocator's spare blocks may take, and whether the device has as much."""
    low, high = (float(bound[0]) for bound in memory_bounds_bytes(job, estimate.memory))
    device = job.cluster.device.memory_bytes
    fits = "fits" if high <= device else "may not fit" if low <= device else "does not fit"
    held = f"{gibibytes(low)} to {gibibytes(high)} with what the allocator keeps"
    return f"{held}: {fits} the device's {gibibytes(device)}"


def origin_lines(job: Job, intervals: Intervals) -> list[tuple[str, str]]:
    """Where the numbers come from, and how far they may be off."""
    weak = [name for name, constant in constants(job).items() if constant.origin is Origin.ASSUMED]
    total = len(constants(job))
    low, high = (seconds(float(bounds[0])) for bounds in intervals)
    lines = [
        (
            "origin",
            f"analytic; 90 % interval of its step time {low} to {high}, as far as constants and formulas go",
        )
    ]
    if weak:
        lines.append(("assumed", f"{len(weak)} of {total} constants: {', '.join(weak)}"))
    return lines
