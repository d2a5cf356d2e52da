"""Time against energy on GH200: what a cross-layer study of power found, and what the model says of the same.

Its figures were read in a summary; counts, batches and what its plans were are not known, so jobs here are
stand-ins of the same sizes, and only order and rough size are asked for.
"""

from dataclasses import dataclass

from objectives.cost.energy import energy_of, step_energy
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.ranking import rank
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of

NAME, SOURCE = "energy", "arXiv:2605.01938, as summarised by a third party"
STAND_INS = (
    "models of the same size stand in for Qwen2.5 with SigLIP; 4 or 8 devices, 16 sequences for each 4"
)
OUR_MODEL = "the model draws no less than idle power while the host updates, and hosts stay busy as long"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Time and energy of a change over those without it, as published; `model` stands in for the size."""

    size: str
    model: str
    n_devices: int
    time: float
    energy: float


# Minutes 20.8 -> 18.9, 19.6 -> 16.8, 27.6 -> 21.8; energy -12.7, -13.45 and -9.76 %.
ASYNC_OFFLOAD = (
    Case(size="7B", model="qwen3-8b", n_devices=4, time=18.9 / 20.8, energy=1 - 0.127),
    Case(size="32B", model="qwen3-32b", n_devices=4, time=16.8 / 19.6, energy=1 - 0.1345),
    Case(size="72B", model="llama-3-70b", n_devices=8, time=21.8 / 27.6, energy=1 - 0.0976),
)
# Minutes 20.0 -> 6.9; 3,052 -> 2,568 kJ.
SP4 = Case(size="7B", model="qwen3-8b", n_devices=1, time=6.9 / 20.0, energy=2568 / 3052)
ZERO_DEVICES, MOST_DEVICES, SPREAD = (4, 8, 16), 64, 0.06
OFFLOADED = "zero=3 micro_batch=2 recompute=full overlap_dp=true offload_optimizer=true"


def job(model: str, n_devices: int, *, global_batch: int, seq_len: int = 4096) -> Job:
    """A job on so many devices of Alps."""
    return Job(
        model=load_model(model),
        cluster=load_cluster("alps", n_devices),
        workload=Workload(seq_len=seq_len, global_batch=global_batch),
    )


def async_offload(case: Case) -> tuple[float, float]:
    """Time and energy of an offloaded update beside the passes, over those of one that waits."""
    words = [f"dp={case.n_devices} {OFFLOADED} overlap_offload={each}" for each in ("false", "true")]
    plans = Plans.of([Plan.parse(each) for each in words])
    of = job(case.model, case.n_devices, global_batch=4 * case.n_devices)
    priced = estimate(of, plans)
    waits, beside = step_energy(of, plans, priced).total_j.tolist()
    return float(priced.step_s[1] / priced.step_s[0]), beside / waits


def sequence_parallel(case: Case, n_parts: int = 4, seq_len: int = 8192) -> tuple[float, float]:
    """Time and energy of split sequences over those of whole ones on one device: each its fastest plan."""
    found = []
    for parts in (1, n_parts):
        of = job(case.model, case.n_devices * parts, global_batch=4, seq_len=seq_len)
        kind = {"cp_kind": "ulysses"} if parts > 1 else {}
        space = SpaceSpec.of({"tp": 1, "pp": 1, "cp": parts, **kind})
        best = rank(of, space, keep=1).candidates
        joules = step_energy(of, best.plans, best.estimate).total_j
        found.append((float(best.estimate.step_s[0]), float(joules[0])))
    (whole_s, whole_j), (split_s, split_j) = found
    return split_s / whole_s, split_j / whole_j


def zero_energy(n_devices: int) -> list[float]:
    """Joules of a step with each ZeRO stage, eight sequences a device in one micro-batch."""
    of = job("qwen3-8b", n_devices, global_batch=8 * n_devices)
    words = [f"dp={n_devices} zero={zero} micro_batch=8 recompute=full overlap_dp=true" for zero in range(4)]
    joules: list[float] = energy_of(of, Plans.of([Plan.parse(each) for each in words])).total_j.tolist()
    return joules


def best_plans() -> tuple[Plan, Plan]:
    """The fastest plan of the preset study's job, and the one that takes the least energy, without caps."""
    of, space = preset_job(), SpaceSpec.of({"cp": 1, "overlap_dp": True})
    tables = [rank(of, space, metric=name, keep=1).candidates for name in ("step_time", "energy_per_token")]
    fastest, thriftiest = (table.plans.row(0) for table in tables)
    return fastest, thriftiest


def preset_job() -> Job:
    """The job of the preset study `energy`."""
    return job("qwen3-8b", 16, global_batch=128)


ORDER, RATIO = (figure_of(NAME, SOURCE, Provenance.SECOND_HAND, kind) for kind in (Kind.ORDER, Kind.RATIO))


def figures() -> tuple[Figure, ...]:
    """Offload, sequence parallelism, ZeRO stages, and the two best plans."""
    ours = [async_offload(case) for case in ASYNC_OFFLOAD]
    pairs = zip(ASYNC_OFFLOAD, ours, strict=True)
    ratios = [figure for case, (time, energy) in pairs for figure in _ratios(case, time, energy)]
    split = sequence_parallel(SP4)
    lowest = [zero_energy(n) for n in ZERO_DEVICES]
    wide = zero_energy(MOST_DEVICES)
    fastest, thriftiest = best_plans()
    return (
        ORDER(
            "the fastest plan and the one of least energy differ",
            "comparisons",
            1,
            int(fastest != thriftiest),
            is_headline=True,
        ),
        ORDER(
            "async offload is faster and takes less energy",
            "comparisons",
            6,
            sum(each < 1 for pair in ours for each in pair),
        ),
        *ratios,
        ORDER(
            "4-way sequence parallelism is faster and takes less energy",
            "comparisons",
            2,
            sum(each < 1 for each in split),
        ),
        ORDER(
            "ZeRO-1 takes the least energy on 4, 8 and 16 devices",
            "comparisons",
            len(ZERO_DEVICES),
            sum(joules[1] <= min(joules) for joules in lowest),
        ),
        ORDER(
            f"ZeRO stages are within 6 % on {MOST_DEVICES}",
            "comparisons",
            1,
            int(max(wide) / min(wide) - 1 < SPREAD),
        ),
    )


def _ratios(case: Case, time: float, energy: float) -> list[Figure]:
    """Both ratios within 15 %: they are near 1, where 25 % would say nothing."""
    notes = {"time": STAND_INS, "energy": f"{STAND_INS}; {OUR_MODEL}"}
    pairs = {"time": (case.time, time), "energy": (case.energy, energy)}
    return [
        RATIO(f"{case.size}: {name} with async offload", "of without", *pair, within=0.15, note=notes[name])
        for name, pair in pairs.items()
    ]


PAPER = Paper(
    name=NAME,
    title="Time and energy of training on GH200: offload, sequence parallelism, ZeRO stages, power",
    source=SOURCE,
    figures=figures,
    presets=("energy",),
)
