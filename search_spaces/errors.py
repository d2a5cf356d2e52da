"""Everything that can go wrong, as one tree with one sentence form.

    MeshtuneError
    ├── InvalidSpec(ValueError)     the caller's trouble: a description that cannot be true
    │   ├── UnknownName             a name that is in no table (the nearest one is suggested)
    │   ├── NoLegalPlan             the rules leave nothing; says which rule removed the last plans
    │   ├── CannotExport            a launcher lacks a knob that the plan uses
    │   └── StudyChanged            a study is resumed with other inputs than it was created from
    ├── NothingFits                 the search ran, and no plan fits in memory (exit code 1)
    └── RunnerError(RuntimeError)   the machine's trouble
        └── StorageError            the study's storage cannot be reached, read or written

A plan that fails when tried is none of these: it is an outcome (`objectives.outcome.Failed`).
"""

from collections.abc import Iterable
from difflib import get_close_matches


def sentence(must: str, given: str = "", *, hint: str = "") -> str:
    """One error sentence: what must hold, what was given, and the way out on a second line."""
    text = f"{must}; got {given}." if given else f"{must}."
    return f"{text}\nhint: {hint}" if hint else text


class MeshtuneError(Exception):
    """Root of the tree; its text is always built by `sentence`."""

    def __init__(self, must: str, given: str = "", *, hint: str = "") -> None:
        super().__init__(sentence(must, given, hint=hint))
        self.must, self.given, self.hint = must, given, hint

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the three parts, so that errors cross process borders."""
        return (_rebuild, (type(self), self.must, self.given, self.hint))


def _rebuild(kind: type[MeshtuneError], must: str, given: str, hint: str) -> MeshtuneError:
    error = kind.__new__(kind)
    MeshtuneError.__init__(error, must, given, hint=hint)
    return error


class InvalidSpec(MeshtuneError, ValueError):
    """A description that cannot be true."""


MOST_NAMES = 40


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name a user most likely meant: one that starts with what was given, else the most alike."""
    names = sorted(known)
    longer = [each for each in names if name and each.startswith(name)]
    return next(iter(sorted(longer, key=len) or get_close_matches(name, names, n=1, cutoff=0.5)), None)


class UnknownName(InvalidSpec):
    """A name that no table holds; `otherwise` is the way out of who meant none of them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, otherwise: str = "") -> None:
        names = sorted(known)
        near = nearest_name(name, names)
        hint = " ".join(filter(None, [f"did you mean {near!r}?" if near else "", otherwise]))
        known_names = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} known names"
        super().__init__(f"{kind} must be one of {known_names}", repr(name), hint=hint)


class NoLegalPlan(InvalidSpec):
    """The rules of the search space leave no plan."""


class CannotExport(InvalidSpec):
    """A launcher cannot express the plan."""


class StudyChanged(InvalidSpec):
    """A study is resumed with inputs other than those it was created from."""


class NothingFits(MeshtuneError):
    """No legal plan fits in the devices' memory."""


class RunnerError(MeshtuneError, RuntimeError):
    """The machine's trouble: Ray, a process, a file system."""


class StorageError(RunnerError):
    """A study's storage cannot be reached, read or written."""


def check(condition: bool, must: str, given: object, *, hint: str = "") -> None:
    """Raise `InvalidSpec` unless the condition holds."""
    if not condition:
        raise InvalidSpec(must, str(given), hint=hint)


def suggest_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownName` for the first key that is not known."""
    table = list(known)
    for key in given:
        if key not in table:
            raise UnknownName(f"a key of {where}", key, table)
