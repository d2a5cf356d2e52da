"""Candidates' proxies as the surrogates see them: what a proxy teaches of the plans that it stands for.

    y(p) = offset + Σ_k (beta_k + e_k) share_k(p) + g(p) + noise          p: a proxy of the plan x

    share_k   of the proxy's own predicted step, by the same cost model for the proxy's own job
    beta_k    of the plans themselves: what a proxy shows of a part holds for all plans that spend time in it
    e_k       the proxy's own: a part of a smaller job is off by a little else; its spread is `OWN` times that
              of beta_k, so a proxy's reading never counts as the plan's own
    g         correlates with the plan's by r(DISTANCE), as a plan so many knob steps away would; farther if
              inner degrees had to shrink, but not by fewer copies (dp) alone

A code names a candidate (its row) or one of its proxies (row + number of rows times 1 + which kind).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from objectives.cost.step import estimate
from objectives.metrics import Job
from runners.proxies import proxy
from runners.torch_trial.twin import Twin
from search_spaces.errors import InvalidSpec
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.plan import Floats, Plans
from tuner.features import (
    MEMORY_PARTS,
    TIME_PARTS,
    knob_columns,
    knob_features,
    memory_shares,
    time_shares,
)
from tuner.samplers.candidates import CandidateTable

# Assumed.  Fewer devices speak over other links, so what they show of an exchange counts for less.
OWN = 0.2
OWN_OF_EXCHANGES = 0.6
EXCHANGES = ("tp_comm_s", "cp_comm_s", "ep_comm_s", "pp_comm_s", "dp_comm_s")
DISTANCE = {Fidelity.FEW_LAYERS: 1.0, Fidelity.FEW_DEVICES: 1.5}
PARTS = (TIME_PARTS, MEMORY_PARTS)
COPIES = [column for name in ("dp", "zero", "overlap_dp") for column in knob_columns()[name]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PricedProxy:
    """A proxy with what is predicted of it; `features` are those of its time and of its memory."""

    twin: Twin
    step_s: float
    peak_bytes: float
    features: tuple[Floats, Floats]

    @property
    def n_devices(self) -> int:
        """Devices that it holds."""
        return self.twin.plan.world_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProxyTable:
    """The proxies of a table's candidates, each made and priced once, when it is asked for."""

    job: Job
    table: CandidateTable
    settings: Fidelities
    _found: dict[int, PricedProxy | None] = field(default_factory=dict)

    @property
    def kinds(self) -> Sequence[Fidelity]:
        """Kinds of proxies, in the order of the study's setting."""
        return self.settings.proxies

    def code(self, row: int, fidelity: Fidelity) -> int:
        """The code of a candidate, or of its proxy."""
        if fidelity is Fidelity.FULL:
            return row
        return row + len(self.table) * (1 + self.kinds.index(fidelity))

    def find(self, row: int, fidelity: Fidelity) -> PricedProxy | None:
        """A candidate's proxy; None where it has none."""
        code = self.code(row, fidelity)
        if code not in self._found:
            self._found[code] = self._price(row, fidelity)
        return self._found[code]

    def features(self, code: int, quantity: int) -> Floats:
        """Features of the proxy with that code, of time (0) or memory (1); shape (n_features,)."""
        which, row = divmod(code, len(self.table))
        found = self.find(row, self.kinds[which - 1])
        assert found is not None, "only proxies that exist have codes"
        return found.features[quantity]

    def _price(self, row: int, fidelity: Fidelity) -> PricedProxy | None:
        plan = self.table.candidates.plans.row(row)
        try:
            twin = proxy(self.job, plan, fidelity, self.settings)
        except InvalidSpec:
            return None
        priced, own = estimate(twin.job, Plans.of([twin.plan])), estimate(self.job, Plans.of([plan]))
        # A prior that was learned or simulated scales the plan's seconds; its proxy's alike.
        known = self.table.candidates.estimate
        scale = float(known.step_s[row] / own.step_s[0])
        shares = (time_shares(priced.time)[0], memory_shares(priced.memory)[0])
        return PricedProxy(
            twin=twin,
            step_s=float(priced.step_s[0]) * scale,
            peak_bytes=float(priced.peak_memory_bytes[0]),
            features=(
                self._features(row, twin, fidelity, shares[0], 0),
                self._features(row, twin, fidelity, shares[1], 1),
            ),
        )

    def _features(self, row: int, twin: Twin, fidelity: Fidelity, shares: Floats, quantity: int) -> Floats:
        which, parts = self.kinds.index(fidelity), PARTS[quantity]
        far = EXCHANGES if fidelity is Fidelity.FEW_DEVICES else ()
        blocks = np.zeros((len(self.kinds), len(parts)))
        blocks[which] = shares * [OWN_OF_EXCHANGES if name in far else OWN for name in parts]
        n = len(self.kinds)
        knobs = np.concatenate([knob_features(Plans.of([twin.plan]))[0], np.zeros(n)])
        knobs[COPIES] = self.table.knobs[row, COPIES]
        knobs[len(knobs) - n + which] = DISTANCE[fidelity]
        return np.concatenate([shares, blocks.ravel(), knobs])
