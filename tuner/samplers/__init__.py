"""Samplers by name.  All propose rows of the candidate table, so they compare on equal terms."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from search_spaces.errors import UnknownName

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


def make_sampler(
    name: str, *, candidates: "Candidates", metrics: tuple[str, ...], seed: int | None, job: "Job"
) -> "CandidateSampler":
    """The sampler of that name over a candidate table; its module is loaded only now.

    Raises
    ------
    UnknownName
        A name that `SAMPLERS` does not hold.
    """
    if name not in SAMPLERS:
        raise UnknownName("sampler", name, SAMPLERS)
    module, _, attribute = SAMPLERS[name].partition(":")
    sampler: CandidateSampler = getattr(import_module(module), attribute)(
        candidates, metrics=metrics, seed=seed, job=job
    )
    return sampler
