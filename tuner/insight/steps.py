"""The best plan with every knob one step up and down: what changes, whether it fits, whether it was tried."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from objectives.metrics import Job
from search_spaces.errors import InvalidSpec
from search_spaces.plan import ENUMS, FLAGS, KNOB_NAMES, Plan, Plans, Schedule
from search_spaces.space import SearchSpace, SpaceSpec
from tuner.insight.beliefs import Priced, differences, fit_chances, price
from tuner.insight.content import Step
from tuner.samplers.goals import quantities
from tuner.samplers.posterior import Posterior


def one_step(
    job: Job, space: SpaceSpec, posterior: Posterior, best: Plan, *, metric: str, trials: Mapping[str, int]
) -> tuple[Step, ...]:
    """Every step of one knob from the best plan; both ends are priced by the closed form and the beliefs."""
    quantity = quantities([metric])[0]
    search = SearchSpace(job.model, job.cluster, job.workload, space)
    found = [_legal(search, best, knob, value) for knob, value in _steps(search, best)]
    plans = [step.plan for step in found if step.plan is not None]
    if not plans:
        return tuple(found)
    priced, start = (price(job, Plans.of(each), metric) for each in (plans, [best]))
    filled = iter(_filled(posterior, start, priced, quantity, [s for s in found if s.plan], trials))
    return tuple(next(filled) if step.plan is not None else step for step in found)


def _filled(
    posterior: Posterior, start: Priced, priced: Priced, quantity: int, steps: list[Step],
    trials: Mapping[str, int],
) -> Iterator[Step]:  # fmt: skip
    change, spread = differences(posterior, start, priced, quantity)
    fits = fit_chances(posterior, priced)
    for i, step in enumerate(steps):
        yield replace(
            step,
            change=float(change[i]),
            spread=float(spread[i]),
            fits=float(fits[i]),
            trial=trials.get(step.plan.key) if step.plan else None,
        )


def _steps(search: SearchSpace, best: Plan) -> Iterator[tuple[str, Any]]:
    """Each knob with the values one step away: the next ones of a number, every other one of a name."""
    for knob in KNOB_NAMES:
        if knob in ("first_layers", "last_layers"):
            continue
        values, now = list(search.choices[knob]), getattr(best, knob)
        if knob in ENUMS or knob in FLAGS:
            yield from ((knob, value) for value in values if value != now)
            continue
        below = [value for value in values if value < now]
        above = [value for value in values if value > now]
        yield from ((knob, value) for value in (*below[-1:], *above[:1]))
    for split in search.splits(best.pp):
        now = (best.first_layers, best.last_layers)
        if split != now and sum(abs(a - b) for a, b in zip(split, now, strict=True)) <= 1:
            yield "split", split


def _legal(search: SearchSpace, best: Plan, knob: str, value: Any) -> Step:
    """The step with the fewest other knobs moved along, or the rule that forbids it."""
    name, words = ("first_layers", f"{value[0]}/{value[1]}") if knob == "split" else (knob, _word(value))
    changed = dict(first_layers=value[0], last_layers=value[1]) if knob == "split" else {knob: value}
    why_not = ""
    for follow in _follow(search, best, changed):
        try:
            plan = replace(best, **(follow | changed))
            search.check(plan)
        except InvalidSpec as error:
            why_not = why_not or error.must
            continue
        moved = [
            each for each in follow if each not in changed and getattr(plan, each) != getattr(best, each)
        ]
        return Step(
            knob=name,
            value=words,
            plan=plan,
            moved=tuple(f"{each} {_word(getattr(plan, each))}" for each in moved),
        )
    return Step(knob=name, value=words, why_not=why_not)


def _follow(search: SearchSpace, best: Plan, changed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What else may have to move: the data parallelism that fills the devices, an even split, a schedule."""
    sizes = {name: changed.get(name, getattr(best, name)) for name in ("tp", "pp", "cp")}
    nodes, cluster = changed.get("nodes", best.nodes), search.context.cluster
    n_devices = nodes * cluster.devices_per_node if nodes else cluster.n_devices
    dp, rest = divmod(n_devices, sizes["tp"] * sizes["pp"] * sizes["cp"])
    base: dict[str, Any] = {} if rest or "dp" in changed else {"dp": dp}
    even = {"first_layers": 0, "last_layers": 0}
    yield base
    yield base | even
    yield base | even | {"vpp": 1, "schedule": Schedule.ONE_F_ONE_B}
    yield base | even | {"vpp": 2, "schedule": Schedule.INTERLEAVED}
    yield base | {"vpp": 1}
    yield base | {"sequence_parallel": sizes["tp"] > 1, "overlap_tp": False}
    yield base | even | {"vpp": 1, "schedule": Schedule.ONE_F_ONE_B, "sequence_parallel": sizes["tp"] > 1}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
