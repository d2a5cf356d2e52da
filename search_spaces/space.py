"""Every legal plan of a job, in chunks, and a ledger of what removed the others.

Enumeration sets one knob after another over all partial plans at once and applies each rule as soon as its
knobs are set.  A partial plan that dies takes with it all plans it would have become, and the ledger counts
those.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.cluster import ClusterSpec
from search_spaces.columns import constant, joined, repeated, taken
from search_spaces.errors import InvalidSpec, NoLegalPlan
from search_spaces.first_names import NAMED_ONCE, all_names
from search_spaces.knobs import OPT_IN, ORDER, asked_choices, default_choices, default_splits
from search_spaces.model import ModelSpec
from search_spaces.plan import KNOB_NAMES, Plan, Plans, column
from search_spaces.relations import parse_relations
from search_spaces.rule import Context, Rule, devices_asked
from search_spaces.rules import RULES, broken_rules
from search_spaces.workload import Workload

Columns = dict[str, NDArray[Any]]
CHUNK_ROWS = 131_072  # so many that what a piece costs whatever its length hardly counts
WHERE = "where"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSpec:
    """What a user narrows: knob -> the values allowed; a knob not named keeps its full list.

    Under `where` are relations between knobs, as text (`search_spaces.relations`).
    """

    narrowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Mapping[str, object]) -> "SpaceSpec":
        """From a [space] table; unknown knobs and values are errors that suggest the nearest name."""
        narrowed = {name: asked_choices(name, values) for name, values in table.items() if name != WHERE}
        if WHERE in table:
            narrowed[WHERE] = tuple(map(str, parse_relations(table[WHERE])))
        return cls(narrowed=narrowed)


@dataclass(slots=True)
class Tally:
    """Plans seen while enumerating: all of them, and those that each rule removed."""

    enumerated: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    last_rule: str = ""

    def remove(self, rule: str, n_plans: int) -> None:
        """Count plans that a rule removed."""
        if n_plans:
            self.removed[rule] = self.removed.get(rule, 0) + n_plans
            self.last_rule = rule


class SearchSpace:
    """Knobs and rules of one job."""

    def __init__(self, model: ModelSpec, cluster: ClusterSpec, workload: Workload, spec: SpaceSpec) -> None:
        self.context = Context(model=model, cluster=cluster, workload=workload)
        asked = self.narrowed = dict(spec.narrowed)
        relations = parse_relations(list(asked.pop(WHERE, ())))
        self._relations = [each.rule(self.context) for each in relations]
        once = [each for name, each in NAMED_ONCE.items() if 0 in asked.get(name, ())]
        self._rules_at = tuple(
            (*rules, *_set_last_at(depth, [*once, *self._relations])) for depth, rules in enumerate(RULES_AT)
        )
        self._asked_splits = self._splits_asked(asked)
        self.choices = {
            name: tuple(asked.get(name, default_choices(self.context, name)))
            for name in ORDER
            if name != "split"
        }
        off = {name for name, value in OPT_IN.items() if self.choices[name] == (value,)}
        self._rules_at = tuple(
            tuple(rule for rule in rules if not (rule.of_opt_in and set(rule.knobs) & OPT_IN.keys() <= off))
            for rules in self._rules_at
        )
        if "dp" not in asked:
            self.choices["dp"] = ()

    @staticmethod
    def _splits_asked(asked: Mapping[str, tuple[Any, ...]]) -> list[tuple[int, int]] | None:
        if not {"first_layers", "last_layers"} & set(asked):
            return None
        return [(a, b) for a in asked.get("first_layers", (0,)) for b in asked.get("last_layers", (0,))]

    def splits(self, pp: int) -> list[tuple[int, int]]:
        """(first_layers, last_layers) tried with pp stages."""
        return self._asked_splits or default_splits(self.context.model.n_layers, pp)

    def chunks(self, tally: Tally | None = None) -> Iterator[Plans]:
        """Legal plans in pieces of at most about CHUNK_ROWS rows, in a fixed order.

        Raises
        ------
        NoLegalPlan
            After the last piece, if there was none; says which rule removed the last plans.
        """
        tally = tally if tally is not None else Tally()
        found, held = False, _Held()
        for columns in self._grow({}, 1, 0, tally):
            tally.enumerated += len(columns["tp"])
            found = found or len(columns["tp"]) > 0
            if held.add(columns) >= CHUNK_ROWS:
                yield held.release()
        if held.n_rows:
            yield held.release()
        if not found:
            raise NoLegalPlan(
                "at least one plan must pass every rule",
                f"none of {tally.enumerated} plans",
                hint=f"the last ones were removed by: {tally.last_rule}",
            )

    def _grow(self, columns: Columns, n_rows: int, depth: int, tally: Tally) -> Iterator[Columns]:
        """Set the remaining knobs of partial plans, depth first over pieces small enough to finish."""
        if depth == len(ORDER):
            yield columns
            return
        knob = ORDER[depth]
        columns, n_rows = self._set(columns, n_rows, knob)
        columns, n_rows = self._apply_rules(columns, n_rows, depth, tally)
        if not n_rows:
            return
        step = max(CHUNK_ROWS // self._fan_out(depth + 1), 1)
        for start in range(0, n_rows, step):
            piece = columns if n_rows <= step else {k: v[start : start + step] for k, v in columns.items()}
            yield from self._grow(piece, min(step, n_rows - start), depth + 1, tally)

    def _fan_out(self, depth: int) -> int:
        """Most plans that one partial plan becomes when the knob of that depth is set."""
        if depth == len(ORDER):
            return 1
        if ORDER[depth] == "split":
            return max(len(self.splits(pp)) for pp in self.choices["pp"])
        return len(self.choices[ORDER[depth]]) or 1

    def _set(self, columns: Columns, n_rows: int, knob: str) -> tuple[Columns, int]:
        """Partial plans times the values of one more knob."""
        if knob == "split":
            return self._set_split(columns)
        if knob == "dp" and not self.choices["dp"]:
            devices = devices_asked(self.context, columns)
            rest = np.maximum(devices // (columns["tp"] * columns["pp"] * columns["cp"]), 1)
            return {**columns, "dp": rest}, n_rows
        values = column(self.choices[knob], knob)
        if len(values) == 1:  # nothing grows
            return {**columns, knob: constant(values[0], n_rows)}, n_rows
        n_grown = n_rows * len(values)
        grown = {name: repeated(each, len(values), n_grown) for name, each in columns.items()}
        grown[knob] = np.tile(values, n_rows)
        return grown, n_grown

    def _set_split(self, columns: Columns) -> tuple[Columns, int]:
        splits = {int(pp): self.splits(int(pp)) for pp in np.unique(columns["pp"])}
        counts = np.array([len(splits[int(pp)]) for pp in columns["pp"]])
        grown = {name: repeated(values, counts, int(counts.sum())) for name, values in columns.items()}
        pairs = np.array([pair for pp in columns["pp"] for pair in splits[int(pp)]], dtype=np.int64).reshape(
            -1, 2
        )
        return {**grown, "first_layers": pairs[:, 0], "last_layers": pairs[:, 1]}, len(pairs)

    def _apply_rules(self, columns: Columns, n_rows: int, depth: int, tally: Tally) -> tuple[Columns, int]:
        """Drop partial plans that break a rule whose last knob was just set."""
        for rule in self._rules_at[depth]:
            held = np.broadcast_to(np.asarray(rule.holds(self.context, columns), dtype=bool), (n_rows,))
            if held.all():
                continue
            dead_pp = columns["pp"][~held] if "pp" in columns else None
            rows = np.flatnonzero(held)
            lost = self._completions(dead_pp, n_rows - len(rows), depth)
            tally.remove(rule.name, lost)
            tally.enumerated += lost
            columns = {name: taken(values, rows) for name, values in columns.items()}
            n_rows = len(rows)
        return columns, n_rows

    def _completions(self, dead_pp: NDArray[Any] | None, n_dead: int, depth: int) -> int:
        """Whole plans that partial ones would have become."""
        rest = ORDER[depth + 1 :]
        plain = prod(len(self.choices[name]) or 1 for name in rest if name != "split")
        if "split" not in rest:
            return n_dead * plain
        if dead_pp is None:
            pps = self.choices["pp"]
            return n_dead * plain * sum(len(self.splits(pp)) for pp in pps) // len(pps)
        values, counts = np.unique(dead_pp, return_counts=True)
        return plain * sum(len(self.splits(int(pp))) * int(n) for pp, n in zip(values, counts, strict=True))

    def holds(self, plan: Plan) -> bool:
        """Whether the plan keeps every rule, and every narrowed knob is one of the values asked for.

        A plan that has two names may be asked for under either.
        """
        return any(self._holds(each) for each in all_names(self.context, plan))

    def _holds(self, plan: Plan) -> bool:
        columns = {name: column([getattr(plan, name)], name) for name in KNOB_NAMES}
        asked = all(getattr(plan, name) in values for name, values in self.narrowed.items())
        related = all(np.all(rule.holds(self.context, columns)) for rule in self._relations)
        return asked and related and not broken_rules(self.context, columns)

    def check(self, plan: Plan) -> None:
        """Raise `InvalidSpec` with the first rule that a plan breaks."""
        columns = {name: column([getattr(plan, name)], name) for name in KNOB_NAMES}
        broken = broken_rules(self.context, columns)
        if broken:
            raise InvalidSpec(f"a plan must keep the rule: {broken[0]}", plan.key)


class _Held:
    """Small pieces put together: a piece costs the cost model a fixed time whatever its length."""

    def __init__(self) -> None:
        self.pieces: list[Columns] = []
        self.n_rows = 0

    def add(self, columns: Columns) -> int:
        """Keep one more piece; rows held so far."""
        self.pieces.append(columns)
        self.n_rows += len(columns["tp"])
        return self.n_rows

    def release(self) -> Plans:
        """All pieces as one, and none held any more."""
        pieces, self.pieces, self.n_rows = self.pieces, [], 0
        if len(pieces) == 1:
            return Plans(**pieces[0])
        n_rows = sum(len(piece["tp"]) for piece in pieces)
        return Plans(**{name: joined([piece[name] for piece in pieces], n_rows) for name in KNOB_NAMES})


def _knobs_set(depth: int) -> set[str]:
    names: set[str] = set()
    for knob in ORDER[: depth + 1]:
        names |= {"first_layers", "last_layers"} if knob == "split" else {knob}
    return names


def _set_last_at(depth: int, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules whose last knob is set at that depth."""
    now, before = _knobs_set(depth), _knobs_set(depth - 1)
    return tuple(rule for rule in rules if set(rule.knobs) <= now and not set(rule.knobs) <= before)


# Each rule belongs to the depth at which its last knob is set.
RULES_AT = tuple(_set_last_at(depth, RULES) for depth in range(len(ORDER)))
