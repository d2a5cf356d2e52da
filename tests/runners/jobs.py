"""Jobs and plans that the runners' tests share."""

from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans, Schedule
from search_spaces.workload import Precision, Workload


def llama_job(n_devices=64, global_batch=256):
    return Job(
        model=load_model("llama-3-8b"),
        cluster=load_cluster("dgx-h100", n_devices),
        workload=Workload(seq_len=8192, global_batch=global_batch),
    )


def tiny_job(n_devices=2, **workload):
    """A model of 70 thousand parameters on this machine's CPUs."""
    model = ModelSpec(
        name="tiny",
        source="made up",
        n_layers=4,
        d_model=32,
        attention=AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=8),
        mlp=MlpSpec(width=48),
        embedding=EmbeddingSpec(vocab_size=64),
    )
    asked = {"seq_len": 32, "global_batch": 8, "precision": Precision.FP32, **workload}
    return Job(model=model, cluster=load_cluster("local", n_devices), workload=Workload(**asked))


FITS = Plan(tp=4, pp=2, dp=8, sequence_parallel=True)
TOO_BIG = Plan(dp=64)
WRONG_WORLD = Plan(tp=3, dp=5)
PLANS = Plans.of(
    [
        FITS,
        TOO_BIG,
        WRONG_WORLD,
        Plan(tp=4, pp=4, dp=4, sequence_parallel=True, schedule=Schedule.ZB_H1),
        Plan(tp=2, pp=4, dp=8, vpp=2, sequence_parallel=True, schedule=Schedule.INTERLEAVED),
        Plan(tp=8, dp=8, sequence_parallel=True, micro_batch=2),
        Plan(tp=4, pp=2, dp=8, sequence_parallel=True, micro_batch=32),
    ]
)

COLUMNS = ("outcome,n_layers,n_gpus,tp,pp,dp,micro_batch,zero_stage,schedule,recompute,accelerator,"
           "step_time_s,peak_mem_gb")  # fmt: skip
ROWS = (
    "ok,32,64,4,2,8,1,0,1f1b,none,H100-80,4.0,50.5",
    "ok,32,64,4,2,8,1,0,1f1b,none,H100-80,5.0,",
    "oom,32,64,1,1,64,1,,none,none,H100-80,,",
    "failed_or_oom,32,64,2,1,32,1,1,none,,H100-80,,",
    "ok,32,64,8,1,8,2,0,none,none,H100-80,6.0,",
    "ok,80,64,8,1,8,1,0,none,none,H100-80,7.0,",
)


def write_recording(folder, rows=ROWS, columns=COLUMNS):
    path = folder / "runs.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return str(path)
