"""Pairs of what the built-in trainer can do: a case for each pair that a plan of up to four ranks may have.

Run as a script it prints the cases of PAIRS anew: greedily, each time the plan that has the most new pairs.
"""

import itertools
from dataclasses import replace

from objectives.metrics import Job
from objectives.outcome import OutcomeOrigin
from runners.torch_trial.supported import refusals
from runners.verdicts import why_illegal
from search_spaces.cluster_presets import load_cluster
from search_spaces.plan import Plan
from tests.runners.torch_cases import BF16, FAST, HSDP, MODELS, SLOW, TORCH_CLASSES, Case, work_for

WRITTEN = (*FAST, *SLOW, *TORCH_CLASSES, *HSDP, *BF16)
DATA = ("", "dp=2", "dp=2 overlap_dp=true", *(f"dp=2 zero={zero}" for zero in (1, 2, 3)))
TENSOR = ("", "tp=2", "tp=2 sequence_parallel=true")
CONTEXT = ("", "cp=2", "cp=2 cp_kind=ulysses", "cp=2 cp_kind=all-gather")
PIPELINE = (
    "",
    *(f"pp=2 schedule={name}" for name in ("gpipe", "1f1b", "zb-h1", "zb-h2", "message-driven")),
    *(f"pp=2 vpp=2 schedule={name}" for name in ("interleaved", "zb-v", "v-half", "v-min", "dualpipe-v")),
)
EXPERTS = ("", "ep=2", "etp=2", "ep=2 etp=2")
AGAIN = (
    "",
    "recompute=selective",
    "recompute=full",
    "recompute_modules=layernorm+mlp",
    "recompute_modules=moe",
)
ACCUMULATED = ("", "micro_batch=2")


def features(case):
    """What a case exercises."""
    plan = case.parsed
    copies = plan.dp * plan.cp > 1
    return {
        f"model {case.model}",
        case.precision,
        f"micro-batch {plan.micro_batch}",
        f"recompute {plan.recompute}",
        f"recompute modules {plan.recompute_modules}",
        *([f"zero {plan.zero}{' overlapped' if plan.overlap_dp else ''}"] if copies else []),
        *(["dp"] if plan.dp > 1 else []),
        *([f"tp {'split' if plan.sequence_parallel else 'whole'}"] if plan.tp > 1 else []),
        *([f"cp {plan.cp_kind}"] if plan.cp > 1 else []),
        *([f"pp {plan.schedule}"] if plan.pp > 1 else []),
        *(["ep"] if plan.ep > 1 else []),
        *(["etp"] if plan.etp > 1 else []),
    }


def pairs(case):
    return set(itertools.combinations(sorted(features(case)), 2))


def is_run(case):
    """Whether the plan is legal and the trainer runs it."""
    plan, model = case.parsed, MODELS[case.model]
    workload = replace(work_for(case), framework="meshtune")
    cluster = load_cluster("local", 8).with_devices(plan.world_size)
    job = Job(model=model, cluster=cluster, workload=workload)
    legal = why_illegal(job, plan, OutcomeOrigin.MEASURED) is None
    return legal and not list(refusals(model, workload, plan))


def possible():
    """Every case of up to four ranks that the trainer runs."""
    choices = itertools.product(DATA, TENSOR, CONTEXT, PIPELINE, EXPERTS, AGAIN, ACCUMULATED)
    for words in choices:
        plan = " ".join(" ".join(words).split())
        if not plan or Plan.parse(plan).world_size not in (2, 4):
            continue
        for model in ("llama", "gpt", "moe"):
            for precision in ("fp32", "bf16"):
                case = Case(model, plan, precision=precision)
                if (model == "moe" or ("ep=" not in plan and "etp=" not in plan)) and is_run(case):
                    yield case


def missing(cases):
    """Pairs that some possible case has and none of these."""
    covered = set().union(*(pairs(case) for case in cases))
    return set().union(*(pairs(case) for case in possible())) - covered


def chosen():
    """Cases that have all pairs that the written ones lack."""
    covered = set().union(*(pairs(case) for case in WRITTEN))
    pool = {case: new for case in possible() if (new := pairs(case) - covered)}
    while pool:
        best = max(pool, key=lambda case: (len(pool[case]), case.name))
        yield best
        found = pool[best]
        pool = {case: rest for case, new in pool.items() if (rest := new - found)}


def main():
    for case in chosen():
        print(f"    {case.model}{'' if case.precision == 'fp32' else ' ' + case.precision}: {case.plan}")


if __name__ == "__main__":
    main()
