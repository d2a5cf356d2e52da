"""What a report says of trials that ran a smaller proxy of their plan."""

from collections import Counter

from rich.console import RenderableType

from search_spaces.units import HOUR_S
from tuner.report.content import StudyReport, TrialRow
from tuner.report.tables import table
from tuner.report.words import percent, seconds


def proxies_table(rows: list[TrialRow]) -> RenderableType:
    """Trials of smaller proxies: in what they are smaller, their own seconds and MFU, and what they held."""
    cells = [
        [
            str(row.number),
            str(row.fidelity),
            row.words,
            row.proxy_words,
            seconds(row.predicted_s),
            seconds(row.measured.step_s) if row.measured else "",
            percent(row.mfu) if row.mfu is not None else "",
            f"{row.device_s / HOUR_S:.2f}" if row.device_s is not None else "",
        ]
        for row in rows
    ]
    columns = [
        ">trial",
        "fidelity",
        "~of the plan",
        "~smaller in",
        ">predicted",
        ">step",
        ">MFU",
        ">device-hours",
    ]
    return table(columns, cells)


def proxy_lines(report: StudyReport) -> list[tuple[str, str]]:
    """How many trials were proxies and what they held of the devices; and that no plan ran whole, if so."""
    proxies = report.proxies
    if not proxies:
        return []
    kinds = Counter(str(row.fidelity) for row in proxies)
    held_s = sum(row.device_s or 0.0 for row in proxies)
    share = f"{held_s / HOUR_S:,.2f} of {report.device_s / HOUR_S:,.2f} device-hours"
    lines = [("proxies", f"{', '.join(f'{n} {kind}' for kind, n in kinds.items())}; {share}")]
    if not report.complete:
        lines.append(("best plan", "none yet: no plan has been measured whole, only proxies of some"))
    return lines
