"""Error sentences: what must hold, what was given, the way out."""

import pickle

import pytest

from search_spaces.cluster_presets import device_names
from search_spaces.errors import InvalidSpec, MeshtuneError, UnknownName, check, nearest_name, sentence


@pytest.mark.parametrize(
    ("given", "known", "nearest"),
    [
        ("h100", device_names(), "h100-80"),
        ("h20", device_names(), "h200"),
        ("analitic", ["analytic", "simulated"], "analytic"),
        ("llama-3", ["llama-2-7b", "llama-3-70b"], "llama-3-70b"),
        ("zzz", ["analytic", "simulated"], None),
        ("", ["analytic"], None),
    ],
)
def test_the_nearest_name_starts_with_the_given_one_or_is_the_most_alike(given, known, nearest):
    assert nearest_name(given, known) == nearest


def test_a_sentence_has_what_must_hold_what_was_given_and_the_way_out():
    assert sentence("tp must be even", "3", hint="use 4") == "tp must be even; got 3.\nhint: use 4"
    assert sentence("tp must be even") == "tp must be even."


def test_an_unknown_name_lists_the_known_ones_and_suggests_one():
    with pytest.raises(
        UnknownName, match=r"device must be one of a100, h100; got 'h10'\.\nhint: did you mean 'h100'\?"
    ):
        raise UnknownName("device", "h10", ["h100", "a100"])


def every_error(kind=MeshtuneError):
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in every_error(child))]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_crosses_a_process_border_unchanged(kind):
    error = (
        UnknownName("device", "h10", ["h100"])
        if kind is UnknownName
        else kind("must", "given", hint="way out")
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.hint) == (kind, str(error), error.hint)


def test_a_check_that_holds_is_silent_and_one_that_fails_is_a_sentence():
    check(True, "must", "given")
    with pytest.raises(InvalidSpec, match="must; got 3"):
        check(False, "must", 3)
