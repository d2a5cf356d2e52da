"""What an explanation of a study tells, free of how it is computed and how it looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from search_spaces.cluster import Constant
from search_spaces.plan import Plan
from tuner.report.content import Importance
from tuner.worth import Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One part of the prediction: by which factor trials say it is off, and how much of it they settled.

    `spread` is one standard deviation of the factor's logarithm, `settled` the share of the prior's variance
    that the trials took away, `share` the part's of the best plan's total.
    """

    part: str
    factor: float
    spread: float
    settled: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The best plan with one knob one step away.

    `change` and `spread` are of the logarithm of what is sought; None where no legal plan is there, and
    `why_not` says the rule.  `moved` are other knobs that had to follow.
    """

    knob: str
    value: str
    plan: Plan | None = None
    moved: tuple[str, ...] = ()
    change: float | None = None
    spread: float | None = None
    fits: float | None = None
    trial: int | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A plan that may be better than the best measured one, and how likely it is."""

    plan: Plan
    trial: int | None
    change: float
    spread: float
    fits: float
    overtakes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A constant that would make another plan best, were it `factor` times what the study assumes."""

    name: str
    constant: Constant
    factor: float
    plan: Plan

    @property
    def is_within_spread(self) -> bool:
        """Whether the constant's own spread reaches so far."""
        return max(self.factor, 1 / self.factor) <= 1 + self.constant.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """A study explained; `missing` says why there is no more, where there is not."""

    name: str
    objective: tuple[str, ...]
    quantity: str
    n_measured: int
    n_failed: int
    best: Plan | None = None
    best_trial: int | None = None
    worth: Worth | None = None
    missing: str = ""
    importance: tuple[Importance, ...] = ()
    shap: Mapping[str, float] = field(default_factory=dict)
    shap_best: Mapping[str, float] = field(default_factory=dict)
    shap_is_exact: bool = True
    corrections: Mapping[str, tuple[Correction, ...]] = field(default_factory=dict)
    known_constants: Mapping[str, Constant] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    rivals: tuple[Rival, ...] = ()
    turns: tuple[Turn, ...] = ()
    n_constants: int = 0
