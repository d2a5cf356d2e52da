"""From flags to what a simulated step draws: jitter, stragglers, slow links, the load of experts."""

from collections.abc import Sequence
from typing import Any

from objectives.simulator.randomness import ExpertLoad, Randomness
from search_spaces.errors import InvalidSpec, check

Words = Sequence[str] | None


def chance_of(*, jitter: float, stragglers: Words, slow_links: Words, expert_load: str | None) -> Randomness:
    """What is drawn.

    Raises
    ------
    InvalidSpec
        A word that is no RANK=FACTOR, no load, or a number that cannot be.
    """
    return Randomness(
        jitter=jitter,
        slow_ranks=_factors("--straggler", stragglers),
        slow_links=_factors("--slow-link", slow_links),
        **_load(expert_load),
    )


def _factors(flag: str, words: Words) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for word in words or ():
        rank, equals, factor = word.partition("=")
        check(bool(equals) and rank.isdecimal(), f"{flag} must be RANK=FACTOR, as in 3=1.2", repr(word))
        check(int(rank) not in found, f"{flag} must name each rank once", repr(word))
        found[int(rank)] = _number(flag, factor)
    return tuple(found.items())


def _load(word: str | None) -> dict[str, Any]:
    """`uniform`, `zipf`, `zipf:1.2`, or shares `0.5,0.3,0.2`."""
    if word is None:
        return {}
    name, colon, exponent = word.partition(":")
    if name == ExpertLoad.ZIPF:
        exponents = {"zipf_exponent": _number("--expert-load", exponent)} if colon else {}
        return {"expert_load": ExpertLoad.ZIPF, **exponents}
    if word == ExpertLoad.UNIFORM:
        return {"expert_load": ExpertLoad.UNIFORM}
    must = "--expert-load must be uniform, zipf, zipf:EXPONENT or a share for every expert"
    check("," in word, must, repr(word))
    shares = tuple(_number("--expert-load", share) for share in word.split(","))
    return {"expert_load": ExpertLoad.HISTOGRAM, "histogram": shares}


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidSpec(f"{flag} must hold numbers", repr(text)) from None
