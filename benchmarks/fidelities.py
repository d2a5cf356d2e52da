"""What proxies save: device-seconds of trials until the best plan is within 2 %, with and without fidelities.

    python benchmarks/fidelities.py [--seeds 12] [--trials 40] [--rows 160] [--hidden 0.4] [--start-s 60]

Each seed is a hidden cluster: the engine on constants off by up to `hidden`, the same for a job and its
proxies, and effects that the cost model lacks: of the tensor degree, the micro-batch, the schedule and the
ZeRO stage (up to 15 % each), of the shapes that a device works on (3 %), which proxies with the same inner
degrees share, and of each run for itself (1 %).  Regret counts plans that ran whole.

    price = devices × (start-up + steps × step seconds)

    whole         every trial runs the whole job, as the sampler chooses without prices
    priced        every trial runs the whole job, prices weighed
    fidelities    whole jobs and proxies, of few layers and of few devices
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna

from objectives.metrics import Job
from objectives.outcome import Measured, Outcome, outcome_to_dict
from objectives.ranking import Candidates, rank
from runners.simulated import SimulatedRunner
from search_spaces.cluster_presets import load_cluster
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.model_presets import load_model
from search_spaces.plan import Floats, Plan, Plans, Schedule
from search_spaces.space import SpaceSpec
from search_spaces.units import HOUR_S
from search_spaces.workload import Workload
from tuner.budget import Budget
from tuner.samplers.candidates import claimed_fidelity
from tuner.samplers.cost_aware import CostAwareSampler, Spending
from tuner.samplers.model_based import MeshtuneSampler
from tuner.tell import constraints_of, state_of, values_of

METRICS = ("step_time",)
NOISE, N_STEPS = 0.01, 5
EFFECT, SHAPE_EFFECT, OWN_EFFECT = 0.15, 0.03, 0.01  # assumed
SHAPES = ("tp", "cp", "ep", "etp", "micro_batch", "recompute", "recompute_modules", "sequence_parallel")
WITHIN = 0.02
ALL = (Fidelity.FEW_LAYERS, Fidelity.FEW_DEVICES, Fidelity.FULL)
JOBS = {
    "llama-3-8b on 64 H100": ("llama-3-8b", "dgx-h100", 64, 128, 8192),
    "llama-3-70b on 128 H100": ("llama-3-70b", "dgx-h100", 128, 128, 8192),
    "mixtral-8x7b on 128 H100": ("mixtral-8x7b", "dgx-h100", 128, 512, 4096),
}
WAYS = ("whole", "priced", "fidelities")


def described(name: str) -> Job:
    """The job of that name."""
    model, cluster, devices, global_batch, seq_len = JOBS[name]
    workload = Workload(seq_len=seq_len, global_batch=global_batch)
    return Job(model=load_model(model), cluster=load_cluster(cluster, devices), workload=workload)


def thinned(table: Candidates, n_rows: int) -> Candidates:
    """Rows from the whole ranking, denser at its top; few enough to simulate every one."""
    return table.take(np.unique(np.geomspace(1, len(table), n_rows).astype(np.int64)) - 1)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One hidden cluster: it runs whole plans and proxies, the same each time they are asked for."""

    runner: SimulatedRunner
    seed: int
    start_s: float

    def exact_s(self, plan: Plan, job: Job | None) -> Outcome:
        """Without noise; a job that is given runs in place of the whole one."""
        runner = self.runner if job is None else self.runner.of_job(job)
        (found,) = runner.run(Plans.of([plan]))
        if not isinstance(found, Measured):
            return found
        return replace(found, step_s=found.step_s * self.effect(plan, "" if job is None else repr(job.model)))

    def effect(self, plan: Plan, of: str) -> float:
        """What the cost model lacks, as a factor."""
        rng = np.random.default_rng([self.seed, 7])
        sizes, schedule = EFFECT * rng.random(4), list(Schedule)[rng.integers(4)]
        hit = (plan.tp >= 8, plan.micro_batch == 1, plan.schedule is schedule, plan.zero == 3)
        shapes = [str(getattr(plan, name)) for name in SHAPES]
        own = SHAPE_EFFECT * self.normal(*shapes) + OWN_EFFECT * self.normal(plan.key, of)
        return float(np.prod(1.0 + sizes * np.array(hit)) * np.exp(own))

    def normal(self, *words: str) -> float:
        """A standard normal that follows from the words."""
        return float(np.random.default_rng([self.seed, crc32("|".join(words).encode())]).standard_normal())

    def outcome(self, plan: Plan, job: Job | None, code: int) -> Outcome:
        """As a trial sees it."""
        return self.shown(self.exact_s(plan, job), code)

    def shown(self, found: Outcome, code: int) -> Outcome:
        """With the noise of that trial, and the seconds that it took."""
        if not isinstance(found, Measured):
            return replace(found, effective={"trial_s": self.start_s})
        noise = np.exp(NOISE * np.random.default_rng([self.seed, code]).standard_normal())
        step_s = found.step_s * float(noise)
        return replace(found, step_s=step_s, effective={"trial_s": self.start_s + N_STEPS * step_s})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One study: device-seconds after each trial, regret of the best whole plan then, and what ran."""

    device_s: Floats
    regret: Floats
    kinds: tuple[Fidelity, ...]

    def until_close(self) -> float:
        """Device-seconds until within; infinite where it never came so close."""
        close = np.flatnonzero(self.regret <= WITHIN)
        return float(self.device_s[close[0]]) if len(close) else float("inf")


def sampler_of(way: str, job: Job, table: Candidates, seed: int, n_trials: int) -> MeshtuneSampler:
    known = dict(metrics=METRICS, seed=seed, job=job)
    if way == "whole":
        return MeshtuneSampler(table, **known)
    kinds = ALL if way == "fidelities" else (Fidelity.FULL,)
    spending = Spending(fidelities=Fidelities(kinds=kinds), budget=Budget(trials=n_trials), n_steps=N_STEPS)
    return CostAwareSampler(table, **known, spending=spending)


def study_of(sampler: MeshtuneSampler, machine: Machine, step_s: Floats, n_trials: int) -> Run:
    study, spent_s, device_s, regret, kinds = optuna.create_study(sampler=sampler), 0.0, [], [], []
    best, n = np.inf, len(sampler.table)
    for _ in range(n_trials):
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        row, kind = (
            sampler.table.row_of(trial.params),
            claimed_fidelity(study._storage.get_trial(trial._trial_id).system_attrs),
        )
        plan, job = sampler.table.candidates.plans.row(row), None
        trial.set_user_attr("plan", plan.key)
        if kind is not Fidelity.FULL:
            twin = sampler.proxies.find(row, kind).twin
            plan, job = twin.plan, twin.job
            trial.set_user_attr("fidelity", str(kind))
            trial.set_user_attr("proxy", {"plan": plan.key})
        outcome = machine.outcome(plan, job, row + n * (kind is not Fidelity.FULL))
        tell(study, trial, outcome, sampler.job, is_full=job is None)
        took_s = outcome.effective["trial_s"]
        spent_s += plan.world_size * took_s
        best = min(best, step_s[row]) if job is None else best
        device_s.append(spent_s)
        regret.append(best / step_s.min() - 1.0)
        kinds.append(kind)
        if regret[-1] <= WITHIN:
            break
    return Run(device_s=np.array(device_s), regret=np.array(regret), kinds=tuple(kinds))


def tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, job: Job, *, is_full: bool) -> None:
    trial.set_user_attr("outcome", outcome_to_dict(outcome))
    for name, value in constraints_of(outcome, job).items() if is_full else ():
        trial.set_constraint(name, value)
    values = values_of(outcome, job, METRICS) if isinstance(outcome, Measured) and is_full else None
    study.tell(trial, values, state=state_of(outcome, is_full=is_full))


def race(job: Job, table: Candidates, given: argparse.Namespace) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {way: [] for way in WAYS}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        options = dict(seed=seed, hidden=given.hidden, noise=0.0, straggler_probability=0.0, n_steps=1)
        runner = SimulatedRunner(job, **options, start_s=given.start_s)
        machine = Machine(runner=runner, seed=seed, start_s=given.start_s)
        exact = [machine.exact_s(plan, None) for plan in table.plans]
        step_s = np.array([each.step_s if isinstance(each, Measured) else np.inf for each in exact])
        for way in WAYS:
            sampler = sampler_of(way, job, table, seed, given.trials)
            found[way].append(study_of(sampler, machine, step_s, given.trials))
    return found


def print_table(title: str, found: dict[str, list[Run]]) -> None:
    print(f"\n{title}: device-hours until within {100 * WITHIN:g} % of the best plan")
    print(f"{'':12}{'quartile':>10}{'median':>10}{'quartile':>10}{'mean':>10}{'never':>7}"
          f"{'whole runs':>12}{'proxies':>9}")  # fmt: skip
    for way, runs in found.items():
        hours = np.array([run.until_close() for run in runs]) / HOUR_S
        low, middle, high = np.quantile(hours, [0.25, 0.5, 0.75], method="higher")
        whole = [sum(kind is Fidelity.FULL for kind in run.kinds) for run in runs]
        proxies = [len(run.kinds) - n for run, n in zip(runs, whole, strict=True)]
        known = hours[np.isfinite(hours)]
        mean = known.mean() if len(known) else np.inf
        print(f"{way:12}{low:10.2f}{middle:10.2f}{high:10.2f}{mean:10.2f}{(~np.isfinite(hours)).sum():7}"
              f"{np.mean(whole):12.1f}{np.mean(proxies):9.1f}")  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--hidden", type=float, default=0.4)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--start-s", type=float, default=60.0)
    parser.add_argument("--jobs", default=",".join(JOBS))
    return parser.parse_args()


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = options()
    for title in given.jobs.split(","):
        job = described(title)
        table = thinned(rank(job, SpaceSpec()).candidates, given.rows)
        print_table(f"{title}, {len(table)} candidates", race(job, table, given))


if __name__ == "__main__":
    main()
