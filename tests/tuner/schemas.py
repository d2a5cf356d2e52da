"""JSON schemas of the documents that `--json` prints."""

import dataclasses

from search_spaces.plan import Plan

NUMBER, COUNT, TEXT = {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": "string"}
FINITE = {"type": "number", "minimum": 0}
PARTS = {"type": "object", "additionalProperties": FINITE, "minProperties": 5}


def record(optional=(), **fields):
    """An object with exactly these keys."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def many(item, fewest=0):
    return {"type": "array", "items": item, "minItems": fewest}


def maybe(schema):
    return {"anyOf": [schema, {"type": "null"}]}


def document(kind, optional=(), **fields):
    return record(optional, schema={"const": f"meshtune.{kind}"}, version={"const": 1}, **fields)


PLAN = record(
    **{field.name: {"type": ["integer", "boolean", "string"]} for field in dataclasses.fields(Plan)}
)
JOB = record(
    model=TEXT, cluster=TEXT, devices=COUNT, global_batch=COUNT, seq_len=COUNT, precision=TEXT, framework=TEXT
)
LEDGER = record(
    enumerated=COUNT,
    removed={"type": "object", "additionalProperties": COUNT},
    too_large=COUNT,
    priced=COUNT,
    feasible=COUNT,
)
PRICED = dict(
    plan=PLAN,
    step_time_s=FINITE,
    interval_s={"type": "array", "items": FINITE, "minItems": 2, "maxItems": 2},
    tokens_per_s_per_device=FINITE,
    mfu={"type": "number", "minimum": 0, "maximum": 1},
    peak_memory_bytes=FINITE,
    time_s=PARTS,
    memory_bytes=PARTS,
    energy_j=PARTS,
)
AGAIN = maybe(record(step_time_s=FINITE, difference=NUMBER, reasons=many(TEXT)))
SECOND = maybe(record(close=COUNT, simulated=COUNT, budget_s=FINITE, load_s=FINITE, seconds=FINITE))
RANK = document(
    "rank",
    job=JOB,
    origin={"const": "analytic"},
    plans=LEDGER,
    second_opinion=SECOND,
    best=many(record(("max_seq_len",), **PRICED, simulated=AGAIN, max_seq_len=COUNT), 1),
)
STAGE = record(
    layers=COUNT, forward_s=FINITE, backward_s=FINITE, memory_bytes=PARTS, peak_memory_bytes=FINITE
)
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
RESTS_ON = many(record(constant=TEXT, origin=TEXT, elasticity=NUMBER))
PART = dict(part=TEXT, share=SHARE, formula=TEXT, here=TEXT, source=TEXT, rests_on=RESTS_ON)
EXPLANATION = record(
    time=many(record(seconds=FINITE, **PART), 1),
    memory=many(record(bytes=FINITE, **PART), 1),
    constants=many(
        record(
            name=TEXT,
            value=FINITE,
            origin={"enum": ["measured", "fitted", "datasheet", "assumed"]},
            spread=FINITE,
            source=TEXT,
            elasticity=NUMBER,
            variance=FINITE,
        ),
        1,
    ),
)
FORETOLD = record(
    step_time_s=FINITE, interval_s=many(FINITE, 2), calibrated_s=FINITE, trust=SHARE, n_runs=COUNT,
    most_devices=COUNT, coverage=SHARE,
)  # fmt: skip
ESTIMATE = document(
    "estimate",
    optional=("explanation", "foretold"),
    foretold=FORETOLD,
    job=JOB,
    origin={"const": "analytic"},
    **PRICED,
    memory_limit_bytes=FINITE,
    fits={"type": "boolean"},
    peak_memory_interval_bytes=many(FINITE, 2),
    peak_stage=COUNT,
    stages=many(STAGE, 1),
    uncertainty=record(measured=SHARE, fitted=SHARE, datasheet=SHARE, assumed=SHARE, formulas=SHARE),
    explanation=EXPLANATION,
)
DETAIL = {"enum": ["passes", "pieces"]}
RANK_OF_STEP = record(
    time_s=PARTS,
    exposed_s=record(tp=FINITE, cp=FINITE, ep=FINITE, dp=FINITE, pp=FINITE),
    peak_memory_bytes=FINITE,
    peak_at_s=FINITE,
    memory_bytes=PARTS,
    held_micro_batches=many(COUNT),
)
SIMULATE = document(
    "simulate",
    job=JOB,
    origin={"const": "simulated"},
    plan=PLAN,
    detail=DETAIL,
    step_time_s=FINITE,
    closed_form=record(step_time_s=FINITE, peak_memory_bytes=FINITE, time_s=PARTS, memory_bytes=PARTS),
    difference=NUMBER,
    reasons=many(TEXT),
    bubble=record(makespan_s=FINITE, makespan_share=SHARE, span_s=FINITE, span_share=SHARE),
    seeds=record(n=COUNT, step_time_s=record(p05=FINITE, p50=FINITE, p95=FINITE)),
    peak_memory_bytes=FINITE,
    memory_limit_bytes=FINITE,
    fits={"type": "boolean"},
    peak_rank=COUNT,
    hang=maybe(TEXT),
    ranks=many(RANK_OF_STEP, 1),
)
ORIGIN = {"enum": ["analytic", "simulated", "measured"]}
MEASURED = record(origin=ORIGIN, step_time_s=FINITE, step_spread_s=FINITE, peak_memory_bytes=FINITE)
FAILED = record(origin=ORIGIN, cause=TEXT, message=TEXT, short_bytes=FINITE, log_tail=TEXT)
VALUES = {"type": "object", "additionalProperties": NUMBER}
TRIAL = record(
    number=COUNT,
    state={"enum": ["running", "measured", "proxy", "failed", "lost", "withdrawn"]},
    plan=maybe(PLAN),
    predicted=maybe(
        record(
            step_time_s=FINITE,
            peak_memory_bytes=FINITE,
            origin={"enum": ["analytic", "simulated", "corrected"]},
        )
    ),
    outcome=maybe({"anyOf": [MEASURED, FAILED]}),
    values=VALUES,
    attempt=COUNT,
    duration_s=maybe(FINITE),
    fidelity={"enum": ["few-layers", "few-devices", "full"]},
    proxy=maybe(record(plan=PLAN, differs={"type": "object", "additionalProperties": many(COUNT, 2)})),
    device_s=maybe(FINITE),
)
HEAD = dict(
    name=TEXT,
    job=JOB,
    objective=many(TEXT, 1),
    runner=TEXT,
    sampler=TEXT,
    budget_trials=maybe(COUNT),
    counts={"type": "object", "additionalProperties": COUNT},
    waiting=COUNT,
    best=maybe(TRIAL),
    worth=maybe(
        record(better_by=FINITE, probability=FINITE, expected_gain=FINITE, n_trials=COUNT, n_untried=COUNT)
    ),
)
BODY = dict(
    **HEAD,
    pareto_front=many(COUNT),
    trials=many(TRIAL),
    created_with={"type": "object", "additionalProperties": TEXT},
)
STUDY = document("study", **BODY)
STOPS = ["trials", "hours", "device_hours", "exhausted", "settled", "interrupted"]
TUNE = document("tune", stop={"enum": STOPS}, plans=LEDGER, **BODY)
STUDIES = document("studies", studies=many(record(**HEAD)))
EXPORT = document("export", launcher=TEXT, plan=TEXT, files=many(TEXT, 1))
SPEC = {"type": "object"}
MODELS = document(
    "models",
    models=many(
        record(
            name=TEXT,
            source={"type": "string", "minLength": 8},
            total_parameters=COUNT,
            active_parameters=COUNT,
            parameters_without_embeddings=COUNT,
            spec=SPEC,
        ),
        1,
    ),
)
CLUSTERS = document(
    "clusters", clusters=many(record(name=TEXT, source={"type": "string", "minLength": 8}, spec=SPEC), 1)
)
LAUNCHERS = document("launchers", launchers=many(record(name=TEXT, title=TEXT, source=TEXT), 1))
WINDOW = record(
    first=COUNT,
    last=COUNT,
    n_steps=COUNT,
    n_lines=COUNT,
    step_s=FINITE,
    spread_s=FINITE,
    spikes=many(COUNT),
)
LOG = document(
    "read-log",
    trainer=TEXT,
    n_lines=COUNT,
    n_steps=COUNT,
    last_step=COUNT,
    window=maybe(WINDOW),
    tokens_per_s=maybe(FINITE),
    tokens_per_s_per_device=maybe(FINITE),
    tflops_per_device=maybe(FINITE),
    convention=maybe({"enum": ["MFU", "HFU"]}),
    peak_memory_bytes=maybe(FINITE),
    memory_kind=TEXT,
    energy_j_per_device=maybe(FINITE),
    first_loss=maybe(NUMBER),
    last_loss=maybe(NUMBER),
    n_skipped=COUNT,
    n_nan_in_a_row=COUNT,
    settings={"type": "object", "additionalProperties": COUNT},
    notes=many(TEXT),
    refused=many(TEXT),
    failure=maybe(record(cause=TEXT, message=TEXT, short_bytes=FINITE)),
)
SIGNED = {"type": "number"}
SHARES = {"type": "object", "additionalProperties": SIGNED}
CORRECTION = record(part=TEXT, factor=FINITE, spread=FINITE, settled=FINITE, share=FINITE)
KNOWN = dict(value=FINITE, origin=TEXT, spread=FINITE, source={"type": "string"})
CHANGE = dict(
    plan=maybe(PLAN), change=maybe(SIGNED), spread=maybe(FINITE), fits=maybe(FINITE), trial=maybe(COUNT)
)
EXPLAIN = document(
    "explain",
    name=TEXT,
    objective=many(TEXT, 1),
    quantity={"enum": ["time", "memory"]},
    measured=COUNT,
    failed=COUNT,
    missing=maybe(TEXT),
    best=maybe(record(trial=COUNT, plan=PLAN)),
    worth=HEAD["worth"],
    importance=many(record(evaluator=TEXT, shares=SHARES, skipped=maybe(TEXT))),
    shap=record(mean_absolute=SHARES, of_best=SHARES, method={"enum": ["exact", "sampled"]}),
    corrections={"type": "object", "additionalProperties": many(CORRECTION)},
    known_constants={"type": "object", "additionalProperties": record(**KNOWN)},
    one_step=many(record(knob=TEXT, value=TEXT, moved=many(TEXT), not_legal=maybe(TEXT), **CHANGE)),
    rivals=many(record(overtakes=FINITE, **CHANGE)),
    turning_constants=many(
        record(constant=TEXT, factor=FINITE, within_spread={"type": "boolean"}, plan=PLAN, **KNOWN)
    ),
)
