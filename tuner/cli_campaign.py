"""What verbs do where a name or a file is a campaign: run it, go on with it, report it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from tuner.campaign import Campaign, Member
from tuner.cli_output import check_writable, command_line, show, show_json, tell, write_page

INTERRUPTED = 130


def run(campaign: Campaign, *, json: bool) -> None:
    """Run a campaign, each finished trial a line on stderr, and show what it found."""
    from tuner.budget import Stop
    from tuner.campaign_run import run_campaign
    from tuner.events import OnEvent, TrialFinished
    from tuner.progress import trial_line

    def hearing(member: Member) -> OnEvent:
        def hear(event: object) -> None:
            if isinstance(event, TrialFinished):
                tell(f"{member.family} on {member.n_nodes}: {trial_line(event.trial)}")

        return hear

    result = run_campaign(campaign, on_member=hearing)
    tell(f"stopped: {result.stop}; at most {result.most_busy_nodes} of {campaign.n_nodes} nodes were busy")
    _show(campaign, json=json)
    words = (campaign.name, "--storage", campaign.lead.storage)
    if result.stop is Stop.INTERRUPTED:
        tell(f"go on with: {command_line('resume', *words)}")
        raise typer.Exit(INTERRUPTED)
    tell(f"see: {command_line('report', *words)}")


def report(name: str, storage: str, *, html: Path | None, csv: Path | None, json: bool) -> bool:
    """Report a campaign; false if the name is a study's own."""
    from tuner.recorded import write_studies
    from tuner.view import load_study

    campaign = stored(name, storage)
    if campaign is None:
        return False
    views = [load_study(member.config.name, storage) for member in campaign.members]
    if csv:
        write_studies(views, check_writable(csv))
    if html:
        from tuner.report.campaign import campaign_page

        write_page(html, campaign_page(campaign, views))
    _show(campaign, json=json)
    return True


def stored(name: str, storage: str) -> Campaign | None:
    """The campaign of that name in a storage, from what its members keep; None if there is none."""
    from tuner.campaign import stored_campaign
    from tuner.storage import list_studies, open_storage

    opened = open_storage(storage, create=False)
    names = list_studies(opened)
    members = [] if name in names else [each for each in names if each.startswith(f"{name}/")]
    found = (stored_campaign(each, name, storage, opened) for each in members)
    return next((each for each in found if each is not None), None)


def overridden(campaign: Campaign, *, budget: Mapping[str, Any], parallel: int | None) -> Campaign:
    """The campaign with other keys of the budget or more trials side by side."""
    from tuner import cli_tables

    members = [
        replace(each, config=cli_tables.overridden(each.config, budget=budget, parallel=parallel))
        for each in campaign.members
    ]
    return replace(campaign, members=tuple(members))


def _show(campaign: Campaign, *, json: bool) -> None:
    from tuner.report.campaign import campaign_document, campaign_screen
    from tuner.view import load_study

    storage = campaign.lead.storage
    views = [load_study(member.config.name, storage) for member in campaign.members]
    if json:
        show_json(campaign_document(campaign, views))
    else:
        show(campaign_screen(campaign, views))
