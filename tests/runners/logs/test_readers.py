"""Every trainer's lines, in its own format: steps, figures with their convention, memory, loss, settings."""

import pytest

from runners.logs import READERS, load_reader
from runners.logs.account import Account
from runners.logs.facts import Convention
from runners.logs.figures import Expected
from runners.logs.files import trainer_of as told_trainer
from runners.logs.lines import Line
from runners.logs.summary import summary_of
from search_spaces.errors import UnknownName
from search_spaces.units import GIB, MIB
from tests.runners.logs.reading import LOGS, read, read_text, trainer_of


@pytest.mark.parametrize(
    ("log", "first", "last", "step_s", "spread_s"),
    [
        ("megatron-lm", 3, 12, 2.1008, 0.00154),
        ("megatron-deepspeed", 3, 9, 212.140, 0.068),
        ("deepspeed", 4, 12, 0.49805, 0.0017),
        ("deepspeed-breakdown", 3, 10, 0.3826, 0.001),
        ("deepspeed-pipeline", 3, 10, 0.6265, 0.0024),
        ("torchtitan", 4, 12, 2.302, 0.0017),
        ("nanotron", 3, 12, 1.545, 0.0053),
        ("hf-trainer", 4, 12, 1.254, 0.0035),
        ("composer", 3, 12, 5.1205, 0.00303),
        ("json-lines", 3, 10, 1.26, 0.0083),
    ],
)
def test_step_seconds_are_the_median_after_the_warm_up(log, first, last, step_s, spread_s):
    window = read(log).window
    assert (window.first, window.last) == (first, last)
    assert window.step_s == pytest.approx(step_s, rel=1e-4)
    assert window.spread_s == pytest.approx(spread_s, rel=0.05)  # the golden logs round to their last digit


@pytest.mark.parametrize(
    ("log", "tflops", "convention"),
    [
        ("megatron-lm", 421.15, Convention.MFU),
        ("megatron-deepspeed", 69.2, Convention.HFU),
        ("torchtitan", 412.33, Convention.MFU),
        ("nanotron", 300.0, Convention.MFU),
        ("deepspeed", None, None),
        ("hf-trainer", None, None),
    ],
)
def test_tflops_come_with_what_they_count(log, tflops, convention):
    summary = read(log)
    assert summary.tflops_per_device == (None if tflops is None else pytest.approx(tflops, rel=1e-3))
    assert summary.convention is convention


@pytest.mark.parametrize(
    ("log", "peak_bytes", "kind"),
    [
        ("megatron-lm", 64810 * MIB, "reserved"),
        ("megatron-deepspeed", 36120 * MIB, "reserved"),
        ("deepspeed", 11.87 * GIB, "allocated"),
        ("torchtitan", 61.25 * GIB, "reserved"),
        ("nanotron", 45678 * MIB, "reserved"),
        ("json-lines", 41.5e9, "reserved"),
        ("hf-trainer", None, ""),
        ("composer", 59.2e9, "reserved"),
    ],
)
def test_memory_is_the_fullest_rank_s_peak(log, peak_bytes, kind):
    summary = read(log)
    assert (summary.peak_memory_bytes, summary.memory_kind) == (peak_bytes, kind)


@pytest.mark.parametrize(
    ("log", "tokens_per_s"),
    [
        ("megatron-lm", 64 * 8192 / 2.1008),
        ("megatron-deepspeed", 1280 * 2048 / 212.14),
        ("torchtitan", 16 * 8192 / 2.302),
        ("nanotron", 170_000),  # printed with three digits
        ("composer", 256 * 8192 / 5.12),
        ("json-lines", 64 * 4096 / 1.26),
    ],
)
def test_tokens_are_of_all_devices(log, tokens_per_s):
    assert read(log).tokens_per_s == pytest.approx(tokens_per_s, rel=1e-3)


@pytest.mark.parametrize(
    ("log", "first", "last"),
    [
        ("megatron-lm", 10.85, 10.3),
        ("torchtitan", 12.25, 11.05),
        ("nanotron", 10.9, 8.7),
        ("hf-trainer", 9.8, 8.7),
        ("deepspeed-pipeline", 9.0, 8.1),
        ("composer", 12.0, 10.9),
    ],
)
def test_loss_is_read(log, first, last):
    summary = read(log)
    assert (summary.first_loss, summary.last_loss) == (first, last)


@pytest.mark.parametrize(
    ("log", "settings"),
    [
        (
            "megatron-lm",
            {
                "devices": 64,
                "tp": 4,
                "pp": 2,
                "dp": 8,
                "global_batch": 64,
                "micro_batch": 1,
                "seq_len": 8192,
            },
        ),
        ("deepspeed", {"accumulation": 2, "global_batch": 32, "micro_batch": 4}),
        ("torchtitan", {"global_batch": 16, "seq_len": 8192}),
        ("composer", {"global_batch": 256, "seq_len": 8192, "micro_batch": 2}),
    ],
)
def test_what_really_ran_is_read(log, settings):
    assert read(log).settings == settings


@pytest.mark.parametrize(
    "log",
    [
        "megatron-lm", "megatron-deepspeed", "deepspeed", "deepspeed-breakdown", "deepspeed-pipeline",
        "torchtitan",
        "nanotron", "composer", "hf-trainer", "hf-trainer-bars", "json-lines", "megatron-lm-interleaved",
    ],
)  # fmt: skip
def test_a_good_log_is_not_refused(log):
    assert read(log).refused == ()


@pytest.mark.parametrize("name", READERS)
def test_every_reader_has_a_golden_log_and_its_own_name(name):
    assert load_reader(name).name == name
    assert any(trainer_of(path) == name for path in LOGS.glob("*.log"))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_finds_no_step_in_another_trainer_s_log(name):
    others = [path for path in LOGS.glob("*.log") if trainer_of(path).split("-")[0] != name.split("-")[0]]
    reader = load_reader(name)
    assert others
    for path in others:
        facts = [fact for line in path.read_text().splitlines() for fact in reader.read(line)]
        assert [fact for fact in facts if type(fact).__name__ == "StepFact"] == [], path.name


def test_an_unknown_trainer_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'torchtitan'"):
        load_reader("torch-titan")


def test_ranks_that_write_at_once_are_read_like_one():
    quiet, noisy = read("megatron-lm"), read("megatron-lm-interleaved")
    assert noisy.window == quiet.window
    assert noisy.tflops_per_device == quiet.tflops_per_device
    assert noisy.peak_memory_bytes == quiet.peak_memory_bytes


def test_the_slowest_of_several_ranks_counts():
    text = "".join(
        f"[rank{rank}]: " + f'{{"step": {step}, "step_s": {1 + rank}}}\n'
        for step in range(1, 11)
        for rank in (0, 1)
    )
    window = read_text("json-lines", text).window
    assert (window.step_s, window.n_lines) == (2.0, 8)


def test_a_spike_is_named_and_does_not_move_the_median():
    summary = read("megatron-lm")
    assert summary.window.spikes == (9,)
    assert "spikes at steps 9" in summary.notes


def test_older_samples_per_second_of_deepspeed_are_read():
    line = "[INFO] [Rank 0] epoch=0/micro_step={0}/global_step={0}, SamplesPerSec=4.0\n"
    text = "".join(line.format(i) for i in range(3, 12))
    assert read_text("deepspeed", text, global_batch=8).window.step_s == 2.0


def test_nanotron_s_hardware_tflops_are_hardware_flops():
    line = "iteration: {} / 9 | elapsed_time_per_iteration_ms: 1.54K | hardware_tflops_per_gpu: 390\n"
    summary = read_text("nanotron", "".join(line.format(i) for i in range(1, 10)))
    assert (summary.window.step_s, summary.tflops_per_device) == (1.54, 390)
    assert summary.convention is Convention.HFU


def test_composer_s_evaluation_ends_a_stretch_and_its_figures_are_no_steps():
    block = "[batch={0}/40]:\n\t Train loss/train/total: nan\n\t Train throughput/samples_per_sec: 32.0000\n"
    evaluation = "[Eval batch=1/9] Eval on eval data:\n\t Eval metrics/eval/LanguageCrossEntropy: 9.0000\n"
    text = "".join(block.format(i) for i in range(2, 9)) + evaluation
    text += "".join(block.format(i) for i in range(9, 30))
    summary = read_text("composer", text, global_batch=64)
    assert (summary.window.first, summary.window.last, summary.window.step_s) == (12, 29, 2.0)
    assert (summary.n_steps, summary.n_nan_in_a_row) == (28, 28)


def test_a_log_read_as_it_is_written_needs_no_clock_of_its_own():
    account = Account(load_reader("hf-trainer"))
    for i in range(1, 11):
        bar = f" {i}%|x  | {i}/99 [00:00<00:01,  9.00it/s]"
        account.feed(Line(bar), at_s=100 + 0.25 * i)
        account.feed(Line(f"{{'loss': '{9 - i}', 'epoch': '0.1'}}"), at_s=100 + 0.25 * i)
    summary = summary_of(account, Expected())
    assert summary.window.step_s == pytest.approx(0.25)
    assert (summary.window.first, summary.window.last) == (4, 10)


def test_a_second_run_in_the_same_log_replaces_the_first():
    steps = [*((i, 9.0) for i in range(1, 12)), *((i, 2.0) for i in range(1, 9))]
    text = "".join(f'{{"step": {i}, "step_s": {s}}}\n' for i, s in steps)
    summary = read_text("json-lines", text)
    assert summary.window.step_s == 2.0
    assert "the run began again 1 times; the last run counts" in summary.notes


def test_energy_is_the_median_of_what_megatron_lm_logs_of_its_devices():
    text = (LOGS / "megatron-lm.log").read_text()
    steps = [
        f"energy per GPU (J/iter/GPU): {1500 + i} | power per GPU (W/GPU): 640.1 | learning rate"
        for i in range(40)
    ]
    pieces = text.split("learning rate")
    told = "".join(f"{piece}{steps[i]}" for i, piece in enumerate(pieces[:-1])) + pieces[-1]
    said = read_text("megatron-lm", told)
    first, last = said.window.first, said.window.last
    assert said.energy_j_per_device == pytest.approx(1500 + (first + last) / 2 - 1)
    assert read("megatron-lm").energy_j_per_device is None


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_a_log_tells_whose_it_is(path):
    assert told_trainer(path) == trainer_of(path)
