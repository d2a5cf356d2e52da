"""Golden logs of every kind of failure, and logs that only look like one: the cause rests on evidence."""

import pytest

from objectives.outcome import Cause
from runners.logs.clues import Clues
from runners.logs.verdict import Case, EndedBy, Ending, verdict_of
from search_spaces.units import GIB
from tests.runners.logs.reading import FAILURES, clues_of, read

OOM, CRASH, LOST = Cause.OUT_OF_MEMORY, Cause.CRASH, Cause.LOST_MACHINE
TIMEOUT, NAN, PREEMPTED = Cause.COLLECTIVE_TIMEOUT, Cause.NAN_LOSS, Cause.PREEMPTED
INVALID, MISSING = Cause.INVALID, Cause.LAUNCHER_MISSING

# Log, status of the launcher, cause, words of the message.
GOLDEN = [
    ("device-memory-cuda", 1, OOM, "rank 5 (stage 1): device memory, 2.25 GiB short: torch.Out"),
    ("device-memory-hip", 1, OOM, "rank 7 (stage 1): device memory, 2.25 GiB short: torch.Out"),
    ("device-memory-driver", 1, OOM, "rank 2 (stage 0): device memory: RuntimeError: CUDA error: out"),
    ("host-memory-slurm", 137, OOM, "host memory: slurmstepd: error: Detected 1 oom_kill event"),
    ("host-memory-killed", 1, OOM, "rank 3 (stage 0): host memory: killed by SIGKILL"),
    ("host-memory-python", 1, OOM, "rank 1 (stage 0): host memory: MemoryError"),
    ("host-memory-allocator", 1, OOM, "host memory: RuntimeError: [enforce fail at alloc_cpu.cpp"),
    ("host-memory-bad-alloc", 1, OOM, "rank 2 (stage 0): host memory: terminate called"),
    ("collective-timeout-nccl", 1, TIMEOUT, "rank 3 (stage 0): a collective timed out: [E511"),
    ("collective-timeout-gloo", 1, TIMEOUT, "rank 1 (stage 0): a collective timed out: RuntimeError"),
    ("crash-signal", 1, CRASH, "rank 2 (stage 0): ended by SIGSEGV after 2 steps"),
    ("crash-exception", 1, CRASH, "rank 6 (stage 1): ended with exit status 1: RuntimeError: CUDA"),
    ("crash-peer", 1, CRASH, "rank 1 (stage 0): a peer ended without a word: node01:4720"),
    ("nan-loss-checked", 1, NAN, "rank 2 (stage 0): the loss is not a number: AssertionError: R"),
    ("nan-loss-scale", 1, NAN, "the loss is not a number: Exception: Current loss scale already"),
    ("refused-argparse", 1, INVALID, "the trainer refused the configuration: pretrain_gpt.py: error: un"),
    ("refused-assert", 1, INVALID, "refused the configuration: AssertionError: world size (32)"),
    ("refused-pydantic", 1, INVALID, "pydantic_core._pydantic_core.ValidationError"),
    ("refused-tyro", 2, INVALID, "the trainer refused the configuration: ╭─ Unrecognized options"),
    ("preempted-slurm", 143, PREEMPTED, "the batch system wants its nodes: slurmstepd: error: *** JOB 1234"),
    ("preempted-cancelled", 143, PREEMPTED, "ended from outside: slurmstepd: error: *** JOB 1234"),
    ("preempted-sigterm", 1, PREEMPTED, "ended from outside: torch.distributed.elastic"),
    ("node-lost-slurm", 1, LOST, "a node was lost: srun: error: Node failure on node02"),
    ("node-lost-ecc", 1, LOST, "rank 4 (stage 1): a device is broken: torch.AcceleratorError"),
    ("node-lost-disk-full", 1, LOST, "a disk is full: OSError: [Errno 28] No space left on device"),
    ("node-lost-port-taken", 1, LOST, "a port is taken: torch.distributed.DistNetworkError"),
    ("preempted-unstarted-slurm", 1, PREEMPTED, "ended from outside: srun: error: Unable to create step"),
    ("preempted-step-slurm", 137, PREEMPTED, "ended from outside: srun: Job step aborted: Waiting"),
    ("crash-before-srun-ends-the-rest", 143, CRASH, "rank 5 (stage 1): ended with exit status 7"),
    ("node-lost-launch", 233, LOST, "a node was lost: srun: error: Task launch for StepId=71.5 failed"),
    ("node-lost-step", 1, LOST, "a node was lost: srun: error: Unable to create step for job 71"),
    ("node-lost-under-step", 137, LOST, "a node was lost: srun: error: Node failure on node02"),
    ("time-limit-slurm", 143, Cause.TIMEOUT, "the batch system's time limit: slurmstepd: error: *** JOB"),
    ("launcher-missing-module", 1, MISSING, "is missing: /usr/bin/python3: No module named torchtitan"),
    ("launcher-missing-import", 1, MISSING, "is missing: ModuleNotFoundError: No module named 'tran"),
    ("launcher-missing-command", 127, MISSING, "is missing: run.sh: line 14: exec: torchrun: not found"),
    ("launcher-missing-checkout", 1, MISSING, "is missing: ./train.sh: line 9: MEGATRON_LM: set"),
]  # fmt: skip


def find(name, **ending):
    _, clues = clues_of(FAILURES / f"{name}.log")
    return verdict_of(Case(clues=clues, ending=Ending(**ending), stage_of=lambda rank: rank // 4))


@pytest.mark.parametrize(("log", "status", "cause", "words"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_the_cause_is_found_by_its_evidence(log, status, cause, words):
    found = find(log, status=status)
    assert found.cause is cause
    assert words in found.message


def test_every_golden_failure_is_tested():
    tested = {row[0] for row in GOLDEN}
    golden = {path.stem for path in FAILURES.glob("*.log")}
    assert {name for name in golden if not name.startswith("misleading")} == tested


def test_a_shortfall_is_what_was_asked_less_what_was_free():
    assert find("device-memory-cuda", status=1).short_bytes == (3.5 - 1.25) * GIB


def test_harmless_words_are_no_failure():
    assert find("misleading-words", status=0) is None


def test_harmless_words_do_not_explain_a_crash():
    found = find("misleading-words", status=1)
    assert (found.cause, found.message) == (Cause.CRASH, "ended with exit status 1 after 8 steps")


def test_an_out_of_memory_that_was_caught_does_not_explain_a_later_crash():
    found = find("misleading-caught-oom", status=1)
    assert found.cause is Cause.CRASH
    assert "rank 1 (stage 0): ended with exit status 1: RuntimeError: cuDNN error" in found.message


def test_an_out_of_memory_after_a_caught_one_is_the_cause():
    found = find("misleading-caught-then-real", status=1)
    assert found.cause is Cause.OUT_OF_MEMORY
    assert found.short_bytes == (3.5 - 1.25) * GIB


def test_an_assertion_after_steps_is_a_crash_and_no_refused_configuration():
    assert find("misleading-assert-after-steps", status=1).cause is Cause.CRASH


@pytest.mark.parametrize("status", [-9, 137])
def test_sigkill_without_a_word_is_the_kernel_s_when_memory_runs_out(status):
    found = verdict_of(Case(clues=Clues(), ending=Ending(status=status)))
    assert (found.cause, "SIGKILL" in found.message) == (Cause.OUT_OF_MEMORY, True)


@pytest.mark.parametrize("status", [-15, 143])
def test_sigterm_without_a_word_comes_from_the_batch_system(status):
    assert verdict_of(Case(clues=Clues(), ending=Ending(status=status))).cause is Cause.PREEMPTED


@pytest.mark.parametrize(
    ("by", "cause", "words"),
    [
        (EndedBy.TIME_LIMIT, Cause.TIMEOUT, "the trial did not end within 60 s; it had no step"),
        (EndedBy.STEP_LIMIT, Cause.HANG, "no step ended within 60 s, after no step"),
    ],
)
@pytest.mark.parametrize("status", [-15, -9])
def test_a_signal_of_ours_is_no_cause(by, cause, words, status):
    found = verdict_of(Case(clues=Clues(), ending=Ending(status=status, by=by, limit_s=60)))
    assert (found.cause, found.message) == (cause, words)


def test_what_killed_a_rank_explains_why_the_rest_hangs():
    found = find("device-memory-cuda", status=-9, by=EndedBy.STEP_LIMIT, limit_s=60)
    assert found.cause is Cause.OUT_OF_MEMORY


def test_a_command_that_is_not_there_says_so():
    ending = Ending(by=EndedBy.NOT_STARTED, words="no program 'torchrun'")
    found = verdict_of(Case(clues=Clues(), ending=ending))
    assert (found.cause, found.message) == (Cause.LAUNCHER_MISSING, "no program 'torchrun'")


def test_a_good_end_has_no_cause():
    assert verdict_of(Case(clues=Clues(), ending=Ending(status=0))) is None


def test_a_loss_that_is_no_number_is_counted_while_it_lasts():
    assert read("megatron-lm-nan").n_nan_in_a_row == 8
    assert read("megatron-lm-loss-scaling").n_nan_in_a_row == 0


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_blames_the_plan_or_the_machine_or_nobody(cause):
    assert not (cause.blames_plan and cause.is_machine_fault)


def test_an_unmeasured_plan_counts_for_the_budget_and_a_missing_launcher_does_not():
    assert Cause.UNMEASURED.is_counted
    assert not Cause.LAUNCHER_MISSING.is_counted


def test_only_losses_of_the_machine_are_tried_again():
    assert {cause for cause in Cause if cause.is_machine_fault} == {Cause.LOST_MACHINE, Cause.PREEMPTED}
    nobody = {cause for cause in Cause if not cause.blames_plan and not cause.is_machine_fault}
    assert nobody == {Cause.LAUNCHER_MISSING, Cause.UNMEASURED}
