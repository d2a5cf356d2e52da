"""Where each device's step goes: every second of it belongs to one part.

Computation comes first; then what of communication shows (tensor, context, expert, data, pipeline, in this
order where several run); what is left is the bubble, waiting for a message's sender and for others included.
"""

import numpy as np

from objectives.cost.stage_parts import PARTS
from objectives.simulator.engine import NOTHING, Run
from objectives.simulator.step_costs import RowCosts
from objectives.simulator.step_graph import Activity, StepTasks, Stream
from search_spaces.plan import Bools, Floats, Ints

SHOWN = ("tp_comm_s", "cp_comm_s", "ep_comm_s", "dp_comm_s", "pp_comm_s")
STEP_PARTS = (*PARTS[:-1], "pp_comm_s", "bubble_s", "dp_comm_s", "optimizer_s", "offload_s", "fixed_s")
_SHOWN_OF = {
    Activity.TENSOR_COLLECTIVE: 1, Activity.CONTEXT_COLLECTIVE: 2, Activity.EXPERT_COLLECTIVE: 3,
    Activity.REDUCE: 4, Activity.GATHER: 4, Activity.TIE: 4, Activity.SEND: 5,
}  # fmt: skip
_ENDS = {"optimizer_s": Activity.OPTIMIZER, "offload_s": Activity.OFFLOAD, "fixed_s": Activity.FIXED}
_COMPUTED = np.array([1, 1, 0, 0, 0, 1, 1], dtype=np.float64)  # of PARTS: what a piece computes itself


def step_parts(
    tasks: StepTasks, run: Run, costs: RowCosts, *, n_ranks: int, in_pieces: bool
) -> dict[str, Floats]:
    """Seconds of every device by part, (n_devices,); their sum is the step."""
    n_devices = n_ranks * (int(tasks.copy.max(initial=0)) + 1)
    device, spent = tasks.copy * n_ranks + tasks.rank, run.finish_s - run.start_s
    parts = {name: np.zeros(n_devices) for name in STEP_PARTS}
    computes = tasks.stream == Stream.COMPUTE
    passes = np.flatnonzero(computes & (tasks.row != NOTHING))
    shares = costs.parts_s * (_COMPUTED[:, None] if in_pieces else 1.0)
    shares = shares / np.maximum(shares.sum(axis=0), np.finfo(np.float64).tiny)
    for name, share in zip(PARTS, shares, strict=True):
        parts[name] += np.bincount(device[passes], spent[passes] * share[tasks.row[passes]], n_devices)
    for name, activity in _ENDS.items():
        mine = tasks.activity == activity
        parts[name] += np.bincount(device[mine], spent[mine], n_devices)
    shown = _shown(_intervals(tasks, run, device, computes), n_devices, float(run.finish_s.max(initial=0.0)))
    for name, seconds in zip((*SHOWN, "bubble_s"), shown, strict=True):
        parts[name] += seconds
    return parts


def _intervals(
    tasks: StepTasks, run: Run, device: Ints, computes: Bools
) -> tuple[Ints, Ints, Floats, Floats]:
    """What keeps devices busy, or shows while they are not: device, class, start, end."""
    kind = np.zeros(len(Activity), np.int64)
    for activity, which in _SHOWN_OF.items():
        kind[activity] = which
    listed = np.flatnonzero(computes | (kind[tasks.activity] > 0))
    held = np.flatnonzero(tasks.hold_s > 0)
    sends = tasks.activity[tasks.need] == Activity.SEND
    away = device[tasks.task] != device[tasks.need]
    message = np.flatnonzero(((tasks.delay_s > 0) | sends) & away & (tasks.task < len(device)))
    need = tasks.need[message]
    starts = np.where(sends[message], run.start_s[need], run.finish_s[need])
    ends_s = run.finish_s[need] + tasks.delay_s[message]
    classes = kind[tasks.activity[listed]] * ~computes[listed]
    return (
        np.concatenate([device[listed], device[held], device[tasks.task[message]]]),
        np.concatenate([classes, np.full(len(held) + len(message), 5)]),
        np.concatenate([run.start_s[listed], run.finish_s[held], starts]),
        np.concatenate([run.finish_s[listed], run.finish_s[held] + tasks.hold_s[held], ends_s]),
    )  # fmt: skip


def _shown(intervals: tuple[Ints, Ints, Floats, Floats], n_devices: int, end_s: float) -> Floats:
    """Seconds of every class while no lower one runs, and of nothing: shape (6, n_devices)."""
    device, kind, start_s, finish_s = intervals
    order = np.argsort(device, kind="stable")
    bounds = np.searchsorted(device[order], np.arange(n_devices + 1))
    found = np.zeros((len(SHOWN) + 1, n_devices))
    for each in range(n_devices):
        mine = order[bounds[each] : bounds[each + 1]]
        found[:, each] = _shown_on_one(kind[mine], start_s[mine], finish_s[mine], end_s)
    return found


def _shown_on_one(kind: Ints, start_s: Floats, finish_s: Floats, end_s: float) -> Floats:
    moments = np.concatenate([start_s, finish_s, [0.0, end_s]])
    order = np.argsort(moments, kind="stable")
    lengths = np.diff(np.append(moments[order], moments[order[-1]]))
    seconds, uncovered = [], np.ones(len(order), np.bool_)
    changes = np.concatenate([np.ones(len(kind)), -np.ones(len(kind)), [0.0, 0.0]])
    classes = np.concatenate([kind, kind, [0, 0]])
    for which in range(len(SHOWN) + 1):
        runs = np.cumsum((changes * (classes == which))[order]) > 0.5
        seconds.append(float(lengths[runs & uncovered].sum()))
        uncovered &= ~runs
    return np.array([*seconds[1:], float(lengths[uncovered].sum())])
