"""Bytes on every pipeline rank over time: what passes keep, when the most of it is there, and what holds it.

    a forward pass takes its chunk's activations as it starts
    a backward pass gives back as it ends: B all of them, B_i and W as the release policy says
    at every moment    constant + what is kept

Activations taken equal those given back, so that a step ends with the bytes it started from.
"""

from dataclasses import dataclass

import numpy as np

from objectives.simulator.program import Pass
from objectives.simulator.schedules import Release
from objectives.simulator.schedules.accounting import HALVES_AT_BACKWARD_INPUT
from objectives.simulator.timeline import Timeline
from search_spaces.errors import check
from search_spaces.plan import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a rank keeps of one micro-batch in one chunk at its peak."""

    microbatch: int
    chunk: int
    n_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankMemory:
    """Bytes of every rank along its passes.

    `row` lists the timeline's passes in the order in which they ran, rank after rank; `during_bytes` is what
    is kept while each of them runs and `after_bytes` once it has ended, without `constant_bytes`, (n_ranks,).
    """

    timeline: Timeline
    row: Ints
    during_bytes: Floats
    after_bytes: Floats
    given_bytes: Floats
    constant_bytes: Floats

    @property
    def peak_activation_bytes(self) -> Floats:
        """The most that passes keep on each rank; shape (n_ranks,)."""
        peak = np.zeros(len(self.constant_bytes))
        np.maximum.at(peak, self.timeline.rank[self.row], self.during_bytes)
        return peak

    @property
    def peak_bytes(self) -> Floats:
        """The most bytes on each rank; shape (n_ranks,)."""
        return np.asarray(self.constant_bytes + self.peak_activation_bytes)

    @property
    def peak_rank(self) -> int:
        """The rank with the most bytes."""
        return int(np.argmax(self.peak_bytes))

    @property
    def peak_at_s(self) -> Floats:
        """When each rank first holds its most; shape (n_ranks,)."""
        rank, peak = self.timeline.rank[self.row], self.peak_activation_bytes
        at = np.full(len(peak), np.inf)
        is_peak = self.during_bytes >= peak[rank]
        np.minimum.at(at, rank[is_peak], self.timeline.start_s[self.row[is_peak]])
        return np.where(np.isfinite(at), at, 0.0)

    def held_at_peak(self, rank: int) -> list[Held]:
        """What the rank keeps at its peak, the oldest first."""
        program, mine = self.timeline.program, self.timeline.rank[self.row] == rank
        rows, during, given = self.row[mine], self.during_bytes[mine], self.given_bytes[mine]
        if not len(rows):
            return []
        held: dict[tuple[int, int], float] = {}
        taken = np.diff(np.append(0.0, during + 0.0))
        taken[1:] += given[:-1]
        last = int(np.argmax(during))
        for at in range(last + 1):
            op = program.op(int(rows[at]))
            if op.kind in (Pass.FORWARD, Pass.FORWARD_BACKWARD):
                held[op.microbatch, op.chunk] = float(taken[at])
            if given[at] and at < last:
                key = (op.with_microbatch, op.with_chunk) if op.with_chunk >= 0 else (op.microbatch, op.chunk)
                held[key] = held.get(key, 0.0) - float(given[at])
        tiny = 1e-9 * float(during.max())
        return [Held(microbatch=j, chunk=c, n_bytes=n) for (j, c), n in held.items() if n > tiny]

    def over_time(self, rank: int) -> tuple[Floats, Floats]:
        """Seconds and bytes of a rank as a staircase: from each second on, that many bytes."""
        rows = np.flatnonzero(self.timeline.rank[self.row] == rank)
        start_s, finish_s = (getattr(self.timeline, name)[self.row[rows]] for name in ("start_s", "finish_s"))
        seconds = np.stack([start_s, finish_s], axis=1).ravel()
        n_bytes = np.stack([self.during_bytes[rows], self.after_bytes[rows]], axis=1).ravel()
        return seconds, n_bytes + self.constant_bytes[rank]


def rank_memory(
    timeline: Timeline,
    activation_bytes: Floats,
    *,
    constant_bytes: Floats | None = None,
    release: Release = Release.AT_WEIGHT,
) -> RankMemory:
    """Bytes of every rank along a timeline.

    `activation_bytes` is what one micro-batch keeps in one chunk, shape (n_ranks, n_chunks), or where they
    differ (n_ranks, n_chunks, n_microbatches); `constant_bytes` what is there all the time, (n_ranks,).  Cost
    is linear in the passes.

    Raises
    ------
    InvalidSpec
        The shapes do not fit the program.
    """
    program = timeline.program
    shape = (program.n_ranks, program.n_chunks, program.n_microbatches)
    must = f"activation bytes must have the shape (n_ranks, n_chunks[, n_microbatches]) of {shape}"
    check(activation_bytes.shape in (shape[:2], shape), must, activation_bytes.shape)
    kept = np.broadcast_to(activation_bytes.reshape(*shape[:2], -1), shape)
    row = np.lexsort((timeline.turn, timeline.rank))
    rank, kind, chunk, microbatch = (
        each[row] for each in (timeline.rank, program.kind, program.chunk, program.microbatch)
    )
    is_pair = kind == Pass.FORWARD_BACKWARD
    given_chunk = np.where(is_pair, program.with_chunk[row], chunk)
    given_microbatch = np.where(is_pair, program.with_microbatch[row], microbatch)
    at_b = HALVES_AT_BACKWARD_INPUT[release] / 2
    share = np.array([0.0, 1.0, at_b, 1 - at_b, 1.0])[kind]
    taken = ((kind == Pass.FORWARD) | is_pair) * kept[rank, chunk, microbatch]
    given = share * kept[rank, given_chunk, given_microbatch]
    total = np.concatenate(([0.0], np.cumsum(taken - given)))
    before = total[np.searchsorted(rank, np.arange(program.n_ranks))][rank]  # of the ranks in front
    after = total[1:] - before
    return RankMemory(
        timeline=timeline, row=row, during_bytes=after + given, after_bytes=after, given_bytes=given,
        constant_bytes=np.zeros(program.n_ranks) if constant_bytes is None else constant_bytes,
    )  # fmt: skip
