"""Samplers by name.  All propose rows of the candidate table, so they compare on equal terms."""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.rows import load_row

if TYPE_CHECKING:
    from objectives.metrics import Job
    from objectives.ranking import Candidates
    from tuner.samplers.candidates import CandidateSampler

SAMPLERS: Mapping[str, str] = MappingProxyType(
    {
        "meshtune": "tuner.samplers.model_based:MeshtuneSampler",
        "best_first": "tuner.samplers.best_first:BestFirstSampler",
        "tpe": "tuner.samplers.projected:ProjectedTPE",
        "gp": "tuner.samplers.projected:ProjectedGP",
        "random": "tuner.samplers.projected:ProjectedRandom",
    }
)

NEEDS: Mapping[str, str] = MappingProxyType({"gp": "torch"})  # what not every installation has


def check_sampler(name: str) -> None:
    """Whether the sampler can be made here, before any work is done for it.

    Raises
    ------
    UnknownName
        A name that `SAMPLERS` does not hold.
    InvalidSpec
        A package that it needs is not installed.
    """
    if name not in SAMPLERS:
        raise UnknownName("sampler", name, SAMPLERS)
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        hint = f"pip install 'meshtune[{package}]', or choose another sampler"
        raise InvalidSpec(f"the sampler {name!r} needs {package}", "none installed", hint=hint)


def make_sampler(
    name: str, *, candidates: "Candidates", metrics: tuple[str, ...], seed: int | None, job: "Job"
) -> "CandidateSampler":
    """The sampler of that name over a candidate table; its module is loaded only now.

    Raises
    ------
    UnknownName, InvalidSpec
        As `check_sampler` does.
    """
    check_sampler(name)
    sampler: CandidateSampler = load_row("sampler", name, SAMPLERS)(
        candidates, metrics=metrics, seed=seed, job=job
    )
    return sampler
