"""Words of a command that stand for a plan's values: `--tp {tp}`, `--steps={n_steps}`.

Every knob of a plan has its name; the others are in `MEANINGS`.  `{{` and `}}` are braces.
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from objectives.metrics import Job
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.plan import Plan

NODES, STEP = "MESHTUNE_NODES", "MESHTUNE_STEP"  # variables by which an executor says where a trial runs
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "plan": "the plan as knob=value words",
        "plan_file": "a JSON file with the plan, the job's shapes and these values",
        "folder": "the trial's own folder",
        "n_steps": "steps to run",
        "attempt": "how many tries of this plan a machine has lost before",
        "port": "a port that was free just now, for a rendezvous on this machine",
        "nodelist": "names of the trial's nodes, with commas between them",
        "first_node": "name of the first of them",
        "step_name": "a name that only this try has",
        "world_size": "devices",
        "n_nodes": "nodes",
        "devices_per_node": "devices used on each node",
        "n_microbatches": "micro-batches of a step",
        "global_batch": "sequences of a step",
        "seq_len": "tokens of a sequence",
        "precision": "of the workload",
        "model": "the model's name",
    }
)
KNOBS = tuple(each.name for each in fields(Plan))


def check_placeholders(words: Iterable[str], where: str) -> None:
    """Refuse what `filled` could not fill.

    Raises
    ------
    UnknownName
        A placeholder that stands for nothing; the nearest one is suggested.
    InvalidSpec
        Braces that do not match, or a placeholder with more than a name in it.
    """
    for word in words:
        for name in _names(word, where):
            if name not in MEANINGS and name not in KNOBS:
                raise UnknownName(f"a placeholder of {where}", name, [*KNOBS, *MEANINGS])


def filled(word: str, values: Mapping[str, str]) -> str:
    """A word with its placeholders replaced, each once; what a value holds is not looked at again."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(word):
        parts.append(text)
        if name is not None:
            parts.append(values[name])
    return "".join(parts)


def plan_values(job: Job, plan: Plan, **others: object) -> dict[str, str]:
    """What each placeholder stands for; `others` are those that neither the job nor the plan knows."""
    job = job.of_plan(plan)
    devices, per_node = job.cluster.n_devices, job.cluster.devices_per_node
    values: dict[str, Any] = {
        **{name: getattr(plan, name) for name in KNOBS},
        "plan": plan.key,
        "world_size": plan.world_size,
        "n_nodes": job.cluster.n_nodes,
        "devices_per_node": min(devices, per_node),
        "n_microbatches": job.workload.global_batch // (plan.micro_batch * plan.dp),
        "global_batch": job.workload.global_batch,
        "seq_len": job.workload.seq_len,
        "precision": job.workload.precision,
        "model": job.model.name,
        **others,
    }
    return {name: word_of(value) for name, value in values.items()}


def word_of(value: object) -> str:
    """A value as it is written in a plan: true, 1f1b, 8."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(word: str, where: str) -> list[str]:
    try:
        fields_of_word = [
            (name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(word)
        ]
    except ValueError:
        must = f"braces of {where} must match"
        raise InvalidSpec(must, repr(word), hint="write {{ and }} for braces themselves") from None
    for name, spec, conversion in fields_of_word:
        if name is not None and (spec or conversion or not name.isidentifier()):
            hint = "write {{ and }} for braces themselves"
            raise InvalidSpec(f"a placeholder of {where} must be one name", repr(word), hint=hint)
    return [name for name, _, _ in fields_of_word if name is not None]
