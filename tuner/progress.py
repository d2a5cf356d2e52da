"""The progress of a study on stderr: a live picture on a terminal, else a line for each finished trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from objectives.metrics import metric_named
from objectives.outcome import Failed, Measured
from search_spaces.fidelity import Fidelity
from tuner.events import Event, OnEvent, Progress, Ranked, Simulated, Stopped, TrialFinished, TrialsReaped
from tuner.report.words import count, duration, gibibytes, plan_words, seconds, signed_percent, worth_words
from tuner.view import State, TrialRecord
from tuner.worth import Worth


@contextmanager
def showing(console: Console) -> Iterator[OnEvent]:
    """Give a listener for `tune` that draws on the console while the block lasts."""
    if not console.is_terminal:
        yield lambda event: _print_lines(console, event)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def hear(event: Event) -> None:
            if isinstance(event, Progress):
                live.update(picture(event))
            else:
                _print_lines(live.console, event)

        yield hear


def picture(progress: Progress) -> RenderableType:
    """Best so far against its prediction, trials by state, and the time left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("best so far", best_words(progress.best, progress.metric))
    grid.add_row("trials", states_words(progress.counts))
    bar = ProgressBar(total=progress.budget_trials, completed=progress.n_finished, width=40)
    grid.add_row(f"{progress.n_finished} of {progress.budget_trials}", bar)
    if progress.worth:
        grid.add_row("more trials", worth_words(progress.worth))
    grid.add_row("time", time_words(progress))
    return grid


def lines(event: Event) -> list[str]:
    """An event in plain words; most have none."""
    match event:
        case Ranked(ledger=ledger, n_candidates=n_candidates):
            fits = f"{count(ledger.feasible)} of {count(ledger.enumerated)} plans are legal and fit"
            return [f"{fits}; the best {count(n_candidates)} are candidates"]
        case Simulated(n_plans=n_plans, seconds=took_s):
            return [f"the engine timed {count(n_plans)} of them {_when(took_s)}"]
        case TrialFinished(trial=trial):
            return [trial_line(trial)]
        case TrialsReaped(numbers=numbers):
            return [f"took over from a driver that is gone: trial {', '.join(map(str, numbers))}"]
        case Progress(worth=Worth() as worth):
            return [f"more trials: {worth_words(worth)}"]
    return [f"stopped: {event.why}"] if isinstance(event, Stopped) else []


def _when(took_s: float | None) -> str:
    return "by an earlier driver" if took_s is None else f"in {duration(took_s)}"


def trial_line(trial: TrialRecord) -> str:
    """`trial 7: 12.35 s (predicted 11.80 s, -4.5 %), 63.2 GiB: tp8 pp4 dp16 mb1`."""
    plan = plan_words(trial.plan) if trial.plan else "no plan"
    if trial.fidelity is not Fidelity.FULL:
        plan = f"{trial.fidelity} proxy ({trial.proxy.get('words', '')}) of {plan}"
    match trial.outcome:
        case Measured(step_s=step_s, peak_memory_bytes=peak):
            return f"trial {trial.number}: {seconds(step_s)}{_against(trial)}, {gibibytes(peak)}: {plan}"
        case Failed(cause=cause, message=message):
            again = ", re-queued" if trial.state is State.LOST else ""
            return (
                f"trial {trial.number}: {cause}{again} ({message.splitlines()[0] if message else ''}): {plan}"
            )
    return f"trial {trial.number}: {trial.state}: {plan}"


def best_words(best: TrialRecord | None, metric: str) -> str:
    """The best trial's metric, its step against the prediction, and its plan."""
    if best is None or best.plan is None or not isinstance(best.outcome, Measured):
        return "none yet"
    value = f"{best.values[metric]:.4g} {metric_named(metric).unit}, " if metric != "step_time" else ""
    return f"{value}{seconds(best.outcome.step_s)}{_against(best)}: {plan_words(best.plan)}"


def states_words(counts: Mapping[State, int]) -> str:
    """`12 measured, 2 failed, 4 running`: the states that have trials."""
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none yet"


def time_words(progress: Progress) -> str:
    """Time gone and time left."""
    left = "unknown" if progress.left_s is None else duration(progress.left_s)
    return f"{duration(progress.elapsed_s)} gone, {left} left"


def _against(trial: TrialRecord) -> str:
    if trial.predicted is None or not isinstance(trial.outcome, Measured):
        return ""
    error = trial.predicted.step_s / trial.outcome.step_s - 1
    return f" (predicted {seconds(trial.predicted.step_s)}, {signed_percent(error)})"


def _print_lines(console: Console, event: Event) -> None:
    for line in lines(event):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
