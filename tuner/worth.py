"""What more trials would be worth: how likely, and by how much, an untried plan beats the best measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

WORTH_ATTRIBUTE = "worth"
BETTER_BY = 0.02  # a difference that the noise of a few short steps hardly shows is not worth a trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What the trials so far say of those to come.

    `probability` is that some plan without an outcome saves more than `better_by` of what the best measured
    one takes (step seconds, or bytes); of a front, that it adds a point so far outside it.  `expected_gain`
    is the share that the best of them saves in the mean, nothing where none does.
    """

    better_by: float
    probability: float
    expected_gain: float
    n_trials: int
    n_untried: int


def worth_document(worth: Worth | None) -> dict[str, Any] | None:
    """As a study stores it and programs read it."""
    return None if worth is None else asdict(worth)


def stored_worth(attributes: Mapping[str, Any]) -> Worth | None:
    """What the latest driver wrote; None where there is nothing, or nothing that can be read."""
    kept = attributes.get(WORTH_ATTRIBUTE)
    names = {each.name for each in fields(Worth)}
    return Worth(**kept) if isinstance(kept, Mapping) and kept.keys() == names else None
