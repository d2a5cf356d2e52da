"""What a calibrated model still gets wrong, over many jobs: learned where there is data, gated elsewhere.

    log(measured / calibrated) = kept share(x) m(x) + noise,    std(x) = spread(x) widening(x)

    m, spread   `tuner.surrogate`: a Gaussian process over the prediction's parts, the knobs and the job
    kept        the share of m that predicts rows best from the others: 0 where it does not help
    share       1 at values that were tried, less at new ones (`tuner.gate`): there the calibrated model stays

Spreads are checked against the rows themselves, each predicted from the others: where the stated 80 % hold
more or less than that, all spreads are scaled.  Few rows are not believed fully in this.  No spread is less
than that of a plan that is run again.
"""

from typing import Any, Self

import numpy as np
from scipy.stats import t as student
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from search_spaces.plan import Floats
from tuner.gate import NORMAL_QUANTILE, QUANTILE, SHARES_TRIED, HeldBack, gate_of, passed
from tuner.surrogate import LogRatioSurrogate

ROWS_TO_BELIEVE = 20.0  # rows at which half of what they say about the spreads is believed: assumed
FREEDOM = 0.5  # degrees of freedom a row brings, as the spreads are chosen from the rows too: assumed
OFFSET_STD = 0.1  # assumed: a calibrated model is off by no more on the whole
# Measured: two runs of one plan differ by 1.5 % (dgxc) and 4.7 % (InternEvo) in the median; normal noise of
# this spread lies between them.  Rows that were tried once each cannot tell it.
REPEATED_STD = 0.03
MOST_ROWS = 128  # on which the spreads are chosen; beyond, the errors on benchmarks/data stay the same


class GatedResidual(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Regressor of log(measured / calibrated); X as `LogRatioSurrogate` has it, with the job's columns last.

    `predict(return_std=True)` gives the mean and the spread of a new measurement, in log units.  Beyond the
    data the mean goes to 0, as far as the data say that it must.
    """

    def __init__(self, *, n_shares: int = 0, is_gated: bool = True) -> None:
        self.n_shares = n_shares
        self.is_gated = is_gated

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from measured log ratios.

        Parameters
        ----------
        X : shape (n, n_shares + n_knobs + n_job)
        y : shape (n,), log(measured / calibrated)
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        model = LogRatioSurrogate(n_shares=self.n_shares, offset_std=OFFSET_STD, most_rows=MOST_ROWS)
        self.model_ = model.fit(X, y)
        held = self.model_.held_back()
        expected = self.model_.targets_ - held.weighted / np.diagonal(held.precision)
        self.kept_ = _kept(y, expected) if self.is_gated else 1.0
        self.axes_ = gate_of(X[:, self.n_shares :], self.model_.targets_, held) if self.is_gated else ()
        self.scale_ = _scale(self.model_, y, held)
        return self

    def predict(self, X: Any, *, return_std: bool = False) -> Any:
        """Mean of the log ratio, and with `return_std` the spread of a new measurement; shapes (n,)."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        mean, std = self.model_.predict(X, return_std=True)
        share, widening = self._passed(X)
        gated = self.kept_ * share * mean
        if not return_std:
            return gated
        return gated, np.hypot(np.maximum(std * self.scale_ * widening, REPEATED_STD), mean - gated)

    def trust(self, X: Any) -> Floats:
        """How near each row is to what was learned from: 1 at values that were tried; shape (n,)."""
        check_is_fitted(self, "model_")
        return self._passed(validate_data(self, X, dtype=np.float64, reset=False))[0]

    def _passed(self, X: Floats) -> tuple[Floats, Floats]:
        if not self.is_gated:
            return np.ones(len(X)), np.ones(len(X))
        return passed(self.axes_, X[:, self.n_shares :])


def _kept(y: Floats, expected: Floats) -> float:
    """The share of what the others expect of each row that leaves the least median error."""
    return min(SHARES_TRIED, key=lambda share: float(np.median(np.abs(y - share * expected))))


def _scale(model: LogRatioSurrogate, y: Floats, held: HeldBack) -> float:
    """What the spreads are multiplied with, so that the stated share of rows left out lies inside.

    Source
    ------
    Jackknife+ in its simplest form: Barber et al. (2021), Annals of Statistics 49; Student's quantile for few
    rows.
    """
    n = len(y)
    few = float(student.ppf(0.5 + QUANTILE / 2, max(FREEDOM * n, 1.0))) / NORMAL_QUANTILE
    variance = 1.0 / np.diagonal(held.precision)
    mean = model.targets_ - held.weighted * variance
    spread = np.sqrt(np.maximum(variance - model.variances_, 0.0) + model.noise_std_**2)
    usual = float(np.quantile(np.abs(y - mean) / spread, QUANTILE)) / NORMAL_QUANTILE
    return float(few * max(usual / few, 1e-3) ** (n / (n + ROWS_TO_BELIEVE)))
