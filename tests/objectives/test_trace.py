"""The trace of a timeline: valid by the Trace Event Format, in order, and all that ran is in it."""

import io
import json
from itertools import pairwise

import jsonschema
import numpy as np
import pytest

from objectives.simulator.memory import rank_memory
from objectives.simulator.schedules import program
from objectives.simulator.step import StepOptions, simulate_step
from objectives.simulator.timeline import PassTimes, simulate
from objectives.simulator.trace import step_spans, write_trace
from search_spaces.plan import Plan
from tests.objectives.jobs import job_of
from tests.objectives.spans import pass_spans

CASES = [("gpipe", 4, 8, 1), ("1f1b", 4, 8, 1), ("interleaved", 4, 8, 2), ("zb-h1", 4, 8, 1),
         ("zb-v", 4, 8, 2), ("dualpipe", 8, 20, 2)]  # fmt: skip
SECONDS = {"type": "number", "minimum": 0}
WORD = {"type": "string", "minLength": 1}
ID = {"type": "integer", "minimum": 0}


def event(phase, *, arguments, **fields):
    properties = dict(ph={"const": phase}, name=WORD, pid=ID, tid=ID, args=arguments, **fields)
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


VALUES = {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1}
NAMED = {"enum": ["process_name", "thread_name", "process_sort_index", "thread_sort_index"]}
# Trace Event Format: "JSON Object Format", and the phases X (complete), C (counter) and M (metadata).
TRACE = {
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "minItems": 1,
            "items": {
                "oneOf": [
                    event("X", ts=SECONDS, dur={"type": "number", "exclusiveMinimum": 0}, cat=WORD,
                          arguments={"type": "object", "required": ["kind"]}),
                    event("C", ts=SECONDS, arguments=VALUES),
                    event("M", arguments={"type": "object", "minProperties": 1, "maxProperties": 1})
                    | {"not": {"properties": {"name": {"not": NAMED}}}},
                ]
            },
        },
    },
    "required": ["traceEvents"],
    "additionalProperties": False,
}  # fmt: skip


def timeline(schedule, p, m, v):
    passes = program(schedule, p, m, v)
    each = np.full((passes.n_ranks, passes.n_chunks), 0.01 / passes.n_chunks)
    times = PassTimes(
        forward_s=each, backward_input_s=1.2 * each, backward_weight_s=0.8 * each, send_s=np.full(p, 1e-4)
    )
    return simulate(passes, times)


def trace(spans, **more):
    file = io.StringIO()
    write_trace(file, spans, **more)
    return json.loads(file.getvalue())


def complete(document):
    return [each for each in document["traceEvents"] if each["ph"] == "X"]


def threads(document):
    found = {}
    for each in complete(document):
        found.setdefault((each["pid"], each["tid"]), []).append(each)
    return found


def some_step(**options):
    job = job_of("llama-3-8b", "dgx-h100", 16, global_batch=64)
    plan = Plan(
        tp=2, pp=4, dp=2, micro_batch=1, zero=1, sequence_parallel=True, overlap_dp=True, overlap_tp=True
    )
    return simulate_step(job, plan, StepOptions(**options))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_schedule_s_trace_is_valid(case):
    ran = timeline(*case)
    memory = rank_memory(ran, np.full(ran.program.stage.shape, 2.0**30))
    jsonschema.validate(trace(pass_spans(ran), memory=memory, about={"plan": "x"}), TRACE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_pass_is_in_the_trace_once_and_spans_of_a_thread_do_not_overlap(case):
    ran = timeline(*case)
    document = trace(pass_spans(ran))
    assert len(complete(document)) == len(ran.program)
    assert set(threads(document)) == {(rank, 0) for rank in range(ran.program.n_ranks)}
    for (rank, _), spans in threads(document).items():
        starts = [each["ts"] for each in spans]
        ends = [each["ts"] + each["dur"] for each in spans]
        assert all(start < later for start, later in pairwise(starts))
        # Microseconds with three decimals: their sums may be off in the last bit.
        assert all(end <= start + 1e-6 for end, start in zip(ends, starts[1:], strict=False))
        assert sum(each["dur"] for each in spans) == pytest.approx(1e6 * ran.busy_s[rank])


def test_names_and_arguments_say_which_pass_it_is():
    first = complete(trace(pass_spans(timeline("1f1b", 4, 8, 1))))[0]
    assert (first["name"], first["pid"]) == ("F 0", 0)
    assert first["args"] == {"kind": "F", "microbatch": 0, "chunk": 0, "stage": 0}
    names = {each["name"] for each in complete(trace(pass_spans(timeline("dualpipe", 8, 20, 2))))}
    assert {"F 0", "Bi 0", "W 0", "F 14 & B 0"} <= names


def test_processes_and_threads_are_named():
    events = trace(step_spans(some_step()))["traceEvents"]
    named = {
        (e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"].endswith("_name")
    }
    assert named["process_name", 3, 0] == "pipeline rank 3"
    assert named["thread_name", 0, 0] == "compute"
    assert {"messages down", "messages up", "dp communication"} <= set(named.values())


def test_the_trace_of_a_step_in_pieces_is_valid_and_in_order():
    step = some_step()
    document = trace(step_spans(step), memory=step.memory)
    jsonschema.validate(document, TRACE)
    assert max(each["ts"] + each["dur"] for each in complete(document)) == pytest.approx(
        1e6 * step.makespan_s
    )
    for spans in threads(document).values():
        ends = [each["ts"] + each["dur"] for each in spans]
        assert all(end <= after["ts"] + 1e-6 for end, after in zip(ends, spans[1:], strict=False))


def test_the_counter_s_highest_value_is_the_peak():
    step = some_step()
    counters = [e for e in trace(step_spans(step), memory=step.memory)["traceEvents"] if e["ph"] == "C"]
    for rank, peak in enumerate(step.memory.peak_bytes):
        highest = max(each["args"]["GiB"] for each in counters if each["pid"] == rank)
        assert highest == pytest.approx(peak / 2**30)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("ts"),
        lambda event: event.update(dur=-1.0),
        lambda event: event.update(ph="Y"),
        lambda event: event.update(pid="rank 0"),
        lambda event: event.update(args={}),
    ],
)
def test_the_schema_refuses_what_is_no_trace(spoil):
    document = trace(pass_spans(timeline("1f1b", 2, 2, 1)))
    spoil(complete(document)[0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, TRACE)
