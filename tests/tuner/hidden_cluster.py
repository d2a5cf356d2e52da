"""A made-up job: a candidate table in the real classes, and clusters whose truth differs from its estimate.

The formulas are toys (they only have to trade the knobs against each other); the hidden truth scales every
part of them, adds effects that they lack, and measures with noise.
"""

import functools
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
import optuna
from optuna.trial import TrialState

from objectives.cost.result import Estimate, StepMemory, StepTime
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin, outcome_to_dict
from objectives.ranking import Candidates
from search_spaces.cluster_presets import load_cluster, load_device
from search_spaces.knobs import COMMON_SCHEDULES
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans, Recompute, Schedule
from search_spaces.workload import Workload

CAPACITY_BYTES = load_device("h100-80").memory_bytes
N_LAYERS, GLOBAL_BATCH = 80, 512


def legal_plans(n_devices=256):
    """Every plan of a small space over `n_devices`."""
    degrees = (
        [2**i for i in range(4)],
        [2**i for i in range(5)],
        [1, 2, 4],
        list(Recompute),
        [0, 1],
        COMMON_SCHEDULES,
    )
    plans = []
    for tp, pp, micro_batch, recompute, zero, schedule in product(*degrees):
        dp = n_devices // (tp * pp)
        vpp = 2 if schedule is Schedule.INTERLEAVED else 1
        if (pp == 1 and schedule is not Schedule.ONE_F_ONE_B) or GLOBAL_BATCH % (dp * micro_batch):
            continue
        knobs = dict(tp=tp, pp=pp, dp=dp, vpp=vpp, micro_batch=micro_batch, zero=zero, recompute=recompute)
        plans += [
            Plan(**knobs, schedule=schedule, sequence_parallel=tp > 1, overlap_dp=overlap)
            for overlap in (False, True)
        ]
    return Plans.of(plans)


def estimate(plans):
    """Toy seconds and bytes of every plan."""
    n_micro = GLOBAL_BATCH / (plans.dp * plans.micro_batch)
    bubble = np.where(plans.pp > 1, (plans.pp - 1) / (n_micro * plans.vpp), 0.0)
    bubble *= np.where(plans.is_schedule(Schedule.ZB_H1), 0.5, 1.0)
    compute = 8.0 * (1 + 0.25 / plans.micro_batch) * (1 + 0.02 * np.log2(plans.tp))
    recomputed = np.choose(plans.recompute, [0.0, 0.04, 0.3]) * compute
    zeros = np.zeros(len(plans))
    time = StepTime(
        compute_s=compute,
        recompute_s=recomputed,
        tp_comm_s=0.8 * np.log2(plans.tp) / plans.micro_batch**0.1,
        cp_comm_s=zeros,
        ep_comm_s=zeros,
        pp_comm_s=0.02 * (plans.pp - 1) * plans.vpp,
        bubble_s=(compute + recomputed) * bubble,
        dp_comm_s=2.0
        * (1 - 1 / plans.dp)
        / (plans.tp * plans.pp)
        * np.where(plans.overlap_dp, 0.3, 1.0)
        * (1 + 0.2 * plans.zero),
        optimizer_s=0.6 / (plans.tp * plans.pp) / np.where(plans.zero > 0, plans.dp, 1),
        offload_s=zeros,
        launch_s=zeros,
        fixed_s=zeros + 0.1,
    )
    shards = plans.tp * plans.pp
    in_flight = np.where(plans.is_schedule(Schedule.GPIPE), n_micro, np.minimum(plans.pp, n_micro))
    kept = np.choose(plans.recompute, [1.0, 0.6, 0.1]) * plans.micro_batch * in_flight / shards
    memory = StepMemory(
        weights_bytes=140e9 / shards,
        gradients_bytes=280e9 / shards,
        optimizer_bytes=840e9 / shards / np.where(plans.zero > 0, plans.dp, 1),
        activations_bytes=160e9 * kept,
        logits_bytes=4e9 * plans.micro_batch / plans.tp,
        buffers_bytes=zeros + 2e9,
        reserve_bytes=zeros + 3e9,
    )
    return Estimate(
        time=time,
        memory=memory,
        peak_stage=np.zeros(len(plans), dtype=np.int64),
        pass_share=np.ones(len(plans)),
        host_s=zeros,
        visited_s=zeros,
    )


def candidate_table(n_devices=256):
    """Plans that fit by the estimate, best predicted first."""
    plans = legal_plans(n_devices)
    priced = estimate(plans)
    fits = np.flatnonzero(priced.peak_memory_bytes <= CAPACITY_BYTES)
    order = fits[np.argsort(priced.step_s[fits], kind="stable")]
    kept = priced.take(order)
    return Candidates(plans=plans.take(order), estimate=kept, score=kept.step_s)


@dataclass(frozen=True)
class HiddenCluster:
    """What is true of every candidate: (n,) seconds and bytes, and whether it runs."""

    step_s: np.ndarray
    peak_bytes: np.ndarray
    noise: float
    seed: int

    @property
    def fits(self):
        return self.peak_bytes <= CAPACITY_BYTES

    @property
    def best_s(self):
        return self.step_s[self.fits].min()

    def outcome(self, row):
        """One noisy measurement."""
        if not self.fits[row]:
            short = self.peak_bytes[row] - CAPACITY_BYTES
            return Failed(
                cause=Cause.OUT_OF_MEMORY,
                message="out of memory",
                origin=OutcomeOrigin.SIMULATED,
                short_bytes=short,
            )
        factor = np.exp(self.noise * np.random.default_rng([self.seed, row]).standard_normal())
        return Measured(
            step_s=self.step_s[row] * factor,
            step_spread_s=0.0,
            peak_memory_bytes=self.peak_bytes[row],
            origin=OutcomeOrigin.SIMULATED,
        )


def hidden_cluster(candidates, seed, *, spread=0.35, noise=0.01):
    """A cluster whose constants are off by `spread`, with four effects that the estimate lacks."""
    rng = np.random.default_rng(seed)
    plans, time, memory = candidates.plans, candidates.estimate.time, candidates.estimate.memory
    # The made-up table waits for no host; that part draws nothing, which leaves the arena as it was.
    parts = [getattr(time, field.name) for field in fields(time) if field.name != "launch_s"]
    step_s = sum(np.exp(spread * rng.standard_normal()) * part for part in parts)
    step_s *= np.exp(0.15 * rng.standard_normal())
    step_s *= 1 + 0.15 * rng.random() * (plans.tp >= 8)
    step_s *= 1 + 0.15 * rng.random() * (plans.micro_batch == 1)
    step_s *= 1 + 0.15 * rng.random() * plans.is_schedule(COMMON_SCHEDULES[rng.integers(4)])
    step_s *= np.exp(0.03 * rng.standard_normal(len(plans)))
    peak = sum(np.exp(0.12 * rng.standard_normal()) * getattr(memory, field.name) for field in fields(memory))
    return HiddenCluster(step_s=step_s, peak_bytes=peak, noise=noise, seed=seed)


@functools.cache
def job():
    """A real job around the toy: only its device's memory, its tokens and its price matter here."""
    workload = Workload(seq_len=8192, global_batch=GLOBAL_BATCH, device_hour_price=2.0)
    return Job(model=load_model("llama-3-70b"), cluster=load_cluster("dgx-h100", 256), workload=workload)


def told(study, sampler, cluster):
    """Ask, try the plan on the hidden cluster, tell the outcome as a study does; the row tried."""
    trial = study.ask(fixed_distributions=sampler.table.distributions)
    row = sampler.table.row_of(trial.params)
    tell(study, trial, cluster.outcome(row))
    return row


def tell(study, trial, outcome, *, metrics=("step_time",), attribute=True):
    """Tell an outcome: a failure is a violated constraint; without `attribute` only the values tell it."""
    if attribute:
        trial.set_user_attr("outcome", outcome_to_dict(outcome))
    if isinstance(outcome, Failed):
        trial.set_constraint("runs", 1.0)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_constraint("runs", -1.0)
        columns = np.array([outcome.step_s]), np.array([outcome.peak_memory_bytes])
        study.tell(trial, [job().values(name, *columns, Plans.of([Plan()]))[0] for name in metrics])


def regrets(sampler, cluster, budget):
    """By what share the best plan so far is slower than the best there is, after each trial."""
    study = optuna.create_study(sampler=sampler)
    rows = [told(study, sampler, cluster) for _ in range(budget)]
    seconds = np.where(cluster.fits[rows], cluster.step_s[rows], np.inf)
    return np.minimum.accumulate(seconds) / cluster.best_s - 1.0
