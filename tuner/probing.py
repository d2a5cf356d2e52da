"""`calibrate` without runs: measures this machine, or a rank of an allocation, and fits a cluster to it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from runners.probes.allocation import Place, place_in
from runners.probes.baseline import baseline
from runners.probes.cases import Case, Facts, cases_for
from runners.probes.crew import Crew, Interrupted, check_torch
from runners.probes.fits import Fitted, fit_machine
from runners.probes.layout import groups_of
from runners.probes.predictions import Comparison, compare
from runners.probes.record import ProbesFile, beside
from runners.probes.session import Ended, OnStep, Session
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import RunnerError, check
from search_spaces.units import GIB, gib

DEFAULT_BUDGET_S = 120.0
MOST_RANKS = 256  # processes that one machine is asked to start
MIN_PROCESS_BYTES = 0.5 * GIB  # a Python process with torch loaded, and the probes' own tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure: how long, how many devices at once, on processors or accelerators, from what known."""

    out: Path
    cluster: str | None = None
    budget_s: float = DEFAULT_BUDGET_S
    n_devices: int | None = None
    kind: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check(
            0 < self.budget_s < float("inf"), "the budget must be a positive number of seconds", self.budget_s
        )
        n = self.n_devices
        check(n is None or 1 <= n <= MOST_RANKS, f"--devices must be from 1 to {MOST_RANKS}", n)
        check(self.kind in (None, "cpu", "cuda"), "--on must be cpu or cuda", repr(self.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """A machine, what was asked of it, and what came of it."""

    facts: Facts
    n_ranks: int
    file: ProbesFile
    cases: tuple[Case, ...]
    ended: Ended
    fitted: Fitted
    comparisons: tuple[Comparison, ...]

    @property
    def missing(self) -> list[str]:
        """Probes without a result that were not tried or not reached."""
        known = {*self.file.results, *self.file.failed}
        return [case.key for case in self.cases if case.key not in known]


def probe(wanted: Wanted, *, stopped: Callable[[], bool], on_step: OnStep) -> ProbeReport | None:
    """Measure for the budget, once all ranks have met, and fit; None in an allocation's other ranks.

    Raises
    ------
    InvalidSpec
        PyTorch is not installed, no such device is here, or earlier probes are of another machine.
    RunnerError
        No probe gave readings.
    Interrupted
        The user stopped it; what was measured is kept.
    """
    check_torch()
    place = place_in(os.environ, wanted.out)
    must = "in an allocation every rank is a device; --devices must be left out"
    check(place is None or wanted.n_devices is None, must, wanted.n_devices)
    if wanted.cluster is not None:
        load_cluster(wanted.cluster, 1)  # a slip in its name is told before anything starts
    leads = place is None or place.leads
    file = ProbesFile.at(beside(wanted.out), fresh=wanted.fresh) if leads else None
    with Crew(kind=wanted.kind, place=place, stopped=stopped, n_expected=wanted.n_devices or 1) as crew:
        facts = crew.facts
        n_ranks = _n_ranks(wanted, place, facts)
        if file is None:
            crew.join(n_ranks)
            crew.wait()
            return None
        file.belongs_to(facts, n_ranks)
        n_local = place.n_local if place else n_ranks
        known = baseline(wanted.cluster, facts, n_ranks=n_ranks, n_local=n_local)
        cases = cases_for(facts, groups_of(known.cluster, n_ranks))
        ended = Ended.DONE
        if any(case.key not in file.results for case in cases):
            crew.join(n_ranks)
            day = date.today().isoformat()
            session = Session(
                ranks=crew,
                file=file,
                budget_s=wanted.budget_s,
                start_s=time.monotonic(),
                on_step=on_step,
                date=day,
            )
            ended = session.run(cases)
    if ended is Ended.INTERRUPTED:
        raise Interrupted
    if not file.results:
        why = next(iter(file.failed.values()), "the budget ended before the first")
        raise RunnerError("a probe must give readings", why, hint="a larger --budget-s gives them time")
    fitted = fit_machine(known, file.results, facts=facts, n_ranks=n_ranks, name=wanted.out.stem)
    return ProbeReport(
        facts=facts,
        n_ranks=n_ranks,
        file=file,
        cases=tuple(cases),
        ended=ended,
        fitted=fitted,
        comparisons=tuple(compare(fitted.before, fitted.cluster, file.results)),
    )


def _n_ranks(wanted: Wanted, place: Place | None, facts: Facts) -> int:
    if place is not None:
        return place.n_ranks
    n = wanted.n_devices or facts.n_devices
    must = f"--devices must be at most the {facts.n_devices} accelerators here"
    check(facts.on_cpu or n <= facts.n_devices, must, n)
    most = max(int(facts.memory_bytes / MIN_PROCESS_BYTES), 1) if facts.on_cpu else n
    check(
        n <= most,
        f"--devices must be at most {most}, so that each process has {gib(MIN_PROCESS_BYTES):g} GiB",
        n,
    )
    return n
