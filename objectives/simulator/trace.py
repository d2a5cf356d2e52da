"""What ran when, as spans on the streams of pipeline ranks, and as a trace that Perfetto opens.

    one process a pipeline rank, one thread a stream, one complete event ("X") a span, in microseconds
    one counter ("C") a rank: bytes in use over time

Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU,
sections "JSON Object Format", "Complete Events", "Counter Events" and "Metadata Events".
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from objectives.simulator.memory import RankMemory
from objectives.simulator.program import NOTHING, Pass
from objectives.simulator.step import SimulatedStep
from objectives.simulator.step_graph import Activity, Stream
from search_spaces.plan import Bools, Floats, Ints
from search_spaces.units import KILO, NS, gib

Event = dict[str, Any]


_WORDS: Mapping[Activity, str] = MappingProxyType({
    Activity.TENSOR_COLLECTIVE: "tp collective", Activity.CONTEXT_COLLECTIVE: "cp collective",
    Activity.EXPERT_COLLECTIVE: "ep collective", Activity.REDUCE: "gradient reduction",
    Activity.GATHER: "weight gather", Activity.TIE: "tied embeddings", Activity.FIXED: "fixed cost",
})  # fmt: skip
_STREAMS: Mapping[Stream, str] = MappingProxyType({
    Stream.COMPUTE: "compute", Stream.COLLECTIVE: "tp, cp and ep communication",
    Stream.SEND_DOWN: "messages down", Stream.SEND_UP: "messages up", Stream.DATA: "dp communication",
})  # fmt: skip


def is_pass(activity: Activity) -> bool:
    """Whether it is a pass of the schedule."""
    return activity <= Activity.FORWARD_BACKWARD


def words_of(activity: Activity) -> str:
    """The activity for people: F, B, Bi, W and F&B of the papers, else words."""
    return Pass(activity).letter if is_pass(activity) else _WORDS.get(activity, activity.words)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """Spans as columns of shape (n_spans,), in seconds; -1 where a span has no micro-batch, chunk or stage.

    `stream` is a `Stream` and `kind` an `Activity`; `with_microbatch` and `with_chunk` are the backward half
    of F&B.
    """

    n_ranks: int
    rank: Ints
    stream: Ints
    kind: Ints
    start_s: Floats
    finish_s: Floats
    microbatch: Ints
    chunk: Ints
    stage: Ints
    with_microbatch: Ints
    with_chunk: Ints

    def __len__(self) -> int:
        return len(self.rank)

    def take(self, index: Ints | Bools) -> "Spans":
        """Spans at the given positions."""
        columns = {name: getattr(self, name)[index] for name in self.__slots__ if name != "n_ranks"}
        return Spans(n_ranks=self.n_ranks, **columns)

    @property
    def end_s(self) -> float:
        """When the last span ends."""
        return float(self.finish_s.max(initial=0.0))


def step_spans(step: SimulatedStep) -> Spans:
    """Everything that runs in a step on the first of each stage's symmetric devices."""
    ran, program = step.activities, step.program
    seen = np.flatnonzero((ran.stream != Stream.NONE) & (ran.copy == 0))
    row = ran.row[seen]

    def of_row(column: Ints) -> Ints:
        return np.where(row == NOTHING, NOTHING, column[row])

    microbatch, chunk = of_row(program.microbatch), of_row(program.chunk)
    # A message up is the backward half's, also behind a forward half that ran with it.
    is_other_half = (ran.stream[seen] == Stream.SEND_UP) & (of_row(program.with_chunk) != NOTHING)
    chunk = np.where(is_other_half, of_row(program.with_chunk), chunk)
    return Spans(
        n_ranks=program.n_ranks,
        rank=ran.rank[seen],
        stream=ran.stream[seen],
        kind=ran.activity[seen],
        start_s=ran.start_s[seen],
        finish_s=ran.finish_s[seen],
        microbatch=np.where(is_other_half, of_row(program.with_microbatch), microbatch),
        chunk=chunk,
        stage=np.where(row == NOTHING, NOTHING, program.stage[ran.rank[seen], chunk]),
        with_microbatch=of_row(program.with_microbatch),
        with_chunk=of_row(program.with_chunk),
    )


def span_name(spans: Spans, at: int) -> str:
    """`F 3`, `B 3`, `F 5 & B 3`, `send 3`, `optimizer`."""
    kind, microbatch = Activity(int(spans.kind[at])), int(spans.microbatch[at])
    if kind is Activity.FORWARD_BACKWARD:
        return f"F {microbatch} & B {int(spans.with_microbatch[at])}"
    return words_of(kind) if microbatch == NOTHING else f"{words_of(kind)} {microbatch}"


def write_trace(
    file: TextIO, spans: Spans, *, memory: RankMemory | None = None, about: Mapping[str, Any] | None = None
) -> None:
    """Write a trace, one event a line; `about` says what was simulated."""
    head = json.dumps({"displayTimeUnit": "ms", "otherData": dict(about or {})}, allow_nan=False)
    file.write(head[:-1] + ', "traceEvents": [\n')
    separator = ""
    for event in trace_events(spans, memory=memory):
        file.write(separator + json.dumps(event, allow_nan=False))
        separator = ",\n"
    file.write("\n]}\n")


def trace_events(spans: Spans, *, memory: RankMemory | None = None) -> Iterator[Event]:
    """Names of processes and threads, the spans in order of their starts, the bytes of every rank."""
    yield from _names(spans)
    # Whole nanoseconds, written as microseconds with three decimals, so that neighbours do not overlap.
    start_ns, finish_ns = (np.rint(column / NS) for column in (spans.start_s, spans.finish_s))
    for at in np.lexsort((finish_ns, start_ns)).tolist():
        if finish_ns[at] > start_ns[at]:
            yield {
                "ph": "X",
                "name": span_name(spans, at),
                "cat": words_of(Activity(int(spans.kind[at]))),
                "pid": int(spans.rank[at]),
                "tid": int(spans.stream[at]),
                "ts": start_ns[at] / KILO,
                "dur": (finish_ns[at] - start_ns[at]) / KILO,
                "args": _arguments(spans, at),
            }
    if memory is not None:
        for rank in range(spans.n_ranks):
            yield from _counters(memory, rank)


def _names(spans: Spans) -> Iterator[Event]:
    for rank in range(spans.n_ranks):
        yield _metadata("process_name", rank, name=f"pipeline rank {rank}")
        yield _metadata("process_sort_index", rank, sort_index=rank)
        for stream in np.unique(spans.stream[spans.rank == rank]).tolist():
            yield _metadata("thread_name", rank, stream, name=_STREAMS[Stream(stream)])
            yield _metadata("thread_sort_index", rank, stream, sort_index=stream)


def _metadata(what: str, rank: int, stream: int = Stream.COMPUTE, **arguments: str | int) -> Event:
    return {"ph": "M", "name": what, "pid": rank, "tid": int(stream), "args": arguments}


def _arguments(spans: Spans, at: int) -> dict[str, str | int]:
    words = {"kind": words_of(Activity(int(spans.kind[at])))}
    columns = ("microbatch", "chunk", "stage", "with_microbatch", "with_chunk")
    values = {name: int(getattr(spans, name)[at]) for name in columns}
    return words | {name: value for name, value in values.items() if value != NOTHING}


def _counters(memory: RankMemory, rank: int) -> Iterator[Event]:
    seconds, n_bytes = memory.over_time(rank)
    is_step = np.append(True, n_bytes[1:] != n_bytes[:-1])
    for at_ns, held in zip(np.rint(seconds[is_step] / NS), n_bytes[is_step].tolist(), strict=True):
        place = {"ph": "C", "name": "memory", "pid": rank, "tid": int(Stream.COMPUTE)}
        yield {**place, "ts": at_ns / KILO, "args": {"GiB": gib(held)}}
