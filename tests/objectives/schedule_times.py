"""Seconds and idle time of schedules, for tests: costs are those of a pass through one chunk."""

import numpy as np

from objectives.simulator.program import Op, Pass
from objectives.simulator.timeline import PassTimes, simulate

EQUAL = (1, 1, 1)
UNEQUAL = (10, 12, 8)


def pass_times(program, costs, both=None):
    shape = (program.n_ranks, program.n_chunks)
    forward_s, input_s, weight_s = (np.full(shape, float(cost)) for cost in costs)
    return PassTimes(
        forward_s=forward_s, backward_input_s=input_s, backward_weight_s=weight_s, send_s=np.zeros(shape[0]),
        forward_backward_s=None if both is None else np.full(shape, float(both)),
    )  # fmt: skip


def bubbles(program, costs, both=None):
    """Idle seconds by span and by makespan, as far as a picosecond."""
    timeline = simulate(program, pass_times(program, costs, both))
    return round(timeline.span_bubble_s, 12), round(timeline.makespan_bubble_s, 12)


def longest_path_s(program, costs, both=None):
    """The makespan by a plain walk over the ranks: what the engine must agree with."""
    forward_s, input_s, weight_s = costs
    both = sum(costs) if both is None else both
    seconds = dict(zip(Pass, (forward_s, input_s + weight_s, input_s, weight_s, both), strict=True))
    done, free = {}, [0] * program.n_ranks
    queues = [list(program.order(rank))[::-1] for rank in range(program.n_ranks)]
    while any(queues):
        n_before = sum(map(len, queues))
        for rank, queue in enumerate(queues):
            while queue and (needs := needs_of(program, rank, queue[-1])) <= done.keys():
                op = queue.pop()
                free[rank] = max([free[rank], *(done[need] for need in needs)]) + seconds[op.kind]
                done.update(dict.fromkeys(gives_of(program, rank, op), free[rank]))
        assert sum(map(len, queues)) < n_before, "the schedule deadlocks"
    return max(free)


def place(program, rank, chunk):
    """Route, stage along it, and whether that is the last."""
    route = program.route[chunk]
    stage = int(program.stage[rank, chunk])
    return int(route), stage, stage == program.stage[:, program.route == route].max()


def needs_of(program, rank, op):
    """What a pass waits for, as (letter, route, stage, micro-batch)."""
    route, stage, is_last = place(program, rank, op.chunk)
    match op.kind:
        case Pass.FORWARD:
            return {("F", route, stage - 1, op.microbatch)} if stage else set()
        case Pass.BACKWARD_WEIGHT:
            return {("B", route, stage, op.microbatch)}
        case Pass.FORWARD_BACKWARD:
            pair = halves_of(op)
            return needs_of(program, rank, pair[0]) | needs_of(program, rank, pair[1])
    later = set() if is_last else {("B", route, stage + 1, op.microbatch)}
    return {("F", route, stage, op.microbatch)} | later


def gives_of(program, rank, op):
    """What others wait for."""
    if op.kind is Pass.FORWARD_BACKWARD:
        return [give for half in halves_of(op) for give in gives_of(program, rank, half)]
    route, stage, _ = place(program, rank, op.chunk)
    letter = {Pass.FORWARD: "F", Pass.BACKWARD_WEIGHT: "W"}.get(op.kind, "B")
    return [(letter, route, stage, op.microbatch)]


def halves_of(op):
    return Op(Pass.FORWARD, op.microbatch, op.chunk), Op(Pass.BACKWARD, op.with_microbatch, op.with_chunk)
