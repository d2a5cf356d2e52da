"""What a study's figures were measured on: one kind of device, because seconds of two cannot be compared."""

from optuna.trial import FrozenTrial

from objectives.outcome import Outcome
from search_spaces.errors import RunnerError
from tuner.book import Book


def refuse_other_device(outcome: Outcome, book: Book) -> None:
    """Let pass what ran on the device of the study's earlier trials, or where nobody knows.

    Raises
    ------
    RunnerError
        It ran on another; the trial is not told, so that its plan can be tried again.
    """
    device = outcome.effective.get("device")
    if device is None:
        return
    before = next((found for trial in book.trials() if (found := device_of(trial)) is not None), None)
    if before is None or device == before:
        return
    raise RunnerError(
        f"study {book.study.study_name!r} must go on with the devices that it was measured on, {before}",
        f"a trial on {device}",
        hint="resume it on such a machine, or start a new study with --name",
    )


def device_of(trial: FrozenTrial) -> str | None:
    """The device that a trial's stored outcome names."""
    stored = trial.user_attrs.get("outcome")
    device = (stored or {}).get("effective", {}).get("device")
    return device if isinstance(device, str) else None
