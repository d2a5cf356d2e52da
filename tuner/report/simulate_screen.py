"""What `simulate` shows a person."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from objectives.ranking import memory_limit_bytes
from objectives.simulator.step import SimulatedStep
from objectives.simulator.step_account import SHOWN
from search_spaces.plan import Floats
from search_spaces.units import gib
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, memory_by_part, time_by_part
from tuner.report.rank_screen import job_facts
from tuner.report.tables import bar, facts, table
from tuner.report.words import gibibytes, percent, seconds, signed_percent
from tuner.second_opinion import Simulation

MOST_RANKS = 16


def simulate_screen(simulation: Simulation) -> RenderableType:
    """Step, bubble, exposed communication, every rank's seconds and bytes, and why two opinions differ."""
    return Group(
        job_facts(simulation.job),
        facts([("plan", simulation.plan.key)]),
        "",
        facts(summary_lines(simulation)),
        "",
        Text("where the step goes, on the mean of all pipeline ranks", style="bold"),
        parts_table(simulation),
        Text("stragglers slow every simulated part; the closed form has them with the fixed", "dim"),
        "",
        Text("by pipeline rank", style="bold"),
        ranks_table(simulation),
        "",
        facts([*peak_lines(simulation), *why_lines(simulation)]),
    )


def summary_lines(simulation: Simulation) -> list[tuple[str, str]]:
    """The step by both opinions, the seeds' spread, a pipeline's bubble, exposed communication."""
    step, closed_s = simulation.step, float(simulation.closed_form.step_s[0])
    differs = f"{signed_percent(simulation.difference)} of the closed form's {seconds(closed_s)}"
    lines = [("step time", f"{seconds(step.step_s)} simulated, {differs}")]
    lines += spread_lines(simulation.seeds_s)
    lines += bubble_lines(step) if simulation.plan.pp > 1 else []
    lines.append(("exposed", exposed_words(simulation)))
    return lines + ([("hangs", step.hang)] if step.hang else [])


def bubble_lines(step: SimulatedStep) -> list[tuple[str, str]]:
    """Idle time of a pipeline by both measures."""
    passes = step.passes
    return [
        ("bubble", f"{_bubble(passes.makespan_bubble_s, step.makespan_bubble_fraction)} between the first"
                   " start and the last end of all ranks (a barrier closes the step)"),
        ("", f"{_bubble(passes.span_bubble_s, step.span_bubble_fraction)} between the worst rank's own start"
             " and end (steps interlock)"),
    ]  # fmt: skip


def _bubble(idle_s: float, share: float) -> str:
    return f"{seconds(max(idle_s, 0.0))}, {percent(max(share, 0.0))},"


def spread_lines(seeds_s: Floats) -> list[tuple[str, str]]:
    """Quantiles of the step over seeds; nothing for one seed."""
    if len(seeds_s) < 2:
        return []
    low, middle, high = (seconds(float(each)) for each in np.quantile(seeds_s, (0.05, 0.5, 0.95)))
    return [("over seeds", f"median {middle}, 90 % of {len(seeds_s):,} seeds from {low} to {high}")]


def exposed_words(simulation: Simulation) -> str:
    """Communication that nothing hides, by kind, on the rank that shows the most."""
    step = simulation.step
    exposed_s = step.exposed_comm_s
    worst = int(np.argmax(exposed_s))
    kinds = [
        f"{name.removesuffix('_comm_s')} {seconds(float(step.parts_s[name][worst]))}"
        for name in SHOWN
        if step.parts_s[name][worst] > 0
    ]
    if not kinds:
        return "no communication"
    return f"{seconds(float(exposed_s[worst]))} of communication on rank {worst}: {', '.join(kinds)}"


def parts_table(simulation: Simulation) -> RenderableType:
    """Seconds by part: closed form, and the simulated mean, least and most of all ranks."""
    closed, step = time_by_part(simulation.closed_form.time, 0), simulation.step
    rows: list[list[str | Text]] = []
    for name, part in TIME_PARTS.items():
        mine = step.parts_s.get(name, np.zeros(1))
        if closed[name] > 0 or mine.any():
            values = (closed[name], mine.mean(), mine.min(), mine.max())
            share = float(mine.mean()) / step.makespan_s
            rows.append(
                [part.label, *(seconds(float(each)) for each in values), Text(bar(share), part.colour)]
            )
    rows.append(["step", seconds(sum(closed.values())), seconds(step.makespan_s), "", "", ""])
    return table(["time", ">closed form", ">simulated", ">least", ">most", ""], rows)


def ranks_table(simulation: Simulation) -> RenderableType:
    """Seconds and bytes of every rank; of many ranks evenly spaced ones."""
    step, limit = simulation.step, memory_limit_bytes(simulation.job)
    parts, memory = step.parts_s, step.memory
    at_work = sum((parts[name] for name in ("compute_s", "recompute_s", "launch_s")), np.zeros(1))
    comm, peak_at = step.exposed_comm_s, memory.peak_at_s
    rows = [
        [
            str(rank),
            *(seconds(float(column[rank])) for column in (at_work, comm, parts["bubble_s"])),
            gibibytes(float(memory.peak_bytes[rank])),
            seconds(float(peak_at[rank])),
            percent(float(memory.peak_bytes[rank]) / limit),
            bar(float(memory.peak_bytes[rank]) / limit, 16),
        ]
        for rank in shown_ranks(len(memory.peak_bytes))
    ]
    columns = [">rank", ">works", ">communicates", ">idles", ">peak memory", ">at", ">of limit", ""]
    return table(columns, rows)


def shown_ranks(n_ranks: int, most: int = MOST_RANKS) -> Sequence[int]:
    """All ranks, or so many evenly spaced ones with the first and the last."""
    spaced = np.linspace(0, n_ranks - 1, min(n_ranks, most))
    return [int(each) for each in np.unique(np.rint(spaced))]


def peak_lines(simulation: Simulation) -> list[tuple[str, str]]:
    """The fullest rank: when, and what holds its bytes."""
    step, limit = simulation.step, memory_limit_bytes(simulation.job)
    rank = step.memory.peak_rank
    peak = float(step.memory.peak_bytes[rank])
    fits = "fits" if peak <= limit else f"does not fit, {gibibytes(peak - limit)} too large"
    held = peak_parts(simulation, rank)
    words = ", ".join(
        f"{MEMORY_PARTS[name].label} {gib(value):.1f}" for name, value in held.items() if value > 0
    )
    n_held = len({each.microbatch for each in step.memory.held_at_peak(rank)})
    closed, at = (
        float(simulation.closed_form.peak_memory_bytes[0]),
        seconds(float(step.memory.peak_at_s[rank])),
    )
    return [
        ("peak memory", f"{gibibytes(peak)} of {gibibytes(limit)} on rank {rank} after {at}: {fits};"
                        f" closed form {gibibytes(closed)}"),
        ("held by", f"{words} GiB; activations of {n_held} micro-batches"),
    ]  # fmt: skip


def peak_parts(simulation: Simulation, rank: int) -> dict[str, float]:
    """Bytes of a rank at its peak by part: the constant ones, and activations as simulated."""
    step = simulation.step
    parts = memory_by_part(step.stage_memory, rank)
    return parts | {"activations_bytes": float(step.memory.peak_activation_bytes[rank])}


def why_lines(simulation: Simulation) -> list[tuple[str, str]]:
    """Where the closed form's assumptions do not hold."""
    return [("why" if i == 0 else "", reason) for i, reason in enumerate(simulation.reasons)]
