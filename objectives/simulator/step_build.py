"""A plan's step as tasks: passes or their pieces, messages, gradients and weights, and the step's end.

detail "passes"    a pass is one task with its exposed collectives inside; messages are latencies, or hold
                   their sender; of gradients and weights as much hides as the closed form says
                       (ZeRO-2 and 3: what hides is left out)
detail "pieces"    a pass is G groups of layers; collectives, messages, and buckets of gradients and weights
                   are tasks on streams of their own, which share links and slow what they run beside

    group g    compute  ->  exposed tp, cp, ep collectives  ->  group g + 1
               hidden collectives start with the group's computation and end before the next group's
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost.stage_parts import StageParts
from objectives.simulator.engine import NOTHING
from objectives.simulator.program import Pass, Program
from objectives.simulator.step_costs import RowCosts
from objectives.simulator.step_graph import Activity, Draft, StepTasks, Stream
from objectives.simulator.timeline import Wiring
from search_spaces.plan import Bools, Floats, Ints, Plan

_COLLECTIVES = (Activity.TENSOR_COLLECTIVE, Activity.CONTEXT_COLLECTIVE, Activity.EXPERT_COLLECTIVE)
MOST_PIECES = 64  # of a reduction: finer ones change nothing but the tasks' number
_COMPUTED = [0, 1, 5, 6]  # compute, recompute, launch, offload: what a piece computes or waits for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepInput:
    """All that a step's tasks are made from; `share` of gradients and weights can hide, 0 where none may.

    `every_stage_agrees` is the barrier in front of the optimizer.
    """

    plan: Plan
    wiring: Wiring
    parts: StageParts
    costs: RowCosts
    share: float
    fixed_s: float
    n_groups: int
    every_stage_agrees: bool

    @property
    def program(self) -> Program:
        """The passes."""
        return self.wiring.program


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Tasks of the program's passes: the first ones, (n_ops, k), the last, and the pieces, (n_ops, G)."""

    begin: Ints
    end: Ints
    pieces: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepGraph:
    """A step's tasks, with those that begin and end the program's passes."""

    program: Program
    tasks: StepTasks
    rows: Rows


def whole_passes(step: StepInput) -> StepGraph:
    """Detail "passes"."""
    draft, wiring, program = Draft(), step.wiring, step.program
    link_s = np.append(step.costs.link_s, 0.0)
    hold_s = 0.0 if step.plan.overlap_pp else np.max(link_s[wiring.sends], axis=0)
    ids = draft.add(
        program.kind,
        wiring.rank,
        Stream.COMPUTE,
        step.costs.total_s,
        hold_s=hold_s,
        row=np.arange(len(wiring)),
    )
    draft.need(ids[_waiter(wiring)], ids[wiring.before], link_s[wiring.edge_link])
    rows = Rows(begin=ids[:, None], end=ids, pieces=ids[:, None])
    finals = _gathers_and_reductions(draft, step, rows, in_buckets=False)
    _finish(draft, step, finals)
    return StepGraph(program=step.program, tasks=draft.done(), rows=rows)


def in_pieces(step: StepInput) -> StepGraph:
    """Detail "pieces"."""
    draft = Draft()
    rows = _pieces(draft, step)
    _messages(draft, step, rows)
    finals = _gathers_and_reductions(draft, step, rows, in_buckets=True)
    _finish(draft, step, finals)
    return StepGraph(program=step.program, tasks=draft.done(), rows=rows)


def _waiter(wiring: Wiring) -> Ints:
    return np.repeat(np.arange(len(wiring)), np.diff(wiring.before_first))


def _pieces(draft: Draft, step: StepInput) -> Rows:
    """Computation and collectives of every pass, in groups of layers."""
    costs, rank, n_groups = step.costs, step.wiring.rank, step.n_groups
    n = len(rank)
    kinds = [k for k in range(3) if costs.parts_s[2 + k].any() or costs.hidden_s[k].any()]
    has_comm = (costs.parts_s[2:5].sum(axis=0) + costs.hidden_s.sum(axis=0)) > 0
    row = np.arange(n)[:, None]
    compute_s = (costs.parts_s[_COMPUTED].sum(axis=0) / n_groups)[:, None] + np.zeros(n_groups)
    compute = draft.add(step.program.kind[:, None], rank[:, None], Stream.COMPUTE, compute_s, row=row)
    mine = np.flatnonzero(has_comm)
    begin = [compute[:, 0]]
    after = compute.copy()  # the last task of every group's chain
    names = ("tp", "cp", "ep")
    covered: list[Ints] = []
    for k in kinds:
        column: dict[str, Ints | int] = dict(tier=step.parts.tier[names[k]], row=row[mine])
        hidden = (costs.hidden_s[k, mine] / n_groups)[:, None] + np.zeros(n_groups)
        if hidden.any():
            covered.append(draft.add(_COLLECTIVES[k], rank[mine, None], Stream.COLLECTIVE, hidden, **column))
            first = np.full(n, NOTHING)
            first[mine] = covered[-1][:, 0]
            begin.append(first)
        shown = (costs.parts_s[2 + k, mine] / n_groups)[:, None] + np.zeros(n_groups)
        if shown.any():
            exposed = draft.add(_COLLECTIVES[k], rank[mine, None], Stream.COLLECTIVE, shown, **column)
            draft.need(exposed, after[mine])
            after[mine] = exposed
    draft.need(compute[:, 1:], after[:, :-1])
    end = after[:, -1].copy()
    if covered and len(mine):
        end[mine] = draft.add(Activity.JOIN, rank[mine], Stream.NONE, 0.0, row=mine)
        draft.need(end[mine], after[mine, -1])
    for each in covered:
        draft.need(each[:, 1:], after[mine][:, :-1])
        draft.need(compute[mine, 1:], each[:, :-1])
        draft.need(end[mine], each[:, -1])
    _follow_on(draft, step.program, begin, end)
    return Rows(begin=np.stack(begin, axis=1), end=end, pieces=compute)


def _follow_on(draft: Draft, program: Program, begin: list[Ints], end: Ints) -> None:
    """A pass starts when the rank's pass before has ended, its collectives included."""
    rank = program.rank
    later = np.flatnonzero(np.diff(rank, prepend=NOTHING) == 0)
    for first in begin:
        real = later[first[later] != NOTHING]
        draft.need(first[real], end[real - 1])


def _messages(draft: Draft, step: StepInput, rows: Rows) -> None:
    """A task for every message; where they do not overlap, the sender's next pass waits for it."""
    wiring, program = step.wiring, step.program
    n, link_s = len(wiring), np.append(step.costs.link_s, 0.0)
    ids = np.full((len(wiring.sends), n), NOTHING)
    for half, links in enumerate(wiring.sends):
        sender = np.flatnonzero(links != NOTHING)
        down = np.isin(program.kind[sender], (Pass.FORWARD, Pass.FORWARD_BACKWARD)) & (half == 0)
        for is_down, stream in ((True, Stream.SEND_DOWN), (False, Stream.SEND_UP)):
            who = sender[down == is_down]
            ids[half, who] = draft.add(
                Activity.SEND,
                wiring.rank[who],
                stream,
                link_s[links[who]],
                tier=step.parts.tier["pp"],
                row=who,
            )
        draft.need(ids[half, sender], rows.end[sender])
        if not step.plan.overlap_pp:
            is_followed = np.append(np.diff(wiring.rank) == 0, False)[sender]
            _need_all(draft, rows.begin[sender[is_followed] + 1], ids[half, sender[is_followed]])
    sent = np.where(
        wiring.edge_link != NOTHING, ids[wiring.edge_half, wiring.before], rows.end[wiring.before]
    )
    _need_all(draft, rows.begin[_waiter(wiring)], sent)


def _need_all(draft: Draft, tasks: Ints, need: Ints) -> None:
    """All of a row's tasks, (n, k), need one; -1 stands for no task."""
    need = np.broadcast_to(need[:, None], tasks.shape)
    real = (tasks != NOTHING) & (need != NOTHING)
    draft.need(tasks[real], need[real])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """Seconds of one reduction and one gather that show and that hide, on every rank: (n_ranks,)."""

    reduce_shown_s: Floats
    reduce_hidden_s: Floats
    gather_shown_s: Floats
    gather_hidden_s: Floats


def hideable(step: StepInput, *, in_buckets: bool) -> Shared:
    """What one reduction and one gather show and hide.

    In buckets, the share hides if there is something to hide behind: the timeline tells.  Else the closed
    form's rule: the share of what fits behind the passes that it may hide behind.
    """
    parts, m = step.parts, step.program.n_microbatches
    times = [each.sum(axis=0) for each in (parts.forward_s, parts.backward_input_s, parts.backward_weight_s)]
    forward_s, backward_s = times[0], times[1] + times[2]
    reduce_s, gather_s = _per_pass(step)
    every = 2 * m if step.plan.zero >= 3 else 1
    hidden_reduce, hidden_gather = reduce_s, gather_s
    if not in_buckets:
        hidden_reduce = np.minimum(reduce_s, backward_s)
        n_reductions = m if step.plan.reduces_every_pass else 1
        every_pass_s = m * (forward_s + backward_s) - n_reductions * hidden_reduce
        room = every_pass_s if step.plan.zero >= 3 else forward_s
        hidden_gather = np.minimum(every * gather_s, np.maximum(room, 0)) / every
    return Shared(
        reduce_shown_s=reduce_s - step.share * hidden_reduce,
        reduce_hidden_s=step.share * hidden_reduce,
        gather_shown_s=gather_s - step.share * hidden_gather,
        gather_hidden_s=step.share * hidden_gather,
    )


def _per_pass(step: StepInput) -> tuple[Floats, Floats]:
    """Seconds of one reduction and one gather on every rank; without ZeRO nothing is gathered."""
    parts = step.parts
    if step.plan.zero >= 3:
        return parts.reduce_s, (parts.gather_s + parts.gather_again_s) / 2
    return parts.reduce_s, parts.gather_s if step.plan.zero >= 1 else np.zeros_like(parts.gather_s)


def _gathers_of_row(step: StepInput, row: Ints) -> Floats:
    """How many mean gathers a pass waits for: those before a backward pass may be nearer (ZeRO++)."""
    kind, rank = step.program.kind[row], step.program.rank[row]
    forward, again = step.parts.gather_s[rank], step.parts.gather_again_s[rank]
    mean = np.maximum((forward + again) / 2, np.finfo(np.float64).tiny)
    share = np.where(kind == Pass.FORWARD, forward, again) / mean
    return np.where(kind == Pass.FORWARD_BACKWARD, 2.0, np.where(forward + again > 0, share, 1.0))


def _gathers_and_reductions(draft: Draft, step: StepInput, rows: Rows, *, in_buckets: bool) -> list[Ints]:
    """Gathers of weights and reductions of gradients; what every rank's end waits for, (n_ranks,) each."""
    if step.plan.coalesced_buckets:
        return _update_in_pieces(draft, step, rows)
    shared = hideable(step, in_buckets=in_buckets)
    finals = [rows.end[step.program.first[1:] - 1]]
    if step.plan.zero >= 3:
        _gather_every_pass(draft, step, rows, shared, in_buckets=in_buckets)
    elif step.plan.zero >= 1:
        _gather_once(draft, step, rows, shared)
    if step.plan.reduces_every_pass:
        finals += _reduce_every_pass(draft, step, rows, shared, in_buckets=in_buckets)
    else:
        finals += _reduce_once(draft, step, rows, shared, in_buckets=in_buckets)
    return finals


def _update_in_pieces(draft: Draft, step: StepInput, rows: Rows) -> list[Ints]:
    """Gradients travel in pieces after the last pass; each is updated as it arrives, none waits for all.

    The last piece's update is left to `_finish`.  Source: axonn/optim.py, CPUAdam.step.
    """
    program, parts = step.program, step.parts
    finals = [np.zeros(program.n_ranks, np.int64), np.zeros(program.n_ranks, np.int64)]
    for rank in range(program.n_ranks):
        n, at = min(int(parts.n_updated[rank]), MOST_PIECES), np.array([rank])
        before = updated = rows.end[program.first[rank + 1] - 1 : program.first[rank + 1]]
        for piece in range(n):
            arrived = _data(draft, step, Activity.REDUCE, at, parts.reduce_s[at] / n)
            draft.need(arrived, before)
            before = arrived
            if piece < n - 1:
                here = draft.add(Activity.OFFLOAD, at, Stream.COMPUTE, parts.offload_s[at] / n)
                draft.need(here, arrived)
                draft.need(here, updated)
                updated = here
        finals[0][rank], finals[1][rank] = before[0], updated[0]
    return finals


def _data(draft: Draft, step: StepInput, activity: Activity, rank: Ints, seconds: Floats) -> Ints:
    return draft.add(activity, rank, Stream.DATA, seconds, tier=step.parts.tier["dp"])


def _gather_once(draft: Draft, step: StepInput, rows: Rows, shared: Shared) -> None:
    """Weights come before the first pass, or, what hides, in buckets before the groups that use them."""
    program = step.program
    ranks, n_chunks = np.arange(program.n_ranks), program.n_chunks
    lead = _data(draft, step, Activity.GATHER, ranks, shared.gather_shown_s)
    _need_all(draft, rows.begin[program.first[:-1]], lead)
    if not shared.gather_hidden_s.any():
        return
    n_groups = rows.pieces.shape[1]
    seconds = (shared.gather_hidden_s / (n_chunks * n_groups))[:, None, None] + np.zeros((n_chunks, n_groups))
    buckets = _data(draft, step, Activity.GATHER, ranks[:, None, None], seconds)
    draft.need(buckets, lead[:, None, None])
    if n_groups > 1:
        used = _edge_rows(program, last=False)
        real = used != NOTHING
        draft.need(rows.pieces[used[real]], buckets[real])


def _edge_rows(program: Program, *, last: bool) -> Ints:
    """The first forward or the last backward pass of every rank and chunk, (n_ranks, n_chunks); -1: none."""
    kind, pair = program.kind, program.kind == Pass.FORWARD_BACKWARD
    wanted = _ends_backward(kind) if last else (kind == Pass.FORWARD) | pair
    at = np.flatnonzero(wanted)
    at = at if last else at[::-1]  # the later assignment stays
    found = np.full((program.n_ranks, program.n_chunks), NOTHING)
    found[program.rank[at], np.where(pair & last, program.with_chunk, program.chunk)[at]] = at
    return found


def _ends_backward(kind: Ints) -> Bools:
    """Passes after which a micro-batch's gradients are there."""
    return np.isin(kind, (Pass.BACKWARD, Pass.BACKWARD_WEIGHT, Pass.FORWARD_BACKWARD))


def _reduce_once(
    draft: Draft, step: StepInput, rows: Rows, shared: Shared, *, in_buckets: bool
) -> list[Ints]:
    """Gradients are reduced after the last pass; what hides goes before, in buckets as they become ready."""
    program = step.program
    ranks, last = np.arange(program.n_ranks), program.first[1:] - 1
    finals = []
    if shared.reduce_hidden_s.any():
        hidden = (_buckets if in_buckets else _behind)(draft, step, rows, shared)
        finals = list(hidden.reshape(len(ranks), -1).T)
    rest = _data(draft, step, Activity.REDUCE, ranks, shared.reduce_shown_s)
    draft.need(rest, rows.end[last])
    for each in finals:
        draft.need(rest, each)
    return [rest]


def _behind(draft: Draft, step: StepInput, rows: Rows, shared: Shared) -> Ints:
    """What hides, as one task that starts early enough to end with the last pass."""
    program = step.program
    hidden = _data(draft, step, Activity.REDUCE, np.arange(program.n_ranks), shared.reduce_hidden_s)
    for rank in range(program.n_ranks):
        start, end = int(program.first[rank]), int(program.first[rank + 1])
        work_s = np.cumsum(step.costs.total_s[start:end][::-1])
        before = end - 2 - int(np.searchsorted(work_s, shared.reduce_hidden_s[rank]))
        if before >= start:
            draft.need(hidden[rank : rank + 1], rows.end[before : before + 1])
    return hidden


def _bucket_shares(step: StepInput, n_groups: int) -> Floats:
    """Share of a group's bytes that its last bucket holds, (n_ranks,): no pass of the group hides it."""
    per_group = np.round(step.parts.n_buckets / (step.program.n_chunks * n_groups))
    return np.asarray(1 / np.maximum(per_group, 1))


def _buckets(draft: Draft, step: StepInput, rows: Rows, shared: Shared) -> Ints:
    """Buckets of every group of layers of a chunk, as its last backward pass makes their gradients.

    All buckets of a group but its last may travel while the group runs; the last one follows.
    """
    program, n_groups = step.program, rows.pieces.shape[1]
    last = _edge_rows(program, last=True)
    real, rank = last != NOTHING, np.arange(program.n_ranks)[:, None, None]
    late = _bucket_shares(step, n_groups)
    finals = []
    for share, is_late in ((1 - late, False), (late, True)):
        each_s = share * shared.reduce_hidden_s / (program.n_chunks * n_groups)
        seconds = each_s[:, None, None] + np.zeros((*last.shape, n_groups))[0]
        buckets = _data(draft, step, Activity.REDUCE, rank, seconds)
        finals.append(buckets)
        if is_late:
            draft.need(buckets[real], rows.pieces[last[real]])
        else:
            draft.need(buckets[real][:, 1:], rows.pieces[last[real]][:, :-1])
            follows = real & (last > program.first[:-1, None])
            draft.need(buckets[follows][:, 0], rows.end[last[follows] - 1])
    return np.concatenate(finals, axis=1)


def _gather_every_pass(
    draft: Draft, step: StepInput, rows: Rows, shared: Shared, *, in_buckets: bool
) -> None:
    """ZeRO-3: weights come before every forward and every input-gradient pass, the hidden part one ahead."""
    program = step.program
    n_chunks = program.n_chunks if program.route.max() == 0 else 1
    row = np.flatnonzero(program.kind != Pass.BACKWARD_WEIGHT)
    rank, times = program.rank[row], _gathers_of_row(step, row)
    shown = _data(draft, step, Activity.GATHER, rank, times * shared.gather_shown_s[rank] / n_chunks)
    _need_all(draft, rows.begin[row], shown)
    has_before = row > program.first[rank]
    draft.need(shown[has_before], rows.end[row[has_before] - 1])
    if in_buckets and shared.gather_hidden_s.any():
        ahead = _data(draft, step, Activity.GATHER, rank, times * shared.gather_hidden_s[rank] / n_chunks)
        _need_all(draft, rows.begin[row], ahead)
        has_two = row > program.first[rank] + 1
        draft.need(ahead[has_two], rows.end[row[has_two] - 2])


def _reduce_every_pass(
    draft: Draft, step: StepInput, rows: Rows, shared: Shared, *, in_buckets: bool
) -> list[Ints]:
    """ZeRO-2 and 3: every micro-batch's gradients are scattered; what shows holds up the next pass."""
    program = step.program
    n_chunks = program.n_chunks if program.route.max() == 0 else 1
    row = np.flatnonzero(_ends_backward(program.kind))
    rank, last = program.rank[row], program.first[1:] - 1
    shown = _data(draft, step, Activity.REDUCE, rank, shared.reduce_shown_s[rank] / n_chunks)
    draft.need(shown, rows.end[row])
    followed = row < last[rank]
    _need_all(draft, rows.begin[row[followed] + 1], shown[followed])
    finals = [_last_of(rank, shown)]
    if in_buckets and shared.reduce_hidden_s.any():
        hidden = _data(draft, step, Activity.REDUCE, rank, shared.reduce_hidden_s[rank] / n_chunks)
        draft.need(hidden, rows.end[row])
        finals.append(_last_of(rank, hidden))
    return finals


def _last_of(rank: Ints, tasks: Ints) -> Ints:
    """Each rank's last task."""
    found = np.full(int(rank.max()) + 1, NOTHING)
    found[rank] = tasks
    return found


def _finish(draft: Draft, step: StepInput, finals: list[Ints]) -> None:
    """Tied embeddings' gradients, the barrier, the update, and what every step costs."""
    n_ranks = step.program.n_ranks
    ranks = np.arange(n_ranks)
    tied = np.flatnonzero(step.parts.tie_s > 0)
    if len(tied) and n_ranks > 1:
        both = draft.add(Activity.JOIN, tied, Stream.NONE, 0.0)
        tie = draft.add(Activity.TIE, tied, Stream.DATA, step.parts.tie_s[tied], tier=step.parts.tier["pp"])
        draft.need(tie, both)
        for each in finals:
            draft.need(both, each[tied])
            draft.need(both, each[n_ranks - 1 - tied])
        last = finals[0].copy()
        last[tied] = tie
        finals = [*finals, last]
    update = draft.add(Activity.OPTIMIZER, ranks, Stream.COMPUTE, step.parts.optimizer_s)
    pieces = np.minimum(step.parts.n_updated, MOST_PIECES) if step.plan.coalesced_buckets else 1
    left_s = step.parts.offload_s / pieces
    copies = draft.add(Activity.OFFLOAD, ranks, Stream.COMPUTE, left_s)
    draft.need(copies, update)
    if step.every_stage_agrees and not step.plan.coalesced_buckets:
        barrier = draft.add(Activity.BARRIER, ranks[:1], Stream.NONE, 0.0)
        for each in finals:
            draft.need(barrier, each)
        finals = [np.broadcast_to(barrier, n_ranks)]
    for each in finals:
        draft.need(update, each)
    fixed = draft.add(Activity.FIXED, ranks, Stream.COMPUTE, step.fixed_s)
    draft.need(fixed, copies)
