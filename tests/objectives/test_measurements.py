"""Rows of the measurements file: published ones mapped by hand, and bad ones named with line and reason."""

import csv
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objectives.cost.step import estimate
from objectives.measurements import RunOutcome, read_measurements
from objectives.measurements.tables import MemoryKind, word_tables
from objectives.validation import predict
from search_spaces.cluster_presets import cluster_names, device_names
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plans, Recompute, Schedule
from search_spaces.units import GB, GIB
from search_spaces.workload import Precision

FILE = Path(__file__).parents[2] / "benchmarks" / "data" / "measurements.csv"
SOUND = {
    "id": "mine-1", "outcome": "ok", "n_layers": "16", "hidden": "2048", "ffn_hidden": "8192",
    "n_heads": "32", "vocab": "32000", "gated_mlp": "1", "seq_len": "4096", "accelerator": "H100-80",
    "n_gpus": "8", "dtype": "bf16", "global_batch": "64", "micro_batch": "1", "tp": "2", "pp": "2", "dp": "2",
    "step_time_s": "3.0", "overlap": "{}", "recompute": "none", "schedule": "1f1b", "zero_stage": "0",
    "cluster": "dgx-h100", "extra": '{"attn": "flash2"}',
}  # fmt: skip


@pytest.fixture(scope="module")
def published():
    return read_measurements(FILE)


@pytest.fixture(scope="module")
def runs(published):
    return {run.id: run for run in published.runs}


@pytest.fixture
def read(tmp_path):
    def write_and_read(*changes, **options):
        rows = [SOUND | {"id": f"mine-{i}"} | change for i, change in enumerate(changes, 1)]
        with (tmp_path / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        return read_measurements(tmp_path / "runs.csv", **options)

    return write_and_read


def test_every_row_is_a_run_or_rejected_with_a_reason(published):
    assert published.n_rows == len(published.runs) + len(published.rejected) == 3132
    assert len(published.runs) > 3050
    assert all(row.reason and row.line > 1 for row in published.rejected)


@pytest.mark.parametrize(
    ("run", "plan"),
    [
        ("playbook-0040", "pp=4 dp=2 overlap_dp=true"),
        ("mosaic-0001", "dp=512 micro_batch=8 zero=3 recompute=full overlap_dp=true"),
        (
            "zero-bubble-0001",
            "pp=8 micro_batch=6 schedule=zb-h2 optimizer_sync=post-validation first_layers=2 last_layers=2",
        ),
        ("vtrain-multi-0000", "dp=64 micro_batch=8 recompute=full"),
        (
            "mbridge-0001",
            "pp=2 dp=128 ep=32 vpp=8 zero=1 schedule=interleaved first_layers=32 overlap_dp=true "
            "overlap_pp=true overlap_ep=true deduplicate_ep=true",
        ),
        ("dgxc-0019", "cp=2 dp=4 zero=1 overlap_dp=true"),
    ],
)
def test_a_published_row_has_its_plan(runs, run, plan):
    assert runs[run].plan == type(runs[run].plan).parse(plan)


@pytest.mark.parametrize(
    "run", ["playbook-0001", "mosaic-0001", "zero-bubble-0001", "dgxc-0019", "mbridge-0001"]
)
def test_the_shapes_make_the_published_number_of_parameters(runs, run):
    with FILE.open() as file:
        stated = next(int(row["params_total"]) for row in csv.DictReader(file) if row["id"] == run)
    # Norms and biases are no columns; prediction modules are not in the published figure.
    assert total_parameters(runs[run].job.model) == pytest.approx(stated, rel=0.025)


def test_the_job_of_a_published_row(runs):
    job = runs["mbridge-0001"].job
    assert (job.cluster.device.name, job.cluster.n_devices, job.cluster.tiers[0].size) == ("gb300", 256, 72)
    assert (job.workload.precision, job.workload.tokens_per_step) == (Precision.MXFP8, 4096 * 4096)
    assert (job.model.n_moe_layers, job.model.n_predict_layers) == (58, 1)
    assert job.model.attention.latent.kv_lora_rank == 512


@pytest.mark.parametrize(
    ("run", "bytes_per_s"), [("vtrain-multi-0000", 12.5e9), ("playbook-0001", 50e9), ("mosaic-0001", 50e9)]
)
def test_a_network_is_as_its_words_say(runs, run, bytes_per_s):
    assert runs[run].job.cluster.tiers[-1].bandwidth_bytes_per_s == bytes_per_s


@pytest.mark.parametrize(
    ("accelerator", "device", "cluster"),
    [
        ("H100-96-HBM2e-500W", "h100-96", "grand-teton"), ("A100 SXM4 80GB", "a100-80", "dgx-a100"),
        ("MI355X", "mi355x", "mi355x-pod"), ("PVC-tile", "pvc-tile", "aurora"), ("B300", "b300", "dgx-b300"),
    ],
)  # fmt: skip
def test_a_device_is_known_by_the_words_of_its_sources(read, accelerator, device, cluster):
    job = read({"accelerator": accelerator, "cluster": "", "gpus_per_node": ""}).runs[0].job
    assert (job.cluster.device.name, job.cluster.name) == (device, cluster)


def test_every_device_has_a_machine():
    known = word_tables().accelerators
    assert set(known) == set(device_names())
    assert set(known.values()) <= set(cluster_names())


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("tf32", Precision.TF32), ("float8 (rowwise)", Precision.FP8), ("amp_bf16", Precision.BF16),
        ("fp8_hybrid", Precision.FP8), ("fp8-mx", Precision.MXFP8),
    ],
)  # fmt: skip
def test_a_format_is_known_by_the_words_of_its_sources(read, dtype, precision):
    assert read({"dtype": dtype}).runs[0].job.workload.precision is precision


def test_tf32_keeps_all_that_fp32_keeps_and_multiplies_faster(read):
    tf32, fp32 = (read({"dtype": kind, "step_time_s": "60"}).runs[0] for kind in ("tf32", "fp32"))
    state = tf32.job.workload.training_state
    assert state == fp32.job.workload.training_state != read({}).runs[0].job.workload.training_state
    fast, slow = (estimate(run.job, Plans.of([run.plan])) for run in (tf32, fp32))
    assert fast.step_s[0] < slow.step_s[0] / 2
    assert fast.memory.total_bytes[0] == slow.memory.total_bytes[0]


@pytest.mark.parametrize(
    ("words", "recompute", "every", "modules"),
    [
        ("selective:2", Recompute.FULL, 2, "none"), ("selective:layer4", Recompute.FULL, 4, "none"),
        ("selective:op", Recompute.FULL, 2, "none"), ("selective:attn", Recompute.SELECTIVE, 1, "none"),
        ("selective:core_attn, norm", Recompute.SELECTIVE, 1, "layernorm"),
        ("selective:mlp+norm", Recompute.NONE, 1, "layernorm+mlp"),
    ],
)  # fmt: skip
def test_what_is_recomputed_is_known_by_the_words_of_its_sources(read, words, recompute, every, modules):
    run = read({"recompute": words}).runs[0]
    assert (run.plan.recompute, run.plan.recompute_every) == (recompute, every)
    assert run.plan.recompute_modules == modules
    assert not any("has no word" in note for note in run.notes)


@pytest.mark.parametrize(
    ("trainer", "profile"),
    [
        ("torchtitan (FSDP2 + compile)", "torchtitan"), ("NeMo AutoModel 26.02", "torchtitan"),
        ("NeMo 24.07", "nemo"), ("GPT-NeoX 2.0", "megatron-deepspeed"), ("fms-fsdp (FSDP1)", "fsdp"),
    ],
)  # fmt: skip
def test_a_trainer_is_known_by_its_text(read, trainer, profile):
    assert read({"framework": trainer}).runs[0].job.workload.framework == profile


def test_a_row_says_whether_its_host_waited_for_every_kernel(runs):
    assert runs["bigscience-a100-0001"].job.workload.launch_blocking
    assert not runs["vtrain-multi-0000"].job.workload.launch_blocking


def test_what_a_row_leaves_open_is_noted(runs):
    notes = "; ".join(runs["vtrain-multi-0000"].notes)
    assert "vocabulary not stated" in notes
    assert "attention kernel not stated: not fused" in notes


def test_rows_of_one_job_share_it(runs):
    assert runs["playbook-0001"].job is runs["playbook-0040"].job


def test_a_failed_plan_that_cannot_exist_says_why(published):
    impossible = [run for run in published.runs if run.impossible]
    assert len(impossible) > 50
    assert all(run.outcome is RunOutcome.FAILED for run in impossible)


def test_a_users_own_row_needs_few_columns(read):
    run = read({}).runs[0]
    assert (run.job.cluster.name, run.trusted, run.notes) == ("dgx-h100", True, ())
    assert (run.plan.recompute, run.plan.schedule) == (Recompute.NONE, Schedule.ONE_F_ONE_B)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden": ""}, "hidden is missing"),
        ({"step_time_s": "nan"}, "step_time_s must be finite"),
        ({"step_time_s": "fast"}, "step_time_s must be a number"),
        ({"step_time_s": ""}, "step_time_s must be positive"),
        ({"step_time_s": "0.003"}, "of the peak: a slip of the unit"),
        ({"step_time_s": "300000"}, "more than a day"),
        ({"tokens_per_s_per_gpu": "1000"}, "contradicts step_time_s"),
        ({"peak_mem_gb": "40000"}, "more than the device's"),
        ({"dp": "4"}, "tp x pp x cp x dp must be n_gpus 8"),
        ({"global_batch": "63"}, "global_batch must be a multiple"),
        ({"global_batch": "8", "micro_batch": "16"}, "it counts the sequences of a step on all devices"),
        ({"step_time_s": "3000"}, "times what the cost model expects: is it in milliseconds?"),
        ({"step_time_s": "-3"}, "step_time_s must be finite and not negative; got '-3'"),
        ({"tokens_per_s_per_gpu": str(64 * 4096 / 3.0)}, "are they of all devices?"),
        ({"step_time_s": "900", "tokens_per_s_per_gpu": str(64 * 4096 / 8 / 0.9)}, "step in milliseconds?"),
        ({"step_time_s": "900", "tokens_per_s_per_gpu": str(64 * 4096 / 8 / 54000)}, "step in minutes?"),
        ({"peak_mem_gb": "61e9"}, "more than the device's 85.52 GB: bytes?"),
        ({"peak_mem_gb": "61000"}, "more than the device's 85.52 GB: MB or MiB?"),
        ({"peak_mem_gb": "0.06"}, "less than a byte of each weight"),
        ({"vocab": "0"}, "vocab must be at least 1; got 0"),
        ({"vocab": "", "framework": ""}, "vocab is missing"),
        ({"n_layers": "sixteen"}, "n_layers must be a number; got 'sixteen'"),
        ({"n_layers": "16.5"}, "n_layers must be a whole number; got '16.5'"),
        ({"n_layers": "1,600"}, "n_layers must be a number; got '1,600'"),
        ({"seq_len": "1e30"}, "seq_len must be at most 1,000,000,000,000"),
        ({"dp": "0"}, "dp must be at least 1; got 0"),
        ({"cp": "0"}, "cp must be at least 1; got 0"),
        ({"ep": "2"}, "ep must divide the model's 1 experts; got 2"),
        ({"seq_parallel": "maybe"}, "seq_parallel must be 0 or 1; got 'maybe'"),
        ({"known_complete": "maybe"}, "known_complete must be 0 or 1; got 'maybe'"),
        ({"id": "mine-1"}, "id must differ from row to row, or be empty; got 'mine-1', as in line 2"),
        ({"extra": '{"mtp_layers": "one"}'}, "extra.mtp_layers must be a whole number; got 'one'"),
        ({"extra": "[" * 100_000}, "extra must be a JSON object"),
        ({"mla": "1", "extra": '{"mla": {"kv_lora_rank": -1}}'}, "extra.kv_lora_rank must be a whole number"),
        ({"accelerator": "abacus", "cluster": ""}, "accelerator must be one of"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"schedule": "backwards"}, "schedule must be one of"),
        ({"outcome": "fine"}, "outcome must be one of"),
        ({"extra": "[1]"}, "extra must be a JSON object"),
        ({"pp": "4", "dp": "1", "n_layers": "1"}, "1 layers do not fill 4 stages"),
        ({"n_heads": "7", "n_kv_heads": "3"}, "n_kv_heads must divide n_heads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_named_and_the_rest_is_used(read, change, reason):
    found = read({}, change, {})
    assert len(found.runs) == 2
    assert found.rejected[0].line == 3
    assert reason in found.rejected[0].reason


def test_a_rejected_row_may_be_stated_again(read):
    found = read({"id": "a", "vocab": "0"}, {"id": "a"}, {"id": "a"})
    assert ([run.line for run in found.runs], [row.line for row in found.rejected]) == ([3], [2, 4])


def test_tokens_that_agree_with_the_step_are_no_contradiction(read):
    assert read({"tokens_per_s_per_gpu": str(64 * 4096 / 3.0 / 8)}).runs


def test_one_cluster_may_stand_for_every_row(read):
    found = read({"accelerator": "abacus"}, cluster="aws-p5")
    assert found.runs[0].job.cluster.name == "aws-p5"


def test_a_table_beside_the_file_explains_its_words(read, tmp_path):
    (tmp_path / "clusters.toml").write_text('[[network]]\nmatch = ["our hall"]\nfabric_bytes_per_s = 3e9\n')
    run = read({"cluster": "Our Hall, 2 racks"}).runs[0]
    assert run.job.cluster.tiers[-1].bandwidth_bytes_per_s == 3e9


def test_a_table_with_an_unknown_key_is_an_error(read, tmp_path):
    (tmp_path / "frameworks.toml").write_text('[[framework]]\nmatch = ["x"]\nprofil = "any"\n')
    with pytest.raises(UnknownName, match="profil"):
        read({})


def sheet(*rows, separator=",", end="\n"):
    """A file as text: the header of a sound row, then rows of cells."""
    return "".join(separator.join(cells) + end for cells in [SOUND, *rows])


def plain(**changes):
    """The cells of a sound row, without the ones that hold commas."""
    return list((SOUND | {"overlap": "{}", "extra": ""} | changes).values())


@pytest.mark.parametrize(
    ("text", "must", "way_out"),
    [
        ("a,b\n1,2\n", "must have the columns", ""),
        ("", "must have the columns", ""),
        (sheet(plain(), separator=";"), "must have the columns", "semicolons: save it with commas"),
        (sheet(plain(), separator="\t"), "must have the columns", "separated by tabs"),
        (sheet(plain()).replace("step_time_s", "step_time"), "none named step_time_s", "'step_time' the"),
        (sheet(plain()).replace("id,", "hidden,", 1), "every column once; got two named hidden", ""),
        (sheet(), "must hold at least one row", ""),
        (sheet(plain(id='"' + "x" * 200_000)), "must be a CSV file", "quotation mark that is never closed"),
    ],
    ids=[
        "other columns", "empty", "semicolons", "tabs", "misspelt", "a column twice", "no rows", "open quote"
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_an_error_with_a_way_out(tmp_path, text, must, way_out):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(InvalidSpec, match=re.escape(must)) as caught:
        read_measurements(tmp_path / "runs.csv")
    assert way_out in caught.value.hint


@pytest.mark.parametrize("text", ["caf\xe9".encode("latin-1"), sheet(plain()).encode("utf-16")])
def test_bytes_that_are_not_utf_8_are_an_error_with_a_way_out(tmp_path, text):
    (tmp_path / "runs.csv").write_bytes(text)
    with pytest.raises(InvalidSpec, match="not UTF-8") as caught:
        read_measurements(tmp_path / "runs.csv")
    assert caught.value.hint == "save it as UTF-8"


@pytest.mark.parametrize(
    "text",
    [
        ("\ufeff" + sheet(plain())).encode(),
        sheet(plain(), end="\r\n").encode(),
        sheet(plain(), [""] * len(SOUND), []).encode(),
        sheet(plain()).replace("step_time_s", " step_time_s ").encode(),
    ],
    ids=["byte order mark", "Windows line ends", "empty rows", "spaces around names"],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    (tmp_path / "runs.csv").write_bytes(text)
    found = read_measurements(tmp_path / "runs.csv")
    assert (len(found.runs), found.rejected) == (1, ())
    assert found.runs[0].id == "mine-1"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (plain()[:-1], "as many cells as the header, 24; got 23: is it cut off?"),
        ([*plain(), "6"], "as many cells as the header, 24; got 25: a comma in a text needs quotation marks"),
    ],
    ids=["short", "long"],
)
def test_a_row_of_another_length_is_named(tmp_path, cells, reason):
    (tmp_path / "runs.csv").write_text(sheet(plain(), cells, plain(id="third")))
    found = read_measurements(tmp_path / "runs.csv")
    assert [run.id for run in found.runs] == ["mine-1", "third"]
    assert reason in found.rejected[0].reason


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*SOUND, "moe_ffn_hidden", "n_experts", "ep", "mla", "peak_mem_gb"]), st.sampled_from([
    "", "0", "-1", "nan", "inf", "1e300", "3.7", "99999999999999999999", "x" * 50, "{", "[]", '{"mla": []}',
    '{"attn": {"a": 1}}', "true", "\x00", "\u0663", "1_0", " 8 ", '{"mtp_layers": 1e9}', "none", "full", "7",
]))  # fmt: skip
def test_no_cell_breaks_the_reader_or_the_prediction(read, column, text):
    for prediction in predict(read({}, {column: text}).runs):
        assert 0 < prediction.low_s < prediction.step_s < prediction.high_s < float("inf")


def test_rows_are_read_at_thousands_a_second(tmp_path):
    """A file of a million rows takes a minute or two."""
    n = 5000
    (tmp_path / "runs.csv").write_text(sheet(*(plain(id=str(i)) for i in range(n))))
    start = time.process_time()
    assert len(read_measurements(tmp_path / "runs.csv").runs) == n
    assert time.process_time() - start < n / 2000


@pytest.mark.parametrize(
    ("change", "open_", "undecided"),
    [
        ({}, set(), False),
        ({"recompute": "unknown"}, {"recompute=selective", "recompute=full"}, True),
        ({"recompute": ""}, {"recompute=selective", "recompute=full"}, True),
        ({"recompute_source": "assumed none"}, {"recompute=selective", "recompute=full"}, False),
        ({"overlap": ""}, {"overlap_dp=true"}, True),
        ({"zero_stage": ""}, {"zero=1"}, True),
        ({"overlap": "", "zero_stage": ""}, {"overlap_dp=true", "zero=1", "zero=1 overlap_dp=true"}, True),
    ],
)
def test_what_a_row_leaves_open_is_read_in_every_way(read, change, open_, undecided):
    run = read(change).runs[0]
    words = {plan.key.removeprefix("tp=2 pp=2 dp=2 micro_batch=1 ") for _, plan in run.alternatives}
    assert words == open_
    assert run.undecided is undecided


@pytest.mark.parametrize(("complete", "n"), [("1", 0), ("0", 1), ("", 1)])
def test_an_attention_kernel_that_was_an_option_is_open_in_rows_that_are_not_complete(read, complete, n):
    row = {"extra": "", "framework": "Megatron-DeepSpeed", "known_complete": complete}
    run = read(row).runs[0]
    assert not run.job.workload.flash_attention
    assert [job.workload.flash_attention for job, _ in run.alternatives] == [True] * n


@pytest.mark.parametrize(
    ("framework", "extra", "kind", "peak_bytes"),
    [
        ("nanotron", "{}", MemoryKind.ALLOCATED, 10 * GIB),
        ("Megatron-LM", "{}", MemoryKind.ALLOCATED, 10 * GB),
        ("my own", "{}", MemoryKind.DEVICE, 10 * GB),
        ("my own", '{"mem_kind": "max_memory_reserved"}', MemoryKind.RESERVED, 10 * GB),
        ("nanotron", '{"mem_unit": "GB"}', MemoryKind.ALLOCATED, 10 * GB),
    ],
)
def test_a_memory_figure_is_what_its_trainer_prints_unless_the_row_says(
    read, framework, extra, kind, peak_bytes
):
    (run,) = read({"framework": framework, "extra": extra, "peak_mem_gb": "10"}).runs
    assert (run.memory_kind, run.peak_memory_bytes) == (kind, peak_bytes)


@pytest.mark.parametrize(("framework", "stage"), [("nanotron", "first"), ("Megatron-LM", "fullest")])
def test_a_memory_figure_is_of_the_device_that_its_trainer_prints(read, framework, stage):
    assert read({"framework": framework}).runs[0].memory_stage == stage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"global_batch": "2", "pp": "4", "dp": "1"}, "2 micro-batches do not fill 4 stages"),
        (
            {"n_layers": "17", "pp": "8", "tp": "1", "dp": "1", "vocab": "524288"},
            "balanced by cost, 17 layers and a head leave one of 8 stages empty",
        ),
    ],
)
def test_a_failed_row_says_why_its_trainer_could_not_start(read, change, reason):
    failed = {"outcome": "failed_or_oom", "step_time_s": "", "framework": "nanotron"}
    (run,) = read(failed | change).runs
    assert run.impossible == reason
