import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Cause, Measured
from runners.hidden import hidden_machine
from runners.simulated import SimulatedRunner
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans, Schedule
from search_spaces.workload import Workload
from tests.runners.jobs import FITS, PLANS, TOO_BIG, llama_job

ROOT = Path(__file__).parents[2]
CALM = dict(noise=0.0, hidden=0.0, straggler_probability=0.0)


def outcome_of(plan, attempt=0, **options):
    (outcome,) = SimulatedRunner(llama_job(), **options).run(Plans.of([plan]), attempt=attempt)
    return outcome


@pytest.mark.parametrize(
    "plan",
    [
        FITS,
        Plan(tp=8, dp=8, sequence_parallel=True),
        Plan(tp=4, pp=4, dp=4, sequence_parallel=True, schedule=Schedule.ZB_H1),
        Plan(tp=2, pp=4, dp=8, vpp=2, sequence_parallel=True, schedule=Schedule.INTERLEAVED),
    ],
    ids=["1f1b", "no pipeline", "zb-h1", "interleaved"],
)
def test_without_noise_and_secrets_the_clock_agrees_with_the_formula(plan):
    # The formula takes the worst stage for all and the sum of messages: a few percent on 2 to 4 stages.
    expected_s = estimate(llama_job(), Plans.of([plan])).step_s[0]
    assert outcome_of(plan, **CALM).step_s == pytest.approx(expected_s, rel=0.05)


def test_without_noise_every_step_takes_as_long():
    assert outcome_of(FITS, **CALM).step_spread_s == 0


def test_the_same_plan_has_the_same_outcome_in_another_process():
    code = (
        "from tests.runners.jobs import *; from runners.simulated import SimulatedRunner;"
        "print(SimulatedRunner(llama_job(), seed=3).run(Plans.of([FITS])))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str([outcome_of(FITS, seed=3)])


def test_seeds_are_different_machines_and_attempts_different_runs():
    assert len({outcome_of(FITS, seed=seed).step_s for seed in range(5)}) == 5
    assert outcome_of(FITS, attempt=0).step_s != outcome_of(FITS, attempt=1).step_s


def test_noise_spreads_steps_and_not_their_median():
    quiet, noisy = outcome_of(FITS, noise=0.01), outcome_of(FITS, noise=0.1)
    assert 0 < quiet.step_spread_s < noisy.step_spread_s
    assert noisy.step_s == pytest.approx(quiet.step_s, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_the_hidden_machine_stays_near_its_description(seed):
    described = llama_job().cluster
    true = hidden_machine(llama_job(), seed=seed, hidden=0.15).job.cluster
    pairs = [
        (true.step_fixed_s, described.step_fixed_s),
        (true.memory_reserve_bytes, described.memory_reserve_bytes),
    ]
    names = ("gemm_efficiency", "attention_efficiency", "memory_efficiency", "kernel_launch_s")
    pairs += [(getattr(true.device, name), getattr(described.device, name)) for name in names]
    pairs += [(a.efficiency, b.efficiency) for a, b in zip(true.tiers, described.tiers, strict=True)]
    ratios = np.array([a.value / b.value for a, b in pairs if b.value])
    assert np.all(np.abs(ratios - 1) <= 0.15)
    assert np.ptp(ratios) > 0


def test_the_hidden_machine_is_the_same_for_every_plan():
    one, other = (hidden_machine(llama_job(), seed=7, hidden=0.15) for _ in range(2))
    assert one == other


def test_a_straggler_slows_the_step():
    slow = outcome_of(FITS, noise=0, straggler_probability=1.0).step_s
    assert slow > 1.1 * outcome_of(FITS, noise=0, straggler_probability=0.0).step_s


def test_a_plan_that_does_not_fit_says_by_how_much_and_where():
    failed = outcome_of(TOO_BIG, hidden=0.0)
    expected = estimate(llama_job(), Plans.of([TOO_BIG])).peak_memory_bytes[0]
    assert failed.cause is Cause.OUT_OF_MEMORY
    assert failed.short_bytes == pytest.approx(expected - llama_job().cluster.device.memory_bytes)
    assert "rank 0: OutOfMemoryError" in failed.log_tail


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        ("hang_probability", Cause.HANG, "no step ended within 1800 s"),
        ("crash_probability", Cause.CRASH, "collective operation failed"),
        ("lost_machine_probability", Cause.LOST_MACHINE, "a node stopped answering"),
    ],
)
def test_what_can_go_wrong_does_with_its_words_in_the_log(fault, cause, words):
    failed = outcome_of(FITS, **{fault: 1.0})
    assert failed.cause is cause
    assert words in failed.log_tail


def test_a_machine_is_lost_as_often_as_asked_and_not_again_for_ever():
    runner = SimulatedRunner(llama_job(), lost_machine_probability=0.5)
    outcomes = [runner.run(Plans.of([FITS]), attempt=attempt)[0] for attempt in range(40)]
    assert 10 < sum(isinstance(outcome, Measured) for outcome in outcomes) < 30


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(hang_probability=1.5), "hang_probability must be between 0 and 1; got 1.5"),
        (dict(hidden=1.0), "the hidden factor must be at least 0 and below 1; got 1.0"),
        (dict(noise=float("nan")), "noise must be finite, not negative; got nan"),
        (dict(n_steps=0), "n_steps must be at least 1; got 0"),
        (dict(seed=-1), "seed must not be negative; got -1"),
    ],
    ids=str,
)
def test_an_impossible_option_is_refused(options, match):
    with pytest.raises(InvalidSpec, match=match):
        SimulatedRunner(llama_job(), **options)


def test_a_batch_of_plans_holds_every_kind_of_outcome():
    causes = [getattr(outcome, "cause", None) for outcome in SimulatedRunner(llama_job()).run(PLANS)]
    assert {None, Cause.OUT_OF_MEMORY, Cause.INVALID} <= set(causes)


ROUTED = "dp=256 ep=128 zero=1 dispatch=padding-free"


def few_tokens(**options):
    workload = Workload(seq_len=64, global_batch=4096, framework="x-moe")
    job = Job(model=load_model("x-moe-medium"), cluster=load_cluster("frontier", 256), workload=workload)
    quiet = dict(hidden=0.0, straggler_probability=0.0, n_steps=2)
    return SimulatedRunner(job, **quiet, **options)


def test_an_expert_rank_without_tokens_hangs_unless_a_dummy_one_is_sent():
    load = dict(expert_load="zipf", zipf_exponent=2.5)
    (hung,) = few_tokens(**load, empty_ranks_hang=True).run(Plans.of([Plan.parse(ROUTED)]))
    (ran,) = few_tokens(**load).run(Plans.of([Plan.parse(ROUTED)]))
    assert hung.cause is Cause.HANG
    assert "had no token" in hung.message
    assert isinstance(ran, Measured)


@pytest.mark.parametrize(
    ("words", "load"),
    [(ROUTED.replace("padding-free", "padded"), "zipf"), (ROUTED, "uniform"), (ROUTED, "as-given")],
)
def test_padded_experts_and_even_ones_do_not_hang(words, load):
    runner = few_tokens(expert_load=load, zipf_exponent=2.5, empty_ranks_hang=True)
    assert isinstance(runner.run(Plans.of([Plan.parse(words)]))[0], Measured)


def test_tokens_that_come_to_the_hottest_rank_take_its_memory():
    workload = Workload(seq_len=2048, global_batch=64)
    job = Job(model=load_model("mixtral-8x7b"), cluster=load_cluster("frontier", 64), workload=workload)
    given, even, hot = (
        SimulatedRunner(job, hidden=0.0, straggler_probability=0.0, n_steps=1, expert_load=load).run(
            Plans.of([Plan.parse("pp=4 dp=16 ep=8")])
        )[0]
        for load in ("as-given", "uniform", "zipf")
    )
    assert given.peak_memory_bytes < even.peak_memory_bytes < 1.02 * given.peak_memory_bytes
    assert hot.cause is Cause.OUT_OF_MEMORY
    assert "OutOfMemoryError" in hot.log_tail


def test_an_unknown_load_of_experts_and_one_without_experts_are_sentences():
    with pytest.raises(UnknownName, match="expert_load"):
        few_tokens(expert_load="zipfian")
    with pytest.raises(InvalidSpec, match="needs a model with experts"):
        SimulatedRunner(llama_job(), expert_load="zipf")
