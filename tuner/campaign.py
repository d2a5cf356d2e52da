"""A campaign: several families of models, each with knobs of its own, on one allocation's nodes.

    [campaign]            nodes, share
    [campaign.families.NAME]
        nodes     = 2, or [2, 4]: what a trial takes of the allocation; each number is a member of its own
        model     = { preset = ... }      as [model];    left out: the file's [model]
        space     = { tp = [1, 2] }       over [space]
        workload  = { seq_len = ... }     over [workload]

Each family and number of nodes is one ordinary study, `CAMPAIGN/FAMILY/Nn`, so a family's knobs exist where
the family does, and everything that works on studies works on a campaign's.  [cluster] devices is the whole
allocation.

Source: the node queue and the campaigns of HydraGNN with DeepHyper; arXiv:2312.12705, section on tuning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from search_spaces.documents import build
from search_spaces.errors import check, suggest_keys
from tuner.config import StudyConfig, cluster_from_config, config_from_tables
from tuner.storage import list_studies, storage_trouble
from tuner.study import stored_config

CAMPAIGN_ATTRIBUTE = "meshtune_campaign"
MOST_MEMBERS = 64
OVER_BASE = ("space", "workload")
OVERRIDING = ("model", *OVER_BASE)


class Share(StrEnum):
    """Who gets the next trial: the member whose best untried plan is most hopeful, or each in turn."""

    HOPE = "hope"
    EVEN = "even"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTable:
    """One `[campaign.families.NAME]`."""

    nodes: int | tuple[int, ...]
    model: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes of a trial, each number that was asked for."""
        return (self.nodes,) if isinstance(self.nodes, int) else self.nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignTable:
    """The study file's `[campaign]`; `nodes` 0 stands for all that [cluster] devices fill."""

    families: dict[str, FamilyTable]
    nodes: int = 0
    share: Share = Share.HOPE

    def __post_init__(self) -> None:
        check(bool(self.families), "[campaign.families] must name at least one family", "none")
        check(self.nodes >= 0, "[campaign] nodes must not be negative", self.nodes)
        for name, family in self.families.items():
            must = f"[campaign.families.{name}] nodes must be whole numbers from 1, each once"
            sizes = family.sizes
            fine = bool(sizes) and min(sizes) >= 1 and len(set(sizes)) == len(sizes)
            check(fine, must, f"{family.nodes} for {name!r}")
            must = "a family of [campaign.families] must have a printable name without /"
            check(bool(name.strip()) and "/" not in name and name.isprintable(), must, repr(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A family on one number of nodes: a study."""

    family: str
    n_nodes: int
    config: StudyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Members that share an allocation's nodes and one budget (that of each member's configuration)."""

    name: str
    n_nodes: int
    share: Share
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        check(
            1 <= len(self.members) <= MOST_MEMBERS,
            f"a campaign has 1 to {MOST_MEMBERS} members",
            len(self.members),
        )
        for member in self.members:
            must = f"a trial of {member.family} must fit on the campaign's {self.n_nodes} nodes"
            check(member.n_nodes <= self.n_nodes, must, f"{member.n_nodes} nodes")
        objectives = {member.config.inputs.objective for member in self.members}
        check(len(objectives) == 1, "all members of a campaign must have one objective", objectives)

    @property
    def lead(self) -> StudyConfig:
        """The first member's configuration: storage, machine and budget are the same for all."""
        return self.members[0].config

    def document(self, member: Member) -> dict[str, Any]:
        """What each member's study keeps of the campaign, so that the storage alone tells it."""
        return {
            "name": self.name,
            "n_nodes": self.n_nodes,
            "share": str(self.share),
            "family": member.family,
            "member_nodes": member.n_nodes,
            "members": [each.config.name for each in self.members],
        }


def campaign_from_tables(tables: Mapping[str, Any], *, folder: Path, where: str) -> Campaign:
    """A campaign from the tables of a study file.

    Raises
    ------
    InvalidSpec
        A key that does not exist, a family without nodes, or what `config_from_tables` refuses of a member.
    """
    for name, each in tables.items():
        check(isinstance(each, Mapping), f"[{name}] must be a table of keys", repr(each))
    base = {name: table for name, table in tables.items() if name != "campaign"}
    suggest_keys("[campaign]", tables["campaign"], list(CampaignTable.__dataclass_fields__))
    table = build(CampaignTable, dict(tables["campaign"]), "[campaign]")
    check("cluster" in base, f"{where} must have the table [cluster]", "none")
    machine = cluster_from_config(base["cluster"], folder)
    study = base.get("study", {})
    title = study.get("name")
    given = repr(title) if "name" in study else "no [study] name"
    check(isinstance(title, str) and bool(title.strip()), "a campaign must have a name", given)
    must = f"[campaign] nodes must be at most the {machine.n_nodes} that [cluster] devices fill"
    check(table.nodes <= machine.n_nodes, must, table.nodes)
    members = []
    for family, each in table.families.items():
        for n_nodes in each.sizes:
            devices = n_nodes * machine.devices_per_node
            over = {
                "study": {**study, "name": f"{study['name']}/{family}/{n_nodes}n"},
                "cluster": {**base["cluster"], "devices": devices},
                **{name: {**base.get(name, {}), **getattr(each, name)} for name in OVER_BASE},
                **({"model": each.model} if each.model else {}),
            }
            config = config_from_tables({**base, **over}, folder=folder, where=f"{where}, family {family}")
            members.append(Member(family=family, n_nodes=n_nodes, config=config))
    return Campaign(
        name=study["name"],
        n_nodes=table.nodes or machine.n_nodes,
        share=table.share,
        members=tuple(members),
    )


def refuse_flags(tables: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse flags for what families have of their own: they would change nothing.

    Raises
    ------
    InvalidSpec
        A model, a knob or a key of the workload is given that a family names too.
    """
    campaign = tables.get("campaign")
    families = campaign.get("families") if isinstance(campaign, Mapping) else None
    for family, table in families.items() if isinstance(families, Mapping) else ():
        for name in OVERRIDING:
            own = table.get(name) if isinstance(table, Mapping) else None
            own = own if isinstance(own, Mapping) else {}
            asked = given.get(name, {}).keys() if own else set()
            taken = sorted(asked if name == "model" else asked & own.keys())
            must = f"flags must not give what [campaign.families.{family}] has of its own"
            check(not taken, must, f"{name} {', '.join(taken)}", hint="change it in the file")


def study_from_tables(tables: Mapping[str, Any], *, folder: Path, where: str) -> StudyConfig | Campaign:
    """The study, or the campaign, that tables describe.

    Raises
    ------
    InvalidSpec
        As `config_from_tables` and `campaign_from_tables`.
    """
    if "campaign" in tables:
        return campaign_from_tables(tables, folder=folder, where=where)
    return config_from_tables(tables, folder=folder, where=where)


def stored_campaign(first: str, name: str, storage: str, opened: BaseStorage) -> Campaign | None:
    """The campaign that a member's study keeps word of; None if the study is of none, or of another.

    Raises
    ------
    InvalidSpec
        Its driver ended before it had made every member's study.
    """
    document = _document(first, opened)
    if document is None or document.get("name") != name:
        return None
    known = [each for each in document["members"] if each in list_studies(opened)]
    words = {each: _document(each, opened) for each in known}
    missing = [each for each in document["members"] if not words.get(each)]
    hint = "its driver ended while it made them: run tune with the campaign's file again"
    check(not missing, f"campaign {name!r} must have all its studies", f"no {', '.join(missing)}", hint=hint)
    members = tuple(
        Member(family=own["family"], n_nodes=own["member_nodes"], config=stored_config(each, storage))
        for each, own in words.items()
        if own is not None
    )
    return Campaign(name=name, n_nodes=document["n_nodes"], share=Share(document["share"]), members=members)


def _document(study: str, opened: BaseStorage) -> Mapping[str, Any] | None:
    with storage_trouble("the storage"):
        kept = opened.get_study_user_attrs(opened.get_study_id_from_name(study)).get(CAMPAIGN_ATTRIBUTE)
    return kept if isinstance(kept, Mapping) else None
