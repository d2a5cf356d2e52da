"""Where the closed forms of a step are exact, so that the engine must agree with them; and where not, why.

    i  stage   p  stages   m  micro-batches   x  a message   T = F + B, of a stage with its messages:
    F_i + x where a stage follows, B_i + x where one is in front (a blocking sender sends and then goes on)

    GPipe    sum T_i + (m - 1) (max F_i + max B_i)
    1F1B     max over w of  sum_{i<w} T_i + (m - k_w) T_w + max_v (Z_wv + k_v max_{u<=v} F_u)
                                                          + max_v (Z_wv + k_v max_{u<=v} B_u)
             k_i = p - 1 - i forward passes warm stage i up;  Z_wv = sum_{w<i<=v} T_i,  v >= w
             (the rhythm is that of stage w; before and behind it a stage v turns the longest way around)

Both are exact for m >= p, whatever the stages (found here; a test compares them with the engine).  The closed
forms of `objectives.cost.pipeline` count sum T_i + (m - 1) max T_i, and messages apart.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.simulator.step import StepSimulator
from objectives.simulator.step_build import StepInput, hideable
from search_spaces.plan import Floats, OptimizerSync, Plan, Plans, Schedule

AGREES_TO = 1e-3
_EACH = 3e-4  # of a step: what an assumption may be off by


def gpipe_s(forward_s: Floats, backward_s: Floats, n_microbatches: int) -> float:
    """Makespan of GPipe with uneven stages."""
    most = float(forward_s.max() + backward_s.max())
    return float(forward_s.sum() + backward_s.sum()) + (n_microbatches - 1) * most


def one_f_one_b_s(forward_s: Floats, backward_s: Floats, n_microbatches: int) -> float:
    """Makespan of 1F1B with uneven stages, m >= p."""
    both_s, p = forward_s + backward_s, len(forward_s)
    warmups = np.arange(p)[::-1]
    fills_s, drains_s = (warmups * np.maximum.accumulate(each) for each in (forward_s, backward_s))
    so_far_s = np.concatenate(([0.0], np.cumsum(both_s)))
    longest_s = 0.0
    for w in range(p):
        behind_s = so_far_s[w + 1 :] - so_far_s[w + 1]  # of stages w + 1 to v, for v = w ... p - 1
        ends_s = np.max(behind_s + fills_s[w:]) + np.max(behind_s + drains_s[w:])
        longest_s = max(longest_s, so_far_s[w] + (n_microbatches - warmups[w]) * both_s[w] + ends_s)
    return float(longest_s)


def assumptions(job: Job, plan: Plan) -> list[str]:
    """Why the closed form of this plan's step is not exact; none: the engine agrees to 0.1 %."""
    if plan.pp == 1:
        return []
    found, step = estimate(job, Plans.of([plan])), StepSimulator(job, plan).input(0)
    return [words for words, differs in _CHECKS.items() if differs(step, found)]


def _stages_s(step: StepInput) -> tuple[Floats, Floats, Floats]:
    """F, B and W of every stage, communication inside."""
    parts = step.parts
    weight_s = parts.backward_weight_s.sum(axis=0)
    return parts.forward_s.sum(axis=0), parts.backward_input_s.sum(axis=0) + weight_s, weight_s


def _has_no_form(step: StepInput, found: Estimate) -> bool:
    """Whether the schedule has no closed form for passes of these lengths, whatever the stages."""
    del found
    (forward_s, backward_s, weight_s), m, p = _stages_s(step), step.program.n_microbatches, step.plan.pp
    match step.plan.schedule:
        case Schedule.GPIPE | Schedule.INTERLEAVED:
            return False
        case Schedule.ONE_F_ONE_B:
            return m < p or step.plan.extra_warmup > 0
        case Schedule.ZB_H1:
            input_s = backward_s - weight_s
            return m < p or bool(np.any((weight_s > forward_s) | (forward_s > input_s)))
        case _:
            return True


def _uneven_form_s(step: StepInput, send_s: float) -> float | None:
    """Makespan with uneven stages and blocking messages, where there is a form for it."""
    forward_s, backward_s, _ = _stages_s(step)
    if step.plan.overlap_pp or step.plan.schedule not in (Schedule.GPIPE, Schedule.ONE_F_ONE_B):
        return None
    form = gpipe_s if step.plan.schedule is Schedule.GPIPE else one_f_one_b_s
    rank = np.arange(len(forward_s))
    sends, returns = send_s * (rank < len(rank) - 1), send_s * (rank > 0)
    return form(forward_s + sends, backward_s + returns, step.program.n_microbatches)


def _stages_are_uneven(step: StepInput, found: Estimate) -> bool:
    time, (forward_s, backward_s, _) = found.time, _stages_s(step)
    passes_s = time.compute_s + time.recompute_s + time.tp_comm_s + time.cp_comm_s + time.ep_comm_s
    hosted_s = time.offload_s - step.parts.offload_s.max()
    closed_s = float((passes_s + time.launch_s + time.bubble_s + hosted_s)[0])
    exact_s = _uneven_form_s(step, 0.0)
    both_s = forward_s + backward_s
    off_s = float((both_s.max() - both_s).sum()) if exact_s is None else abs(exact_s - closed_s)
    return bool(off_s > _EACH * found.step_s[0])


def _messages_differ(step: StepInput, found: Estimate) -> bool:
    """Against the exact form; where there is none, all messages together must be too short to matter."""
    without_s, with_s = (_uneven_form_s(step, each) for each in (0.0, step.parts.send_s))
    if without_s is None or with_s is None:
        n_messages = 2 * (step.program.n_microbatches * step.program.n_chunks + step.plan.pp)
        off_s = n_messages * step.parts.send_s
    else:
        off_s = abs(with_s - without_s - float(found.time.pp_comm_s[0]))
    return bool(off_s > _EACH * found.step_s[0])


def _shares_inside_passes(step: StepInput, found: Estimate) -> bool:
    return _travels_every_pass(step) and found.time.dp_comm_s[0] > _EACH * found.step_s[0]


def _travels_every_pass(step: StepInput) -> bool:
    """Whether weights or gradients travel with every micro-batch, and not with the step alone."""
    return step.plan.zero >= 3 or step.plan.reduces_every_pass


def _first_stage_is_not_fullest(step: StepInput, found: Estimate) -> bool:
    shared = hideable(step, in_buckets=False)
    shown_s = float((shared.reduce_shown_s + shared.gather_shown_s)[0] + step.parts.tie_s[0])
    off_s = abs(shown_s - found.time.dp_comm_s[0])
    return not _travels_every_pass(step) and off_s > _EACH * found.step_s[0]


def _steps_interlock(step: StepInput, found: Estimate) -> bool:
    del found
    return step.plan.optimizer_sync is not OptimizerSync.BARRIER


_CHECKS: Mapping[str, Callable[[StepInput, Estimate], bool]] = MappingProxyType({
    "the schedule has no exact form for passes of these lengths": _has_no_form,
    "stages are uneven where the closed form takes the worst one as never starved": _stages_are_uneven,
    "messages show otherwise than as two a micro-batch on the worst stage": _messages_differ,
    "ZeRO-2 and 3 communicate inside passes, which lengthens the bubble too": _shares_inside_passes,
    "the first stage ends last, and another one shares more": _first_stage_is_not_fullest,
    "without a barrier a step ends at another time on every stage": _steps_interlock,
})  # fmt: skip
