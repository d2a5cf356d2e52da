"""Seconds and idle time of schedules, for tests: costs are those of a pass through one chunk."""

import numpy as np

from objectives.simulator.program import Pass
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
    seconds = dict(zip(Pass, (forward_s, input_s + weight_s, input_s, weight_s, both), strict=True))
    if both is None:
        seconds[Pass.FORWARD_BACKWARD] = sum(costs)
    n_stages = {
        route: 1 + int(program.stage[:, program.route == route].max()) for route in program.route.tolist()
    }
    done, free, queues = {}, [0] * program.n_ranks, [list(program.order(i)) for i in range(program.n_ranks)]

    def forward(i, microbatch, chunk):
        stage, route = int(program.stage[i, chunk]), int(program.route[chunk])
        return [("F", route, stage - 1, microbatch)] if stage else [], [("F", route, stage, microbatch)]

    def backward(i, microbatch, chunk):
        stage, route = int(program.stage[i, chunk]), int(program.route[chunk])
        needs = [("F", route, stage, microbatch)]
        if stage < n_stages[route] - 1:
            needs.append(("B", route, stage + 1, microbatch))
        return needs, [("B", route, stage, microbatch)]

    def waits_and_gives(i, op):
        if op.kind is Pass.FORWARD:
            return forward(i, op.microbatch, op.chunk)
        if op.kind is Pass.BACKWARD_WEIGHT:
            return backward(i, op.microbatch, op.chunk)[1], []
        if op.kind is Pass.FORWARD_BACKWARD:
            pair = forward(i, op.microbatch, op.chunk), backward(i, op.with_microbatch, op.with_chunk)
            return pair[0][0] + pair[1][0], pair[0][1] + pair[1][1]
        return backward(i, op.microbatch, op.chunk)

    while any(queues):
        before = sum(map(len, queues))
        for i, queue in enumerate(queues):
            while queue:
                needs, gives = waits_and_gives(i, queue[0])
                if any(need not in done for need in needs):
                    break
                free[i] = max([free[i], *(done[need] for need in needs)]) + seconds[queue.pop(0).kind]
                done.update(dict.fromkeys(gives, free[i]))
        assert sum(map(len, queues)) < before, "the schedule deadlocks"
    return max(free)
