"""No two legal plans are written alike: one knob of a plan at a time takes every other value."""

import pytest

from runners.launchers import load_launcher
from runners.launchers.base import Options
from runners.launchers.export import README, export_files
from search_spaces.errors import InvalidSpec
from search_spaces.first_names import first_name
from search_spaces.plan import ENUMS, FLAGS, KNOB_NAMES, Plan, Plans
from search_spaces.rules import broken_rules
from tests.runners.launchers.cases import CASES

MANIFEST = "plan.json"  # holds the plan itself
COUNTS = {
    "zero": [0, 1, 2, 3],
    "first_layers": [0, 2, 7],
    "last_layers": [0, 2, 7],
    "recompute_stages": [0, 1, 2],
    "pipeline_limit": [0, 2, 3],
    "extra_warmup": [0, 1, 2],
    "sequence_chunk": [0, 2048, 4096],
    "power_cap_w": [0, 400, 500],
    "migrate_every": [0, 50],
    "nodes": [0, 1, 2],
    "n_microbatches": [0, 2, 4],
    "offload_bucket": [0, 8_000_000],  # 16 million are AxoNN's own: 0
    "coalesced_buckets": [0, 2, 4],
    "optimizer_tile": [0, 1_000_000],
}
DEGREES = [1, 2, 4, 8, 16, 32]


def values_of(knob):
    if knob in FLAGS:
        return [False, True]
    return list(ENUMS[knob]) if knob in ENUMS else COUNTS.get(knob, DEGREES)


def is_legal(context, plan):
    columns = {name: getattr(Plans.of([plan]), name) for name in KNOB_NAMES}
    return not broken_rules(context, columns)


def written(case_job, plan, launcher):
    files = export_files(case_job, plan, launcher, "both", Options())
    return {
        name: text.replace(plan.key, "") for name, text in files.items() if name not in (README, MANIFEST)
    }


def neighbours(case_job, plan):
    """Legal plans that differ in one knob, and are not the same plan under another name."""
    context, words = case_job.context, {name: getattr(plan, name) for name in KNOB_NAMES}
    for knob in KNOB_NAMES:
        for value in values_of(knob):
            try:
                other = Plan(**{**words, knob: value})
            except InvalidSpec:
                continue
            if first_name(context, other) != first_name(context, plan) and is_legal(context, other):
                yield other


@pytest.mark.parametrize(
    ("launcher", "case"),
    [(launcher, case) for launcher, cases in CASES.items() for case in cases],
    ids=lambda each: each if isinstance(each, str) else each.name,
)
def test_no_two_legal_plans_are_written_alike(launcher, case):
    before, chosen = written(case.job, case.plan, launcher), load_launcher(launcher)
    others = (
        other for other in neighbours(case.job, case.plan) if not chosen.lacks(case.job.of_plan(other), other)
    )
    assert [other.key for other in others if written(case.job, other, launcher) == before] == []
