"""Logs that would lie are refused, each for its own reason."""

import pytest

from runners.logs import load_reader
from search_spaces.units import TFLOPS
from tests.runners.logs.reading import read, read_text

MI250X_PEAK = 191.5 * TFLOPS


def refused(log, **expected):
    return "\n".join(read(log, **expected).refused)


def test_the_published_trap_is_refused_for_all_of_its_reasons():
    words = refused("megatron-deepspeed-traps", peak_flops_per_s=MI250X_PEAK)
    assert "micro_batch must be one number everywhere in the log; got 1 (launcher) and 4 (engine)" in words
    assert "loss scaling skipped steps; validation ran between the steps (steps 1, 2, 3, 4, 5 of 5)" in words
    assert "HFU must be below 75% of the device's peak of 191.5 TFLOP/s; got 78% (149.3 TFLOP/s)" in words


def test_the_same_run_without_its_traps_is_believed():
    assert refused("megatron-deepspeed", peak_flops_per_s=MI250X_PEAK, n_devices=128, global_batch=1280) == ""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("megatron-lm-validation", "got validation ran between the steps (steps 5 of 8)"),
        ("megatron-lm-checkpoint", "got checkpoints were saved between the steps (steps 4 of 8)"),
        ("megatron-lm-few-steps", "got too few steps: 4 in 4 lines"),
    ],
)
def test_a_window_that_holds_something_else_is_refused(log, words):
    assert words in refused(log)


def test_the_search_of_the_loss_scale_is_left_out_if_enough_real_steps_follow():
    summary = read("megatron-lm-loss-scaling")
    assert (summary.window.first, summary.window.last, summary.refused) == (8, 14, ())
    assert "5 steps skipped by loss scaling, outside the window" in summary.notes


def test_steps_that_loss_scaling_skips_all_the_time_are_refused():
    line = '{{"step": {}, "step_s": 1.0, "n_skipped": {}}}\n'
    text = "".join(line.format(i, int(i % 3 == 0)) for i in range(1, 20))
    (words,) = read_text("json-lines", text).refused
    assert "got loss scaling skipped steps (steps 3, 6, 9, 12, 15, 18 of 19)" in words


def test_overflows_that_only_the_engine_tells_are_seen():
    overflow = "[INFO] [loss_scaler.py:190] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted\n"
    step = (
        "[Rank 0] time (ms) | fwd: 10.00 | bwd: 20.00 | bwd_inner: 20.00 | bwd_allreduce: 0.00 | step: 5.00\n"
    )
    (words,) = read_text("deepspeed", (overflow + step) * 9).refused
    assert "got loss scaling skipped steps" in words


@pytest.mark.parametrize(("name", "value"), [("global_batch", 128), ("micro_batch", 2), ("seq_len", 4096)])
def test_a_batch_that_is_not_the_plan_s_is_refused(name, value):
    assert f"the run's {name} must be the plan's, {value}; got" in refused("megatron-lm", **{name: value})


@pytest.mark.parametrize(("name", "ran"), [("devices", 64), ("tp", 4), ("pp", 2)])
def test_a_run_on_other_devices_or_degrees_than_the_plan_s_is_refused(name, ran):
    asked = f"n_{name}" if name == "devices" else name
    words = refused("megatron-lm", **{asked: 8})
    assert f"the run's {name} must be the plan's, 8; got {ran} (launcher)" in words
    assert refused("megatron-lm", **{asked: ran}) == ""
    argument = {"devices": "world_size", "tp": "tensor_model_parallel_size"}.get(
        name, "pipeline_model_parallel_size"
    )
    (claim,) = load_reader("megatron-deepspeed").read(f"  {argument} ".ljust(48, ".") + f" {ran}")
    assert (claim.name, claim.value) == (name, ran)


def test_work_that_is_not_the_job_s_is_refused():
    # 421 TFLOP/s x 2.1 s x 64 devices are 5.7e16 FLOPs; the job of four times fewer sequences has a quarter.
    words = refused("megatron-lm", n_devices=64, model_flops_per_step=1.4e16)
    assert "the log's work of a step must be the job's" in words
    assert "4 times as much" in words
    assert refused("megatron-lm", n_devices=64, model_flops_per_step=5.0e16) == ""


def test_tokens_that_are_not_the_job_s_are_refused():
    words = refused("nanotron", global_batch=128, seq_len=4096)
    assert "the log's tokens of a step must be the job's, 524288; got 2.6" in words


def test_a_log_without_steps_is_refused():
    assert (
        "must have step lines of json-lines; got none in 1 lines"
        in read_text("json-lines", "hello\n").refused[0]
    )


def test_steps_without_seconds_are_refused_with_what_is_missing():
    lines = "".join(f"epoch=0/micro_step={i}/global_step={i}, CurrSamplesPerSec=4.0\n" for i in range(3, 12))
    (words,) = read_text("deepspeed", lines).refused
    assert "must tell the seconds of a step; got 9 step lines without" in words
    assert "name the global batch" in words


def test_a_progress_bar_that_was_not_watched_for_long_is_refused():
    bars = "\r".join(f" {i}%|x  | {i}/99 [00:{i:02d}<01:00,  1.00s/it]" for i in range(1, 30)) + "\n"
    assert "too few steps" in read_text("hf-trainer", bars).refused[0]
