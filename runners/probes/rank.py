"""One rank of the probes: `python -m runners.probes.rank NUMBER`, the number that of an inherited pipe.

The first rank hears the cases from its parent and tells them to the others over their own process group.

    parent                          rank 0                                   other ranks
    facts?                ->        machine
    join                  ->        rendezvous through a file                <- join, from their parents
    case, window          ->        broadcast                          ->    measure, all at once
                          <-        readings of all ranks              <-    readings
    stop                  ->        broadcast                          ->    exit
"""

import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from objectives.outcome import tail
from runners.probes import kernels, together
from runners.probes.device import facts, open_device
from runners.probes.kernels import Measure
from runners.probes.timing import Stopwatch
from runners.probes.together import World
from runners.trial_server import die_with_parent

SILENCE_S = 120.0
TOGETHER = ("collective", "overlap")
MOST_READINGS = 240
# What torch raises where a device lacks a kernel or memory; of several ranks each says so by itself.
TROUBLE = (RuntimeError, TypeError, ValueError, NotImplementedError)


def serve(link: Connection) -> None:
    """Answer the parent, or follow the first rank, until told to stop."""
    world: World | None = None
    while True:
        told = json.loads(link.recv_bytes())
        if told["ask"] == "facts":
            _answer(link, facts(told["kind"]))
        elif told["ask"] == "join":
            world = join(told)
            _answer(link, {"joined": world.rank})
            if world.rank:
                _follow(world)
                return
        elif world is None or told["ask"] == "stop":
            if world is not None:
                _tell(world, told)
            return
        else:
            _tell(world, told)
            _answer(link, merged(told["kind"], _measure(world, told)))


def join(told: Mapping[str, Any]) -> World:
    """Meet the other ranks; a rank alone needs no process group."""
    torch.set_num_threads(int(told["threads"]))
    device = open_device(told["kind"], int(told["local_rank"]))
    rank, n_ranks = int(told["rank"]), int(told["ranks"])
    if n_ranks > 1:
        store = dist.FileStore(told["store"], n_ranks) if told["store"] else None
        # The cases travel over processors' own network, whatever the collectives use.
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=n_ranks, timeout=timedelta(seconds=SILENCE_S)
        )
    return World(rank=rank, n_ranks=n_ranks, device=device)


def merged(kind: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """All ranks' readings as one: of a collective the last rank's end, else every rank's."""
    errors = [each["error"] for each in answers if "error" in each]
    if errors:
        return {"error": errors[0]}
    names = list(dict.fromkeys(name for each in answers for name in each["readings"]))
    columns = {
        name: [each["readings"][name] for each in answers if name in each["readings"]] for name in names
    }
    if kind == "collective":
        return {
            "readings": {
                name: [max(row) for row in zip(*found, strict=True)] for name, found in columns.items()
            }
        }
    return {
        "readings": {
            name: _thinned([each for own in found for each in own]) for name, found in columns.items()
        }
    }


def _thinned(values: list[float]) -> list[float]:
    step = -(-len(values) // MOST_READINGS)
    return values[:: max(step, 1)]


def _follow(world: World) -> None:
    while (told := _tell(world, None))["ask"] == "case":
        _measure(world, told)


def _measure(world: World, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every rank's answer, at rank 0; the others' lists are empty.

    Ranks that cannot prepare say so before any of them starts: one missing would stop the others for ever.
    """
    prepared = _prepared(world, told)
    failed = isinstance(prepared, str)
    if world.n_ranks > 1 and world.agree(float(failed)):
        return _collect(world, {"error": prepared} if failed else {"readings": {}})
    if isinstance(prepared, str):
        return [{"error": prepared}]
    try:
        answer: dict[str, Any] = {"readings": prepared(_stopwatch(world, told))}
    except TROUBLE as error:
        answer = {"error": _sentence(error)}
    return _collect(world, answer)


def _prepared(world: World, told: Mapping[str, Any]) -> Measure | str:
    try:
        if told["kind"] in TOGETHER:
            return together.prepare(told["kind"], told["what"], world)
        return kernels.prepare(told["kind"], told["what"], world.device)
    except TROUBLE as error:
        return _sentence(error)


def _sentence(error: Exception) -> str:
    return tail(str(error)).splitlines()[0] if str(error) else type(error).__name__


def _stopwatch(world: World, told: Mapping[str, Any]) -> Stopwatch:
    device, window_s = world.device, float(told["window_s"])
    watch = Stopwatch(clock=device.clock, synchronize=device.synchronize, window_s=window_s)
    if world.n_ranks == 1:
        return watch
    agree = {"agree": world.agree} if told["kind"] in TOGETHER else {}
    return Stopwatch(
        clock=device.clock,
        synchronize=device.synchronize,
        window_s=window_s,
        line_up=dist.barrier,
        **agree,
    )


def _tell(world: World, told: Mapping[str, Any] | None) -> dict[str, Any]:
    """The first rank's message, known to all."""
    if world.n_ranks == 1:
        return dict(told or {})
    text = torch.frombuffer(bytearray(json.dumps(told), "utf-8"), dtype=torch.uint8) if told else None
    length = torch.tensor([0 if text is None else len(text)])
    dist.broadcast(length, 0)
    buffer = torch.zeros(int(length), dtype=torch.uint8) if text is None else text
    dist.broadcast(buffer, 0)
    message: dict[str, Any] = json.loads(bytes(buffer.tolist()))
    return message


def _collect(world: World, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's answer as text, padded to the longest, at rank 0."""
    if world.n_ranks == 1:
        return [answer]
    text = json.dumps(answer).encode()
    longest = int(world.agree(float(len(text))))
    own = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
    others = [torch.empty_like(own) for _ in range(world.n_ranks)] if world.rank == 0 else None
    dist.gather(own, others, dst=0)
    return [json.loads(bytes(each.tolist())) for each in others or []]


def _answer(link: Connection, answer: Mapping[str, Any]) -> None:
    link.send_bytes(json.dumps(answer).encode())


def main() -> None:
    """Entry point; it leaves without any clean-up, which could wait for ranks that are gone."""
    die_with_parent()
    status = 1
    try:
        serve(Connection(int(sys.argv[1])))
        status = 0
    except (EOFError, ConnectionError):
        status = 0  # the parent is gone
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
