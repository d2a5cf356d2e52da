"""Where engine and closed form agree on a step: a table by schedule, over the leading plans of some jobs.

    holds       plans for which `objectives.simulator.agreement` finds no assumption broken, and the largest
                difference among them, which must stay within 0.1 %
    elsewhere   the others: how many agree to 0.1 % all the same, median and largest difference, and of all
                plans the root mean square of (simulated - closed form) / (bubble of 1F1B), which is
                `FORM_ERRORS` of `tuner.rescore`

The last job is a model with hardly any vocabulary on links that take hardly any time: its stages are alike.

Run it with: python benchmarks/agreement.py [--write]      (--write: into docs/simulator.md)
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from objectives.cost.pipeline import EXACT
from objectives.metrics import Job
from objectives.ranking import Candidates, rank
from objectives.simulator.agreement import AGREES_TO, assumptions
from search_spaces.cluster import assumed
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import MeshtuneError
from search_spaces.model_presets import load_model
from search_spaces.plan import Schedule
from search_spaces.space import SpaceSpec
from search_spaces.units import MILLION
from search_spaces.workload import Workload
from tuner.rescore import PASS_PARTS, simulated_s

PAGE = Path(__file__).parents[1] / "docs" / "simulator.md"
BEGIN, END = "<!-- agreement: begin -->\n", "<!-- agreement: end -->\n"
JOBS = (
    ("llama-3-8b", "dgx-h100", 32, 64, 4096),
    ("gpt2", "dgx-a100", 16, 64, 1024),
    ("gpt3-175b", "dgx-a100", 256, 256, 2048),
    ("llama-3-70b", "dgx-h100", 64, 128, 4096),
    ("mixtral-8x7b", "dgx-h100", 64, 128, 4096),
)
PLANS_A_JOB = 40
SPACE: dict[str, list[str] | list[int] | list[bool]] = {
    "cp": [1], "recompute": ["none"], "recompute_every": [1], "offload_optimizer": [False],
    "rank_order": ["tp-cp-dp-pp"],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One plan: difference of its two step times, its error in bubbles of 1F1B, whether assumptions hold."""

    difference: float
    bubbles: float
    holds: bool


def jobs() -> Iterator[Job]:
    """The jobs of the table, and one whose stages are all alike."""
    for model, cluster, n_devices, global_batch, seq_len in JOBS:
        workload = Workload(seq_len=seq_len, global_batch=global_batch)
        yield Job(model=load_model(model), cluster=load_cluster(cluster, n_devices), workload=workload)
    yield even_job(workload)


def even_job(workload: Workload) -> Job:
    """A model with hardly any vocabulary, on links that take hardly any time: all stages are alike."""
    model, cluster = load_model("gpt3-175b"), load_cluster("dgx-a100", 64)
    at_once = assumed(1e-12)
    tiers = tuple(
        replace(
            tier,
            latency_s=at_once,
            bandwidth_bytes_per_s=MILLION * tier.bandwidth_bytes_per_s,
            pair_bandwidth_bytes_per_s=MILLION * tier.pair_bandwidth_bytes_per_s,
        )
        for tier in cluster.tiers
    )
    embedding = replace(model.embedding, vocab_size=64)
    return Job(
        model=replace(model, embedding=embedding), cluster=replace(cluster, tiers=tiers), workload=workload
    )


def compare(schedules: list[str], pp: list[int]) -> Iterator[Compared]:
    """Leading plans of these schedules and degrees, of every job that has some."""
    for job in jobs():
        try:
            found = rank(
                job, SpaceSpec.of(SPACE | {"schedule": schedules, "pp": pp}), keep=PLANS_A_JOB
            ).candidates
        except MeshtuneError:  # no plan of this job runs the schedule
            continue
        yield from _compared(job, found)


def _compared(job: Job, found: Candidates) -> Iterator[Compared]:
    plans, times = found.plans, found.estimate.time
    passes_s = sum((getattr(times, part) for part in PASS_PARTS), np.zeros(len(plans)))
    m = job.workload.global_batch // (plans.micro_batch * plans.dp)
    bubble_s = (plans.pp - 1) / m * passes_s
    for i, plan in enumerate(plans):
        closed_s, step_s = float(found.estimate.step_s[i]), simulated_s(job, plan)
        if np.isfinite(step_s):
            off_s = step_s - closed_s
            yield Compared(
                difference=off_s / closed_s,
                bubbles=off_s / bubble_s[i] if plan.pp > 1 else 0.0,
                holds=not assumptions(job, plan),
            )


def row(name: str, exact: str, found: Sequence[Compared]) -> str:
    """One line of the table."""
    holds = [abs(each.difference) for each in found if each.holds]
    others = np.array([abs(each.difference) for each in found if not each.holds])
    rms = float(np.sqrt(np.mean([each.bubbles**2 for each in found])))
    elsewhere = (
        f"{np.mean(others <= AGREES_TO):.0%} | {np.median(others):.1%} | {others.max():.1%}"
        if len(others)
        else "| | "
    )
    cells = [name, exact, str(len(holds)), f"{max(holds):.3%}" if holds else "", str(len(others)), elsewhere]
    return "| " + " | ".join([*cells, f"{rms:.2f}"]).replace("%", " %") + " |"


HEAD = (
    "schedule", "closed form exact for", "holds", "most", "elsewhere", "within 0.1 %", "median", "most",
    "error in 1F1B bubbles",
)  # fmt: skip


def table() -> tuple[list[str], float]:
    """The table's lines, and the largest difference where assumptions hold."""
    lines, worst = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"], 0.0
    rows = [("no pipeline", "every plan", [str(Schedule.ONE_F_ONE_B)], [1])]
    rows += [(str(each), EXACT[each], [str(each)], [2, 4, 8]) for each in Schedule]
    for name, exact, schedules, pp in rows:
        found = list(compare(schedules, pp))
        lines.append(row(name, exact, found))
        worst = max([worst, *(abs(each.difference) for each in found if each.holds)])
    return lines, worst


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write it into the page; 1 where the two disagree though assumptions hold."""
    lines, worst = table()
    text = "\n".join(lines) + "\n"
    print(text)
    print(f"largest difference where assumptions hold: {worst:.4%}; aim: {AGREES_TO:.1%}")
    if "--write" in arguments:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")
    return int(worst > AGREES_TO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
