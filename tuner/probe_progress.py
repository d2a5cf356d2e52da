"""The progress of probes on stderr: a live bar on a terminal, else a line for each finished probe."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from runners.probes.record import Result
from runners.probes.session import OnStep, Step
from tuner.report.words import duration, gibibytes, percent, seconds

STARTING = "starting a process for each device"


@contextmanager
def showing_probes(console: Console) -> Iterator[OnStep]:
    """Give a listener for a session that draws on the console while the block lasts."""
    told: list[str] = []
    if not console.is_terminal:

        def tell_all(step: Step) -> None:
            _announce(console, step, told)
            _print_line(console, step)

        yield tell_all
        return
    with Live(STARTING, console=console, refresh_per_second=4, transient=True) as live:

        def draw(step: Step) -> None:
            _announce(live.console, step, told)
            live.update(picture(step))
            if step.why:
                _print_line(live.console, step)

        yield draw


def picture(step: Step) -> RenderableType:
    """What is measured now, how many are done, and the time left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("measuring", step.case.key)
    bar = ProgressBar(total=step.n_all, completed=step.n_done, width=40)
    grid.add_row(f"{step.n_done} of {step.n_all}", bar)
    grid.add_row("time", f"{duration(step.elapsed_s)} gone, {duration(step.left_s)} left at most")
    return grid


def line(step: Step) -> str:
    """A finished probe in one line; nothing for one that begins."""
    opening = f"probe {step.n_done} of {step.n_all}: {step.case.key}: "
    if step.why:
        return f"{opening}no result ({step.why})"
    return opening + readings_words(step.result) if step.result else ""


def readings_words(result: Result) -> str:
    """`1.2 ms ± 3.1 %`; of several readings each with its name."""
    if "bytes" in result.readings:
        return gibibytes(result.median("bytes"))
    if len(result.readings) == 1 or result.kind == "launch":
        return _value(result, "s")
    return ", ".join(f"{name.removesuffix('_s')} {_value(result, name)}" for name in result.readings)


def _value(result: Result, name: str) -> str:
    return f"{seconds(result.median(name))} ± {percent(result.spread(name))}"


def _announce(console: Console, step: Step, told: list[str]) -> None:
    """Before the first probe, how long it will take at most and what Ctrl-C does."""
    if not told:
        told.append(
            f"{step.n_all - step.n_done} probes in {duration(step.left_s)} at most; Ctrl-C keeps them"
        )
        console.print(told[0], highlight=False, markup=False, soft_wrap=True)


def _print_line(console: Console, step: Step) -> None:
    if text := line(step):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
