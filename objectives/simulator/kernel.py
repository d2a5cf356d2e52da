"""The compiled loops of the engine: an event loop for everything, a sweep where nothing shares.

Both give every task the same start and end; `objectives.simulator.engine` says what a task is and picks one.
This module imports Numba, so it is itself imported only when something runs.

The event loop is one function: a compiled call counts references to every array that it hands on, which
costs more than the work.  Its tables have a row a task, so that an event touches few lines of memory.
"""

from typing import NamedTuple

import numpy as np

from objectives.simulator.compiled import compiled
from search_spaces.plan import Bools, Floats, Ints

WAITING, ARRIVING, READY, RUNNING, HOLDING, DONE = range(6)
# Columns of the tables of tasks: seconds, speeds and weights; and whole numbers.
READY_S, KEY_S, LEFT_S, SINCE_S, SHARE, OVERLAP, N_FLOATS = range(7)
PHASE, MISSING, AT, QUEUE_NEXT, QUEUE_BACK, LINK_NEXT, LINK_BACK, N_INTS = range(8)


class Work(NamedTuple):
    """Columns of the tasks; `order` lists them stream by stream, stream k's from `stream_first[k]` on."""

    work_s: Floats
    hold_s: Floats
    stream: Ints
    link: Ints
    weight: Floats
    is_urgent: Bools
    before_first: Ints
    before: Ints
    delay_s: Floats
    stream_first: Ints
    order: Ints


class Place(NamedTuple):
    """What tasks run on; `device_streams` lists streams device by device."""

    device: Ints
    is_comm: Ints
    by_arrival: Ints
    capacity: Floats
    device_first: Ints
    device_streams: Ints
    rate_overlapped: Floats


@compiled
def sweep(work: Work, start_s: Floats, finish_s: Floats) -> int:
    """Start and end of tasks on streams in order: each stream runs on until a task's needs are not there.

    Returns the number of tasks that ran.
    """
    n_streams = len(work.stream_first) - 1
    cursor, free_s = work.stream_first[:-1].copy(), np.zeros(n_streams)
    done = np.zeros(len(work.work_s), np.bool_)
    sleeper, next_sleeper = np.full(len(done), -1), np.full(n_streams, -1)
    awake, n_awake, n_ran = np.arange(n_streams)[::-1].copy(), n_streams, 0
    while n_awake:
        n_awake -= 1
        stream = awake[n_awake]
        while cursor[stream] < work.stream_first[stream + 1]:
            task = work.order[cursor[stream]]
            begin_s, lacks = free_s[stream], -1
            for k in range(work.before_first[task], work.before_first[task + 1]):
                if not done[work.before[k]]:
                    lacks = work.before[k]
                    break
                begin_s = max(begin_s, finish_s[work.before[k]] + work.delay_s[k])
            if lacks >= 0:
                next_sleeper[stream], sleeper[lacks] = sleeper[lacks], stream
                break
            start_s[task] = begin_s
            finish_s[task] = start_s[task] + work.work_s[task]
            free_s[stream] = finish_s[task] + work.hold_s[task]
            done[task] = True
            n_ran += 1
            cursor[stream] += 1
            waking = sleeper[task]
            while waking >= 0:
                awake[n_awake] = waking
                n_awake += 1
                waking = next_sleeper[waking]
    return n_ran


@compiled
def run_events(work: Work, place: Place, start_s: Floats, finish_s: Floats, turn: Ints) -> int:  # noqa: C901, PLR0912, PLR0915
    """Start, end and turn of every task, event by event; returns the number of tasks that ran.

    All events of one moment are handled before any stream picks its next task, so that what is ready at the
    same time is taken in the tasks' order.
    """
    n, n_streams = len(work.work_s), len(place.device)
    work_s, hold_s, stream_of, link_of = work.work_s, work.hold_s, work.stream, work.link
    weight, order, stream_first, delay_s = work.weight, work.order, work.stream_first, work.delay_s
    is_urgent = work.is_urgent
    device, is_comm, by_arrival, capacity = place.device, place.is_comm, place.by_arrival, place.capacity
    device_first, device_streams, rate_overlapped = (
        place.device_first,
        place.device_streams,
        place.rate_overlapped,
    )
    slows = rate_overlapped[0] != 1.0 or rate_overlapped[1] != 1.0
    after_first, after, after_edge = _successors(n, work.before_first, work.before)
    floats, ints = np.zeros((n, N_FLOATS)), np.full((n, N_INTS), -1)
    heap, n_heap = np.empty(n, np.int64), 0
    cursor, running = stream_first[:-1].copy(), np.full(n_streams, -1)
    queue_head, queue_tail = np.full(n_streams, -1), np.full(n_streams, -1)
    touched, is_touched, n_touched = np.arange(n_streams), np.ones(n_streams, np.bool_), n_streams
    link_head, n_running = np.full(len(capacity), -1), np.zeros((len(device_first), 2), np.int64)
    arrived, n_arrived = np.empty(n, np.int64), 0
    for task in range(n):
        ints[task, PHASE], floats[task, SHARE], floats[task, OVERLAP] = WAITING, 1.0, 1.0
        ints[task, MISSING] = work.before_first[task + 1] - work.before_first[task]
        if ints[task, MISSING] == 0:
            arrived[n_arrived] = task
            n_arrived += 1
    now_s, n_started = 0.0, 0
    while True:
        while n_heap and floats[heap[0], KEY_S] == now_s:
            task = heap[0]
            n_heap -= 1
            if n_heap:
                heap[0] = heap[n_heap]
                ints[heap[0], AT] = 0
                _down(heap, n_heap, floats, ints, 0)
            phase, stream, link = ints[task, PHASE], stream_of[task], link_of[task]
            if phase == ARRIVING:
                arrived[n_arrived] = task
                n_arrived += 1
                continue
            if phase == RUNNING:
                finish_s[task] = now_s
                ints[task, PHASE] = DONE
                if link >= 0:
                    _unlink(link_head, ints, link, task)
                    _share(heap, n_heap, floats, ints, link_head[link], weight, capacity[link], now_s)
                here = device[stream]
                if here >= 0 and slows:
                    was_both = n_running[here, 0] > 0 and n_running[here, 1] > 0
                    n_running[here, is_comm[stream]] -= 1
                    if was_both and n_running[here, is_comm[stream]] == 0:
                        for k in range(device_first[here], device_first[here + 1]):
                            other = running[device_streams[k]]
                            if other >= 0 and ints[other, PHASE] == RUNNING:
                                _retime(heap, n_heap, floats, ints, other, floats[other, SHARE], 1.0, now_s)
                for k in range(after_first[task], after_first[task + 1]):
                    next_task, arrives_s = after[k], now_s + delay_s[after_edge[k]]
                    ints[next_task, MISSING] -= 1
                    floats[next_task, READY_S] = max(floats[next_task, READY_S], arrives_s)
                    if ints[next_task, MISSING] == 0:
                        if floats[next_task, READY_S] > now_s:
                            ints[next_task, PHASE] = ARRIVING
                            floats[next_task, KEY_S] = floats[next_task, READY_S]
                            heap[n_heap], ints[next_task, AT] = next_task, n_heap
                            n_heap += 1
                            _up(heap, floats, ints, n_heap - 1)
                        else:
                            arrived[n_arrived] = next_task
                            n_arrived += 1
                if hold_s[task] > 0:
                    ints[task, PHASE] = HOLDING
                    floats[task, KEY_S] = now_s + hold_s[task]
                    heap[n_heap], ints[task, AT] = task, n_heap
                    n_heap += 1
                    _up(heap, floats, ints, n_heap - 1)
                    continue
            ints[task, PHASE] = DONE
            running[stream] = -1
            if not is_touched[stream]:
                is_touched[stream] = True
                touched[n_touched] = stream
                n_touched += 1
        while n_arrived:
            n_arrived -= 1
            task = arrived[n_arrived]
            stream = stream_of[task]
            ints[task, PHASE] = READY
            if by_arrival[stream]:
                if is_urgent[task]:
                    floats[task, READY_S] = -1.0
                _queue(queue_head, queue_tail, floats, ints, stream, task)
            if not is_touched[stream]:
                is_touched[stream] = True
                touched[n_touched] = stream
                n_touched += 1
        while n_touched:
            n_touched -= 1
            stream = touched[n_touched]
            is_touched[stream] = False
            if running[stream] >= 0:
                continue
            if by_arrival[stream]:
                task = _take(queue_head, queue_tail, ints, stream)
            elif cursor[stream] < stream_first[stream + 1] and ints[order[cursor[stream]], PHASE] == READY:
                task = order[cursor[stream]]
                cursor[stream] += 1
            else:
                task = -1
            if task < 0:
                continue
            running[stream], ints[task, PHASE] = task, RUNNING
            start_s[task], turn[task] = now_s, n_started
            n_started += 1
            here, link = device[stream], link_of[task]
            if here >= 0 and slows:
                mine = is_comm[stream]
                n_running[here, mine] += 1
                if n_running[here, 1 - mine] > 0:
                    floats[task, OVERLAP] = rate_overlapped[mine]
                    if n_running[here, mine] == 1:
                        for k in range(device_first[here], device_first[here + 1]):
                            other = running[device_streams[k]]
                            if other >= 0 and other != task and ints[other, PHASE] == RUNNING:
                                slow = rate_overlapped[is_comm[device_streams[k]]]
                                _retime(heap, n_heap, floats, ints, other, floats[other, SHARE], slow, now_s)
            floats[task, LEFT_S], floats[task, SINCE_S] = work_s[task], now_s
            floats[task, KEY_S] = now_s + work_s[task] / floats[task, OVERLAP]
            heap[n_heap], ints[task, AT] = task, n_heap
            n_heap += 1
            _up(heap, floats, ints, n_heap - 1)
            if link >= 0:
                ints[task, LINK_NEXT], ints[task, LINK_BACK] = link_head[link], -1
                if link_head[link] >= 0:
                    ints[link_head[link], LINK_BACK] = task
                link_head[link] = task
                _share(heap, n_heap, floats, ints, task, weight, capacity[link], now_s)
        if n_heap == 0:
            return n_started
        now_s = floats[heap[0], KEY_S]


@compiled
def _successors(n: int, before_first: Ints, before: Ints) -> tuple[Ints, Ints, Ints]:
    """Edges by the task that they leave: where each task's begin, the tasks they lead to, their numbers."""
    first = np.zeros(n + 1, np.int64)
    for need in before:
        first[need + 1] += 1
    for task in range(n):
        first[task + 1] += first[task]
    fill, ends, edges = first[:-1].copy(), np.empty(len(before), np.int64), np.empty(len(before), np.int64)
    for task in range(n):
        for k in range(before_first[task], before_first[task + 1]):
            at = fill[before[k]]
            ends[at], edges[at] = task, k
            fill[before[k]] += 1
    return first, ends, edges


@compiled
def _queue(head: Ints, tail: Ints, floats: Floats, ints: Ints, stream: int, task: int) -> None:
    """Queues by (moment, task)."""
    back = tail[stream]
    while back >= 0 and (
        floats[back, READY_S] > floats[task, READY_S]
        or (floats[back, READY_S] == floats[task, READY_S] and back > task)
    ):
        back = ints[back, QUEUE_BACK]
    front = ints[back, QUEUE_NEXT] if back >= 0 else head[stream]
    ints[task, QUEUE_BACK], ints[task, QUEUE_NEXT] = back, front
    if back >= 0:
        ints[back, QUEUE_NEXT] = task
    else:
        head[stream] = task
    if front >= 0:
        ints[front, QUEUE_BACK] = task
    else:
        tail[stream] = task


@compiled
def _take(head: Ints, tail: Ints, ints: Ints, stream: int) -> int:
    task = int(head[stream])
    if task >= 0:
        front = ints[task, QUEUE_NEXT]
        head[stream] = front
        if front >= 0:
            ints[front, QUEUE_BACK] = -1
        else:
            tail[stream] = -1
    return task


@compiled
def _unlink(head: Ints, ints: Ints, link: int, task: int) -> None:
    front, back = ints[task, LINK_NEXT], ints[task, LINK_BACK]
    if back >= 0:
        ints[back, LINK_NEXT] = front
    else:
        head[link] = front
    if front >= 0:
        ints[front, LINK_BACK] = back


@compiled
def _share(  # noqa: PLR0913, PLR0917
    heap: Ints,
    n_heap: int,
    floats: Floats,
    ints: Ints,
    first: int,
    weight: Floats,
    capacity: float,
    now_s: float,
) -> None:
    """All tasks on a link get their share of it; weights are summed afresh, so that no rounding stays."""
    flows, task = 0.0, first
    while task >= 0:
        flows += weight[task]
        task = ints[task, LINK_NEXT]
    task = first
    while task >= 0:
        share = 1.0 if flows <= capacity else capacity / flows
        _retime(heap, n_heap, floats, ints, task, share, floats[task, OVERLAP], now_s)
        task = ints[task, LINK_NEXT]


@compiled
def _retime(  # noqa: PLR0913, PLR0917
    heap: Ints, n_heap: int, floats: Floats, ints: Ints, task: int, share: float, overlap: float, now_s: float
) -> None:
    """A running task's speed changes, and with it its end."""
    if share == floats[task, SHARE] and overlap == floats[task, OVERLAP]:
        return
    done_s = floats[task, SHARE] * floats[task, OVERLAP] * (now_s - floats[task, SINCE_S])
    floats[task, LEFT_S] = max(0.0, floats[task, LEFT_S] - done_s)
    floats[task, SINCE_S], floats[task, SHARE], floats[task, OVERLAP] = now_s, share, overlap
    floats[task, KEY_S] = now_s + floats[task, LEFT_S] / (share * overlap)
    _up(heap, floats, ints, ints[task, AT])
    _down(heap, n_heap, floats, ints, ints[task, AT])


@compiled
def _up(heap: Ints, floats: Floats, ints: Ints, at: int) -> None:
    task = heap[at]
    key_s = floats[task, KEY_S]
    while at > 0:
        above = (at - 1) >> 1
        if floats[heap[above], KEY_S] <= key_s:
            break
        heap[at] = heap[above]
        ints[heap[at], AT] = at
        at = above
    heap[at], ints[task, AT] = task, at


@compiled
def _down(heap: Ints, n_heap: int, floats: Floats, ints: Ints, at: int) -> None:
    task = heap[at]
    key_s = floats[task, KEY_S]
    while 2 * at + 1 < n_heap:
        below = 2 * at + 1
        if below + 1 < n_heap and floats[heap[below + 1], KEY_S] < floats[heap[below], KEY_S]:
            below += 1
        if key_s <= floats[heap[below], KEY_S]:
            break
        heap[at] = heap[below]
        ints[heap[at], AT] = at
        at = below
    heap[at], ints[task, AT] = task, at
