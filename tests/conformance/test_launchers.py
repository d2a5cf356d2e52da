"""What every launcher must do, whichever program it writes for."""

import json
from itertools import pairwise
from pathlib import PurePath

import pytest

from runners.launchers import LAUNCHERS, load_launcher
from runners.launchers.base import Options, n_microbatches, words
from runners.launchers.export import export_files
from search_spaces.framework import FRAMEWORKS
from search_spaces.plan import Plan
from tests.runners.launchers.cases import CASES, LLAMA_8B

OPTIONS = Options(account="acc", program="a program", data_path="some data", tokenizer="a tokenizer")
BATCH_FLAGS = {"--global-batch-size", "--training.global_batch_size", "global_train_batch_size"}


@pytest.fixture(params=LAUNCHERS)
def launcher(request):
    return load_launcher(request.param)


class TestEveryLauncher:
    def test_goes_by_its_name_in_the_table(self, launcher):
        assert LAUNCHERS[launcher.name].endswith(f":{type(launcher).__name__}")

    def test_has_a_framework_profile_of_the_same_name(self, launcher):
        assert launcher.name in FRAMEWORKS

    def test_takes_each_of_its_cases(self, launcher):
        assert {case.name: launcher.lacks(case.job, case.plan) for case in CASES[launcher.name]} == {
            case.name: [] for case in CASES[launcher.name]
        }

    def test_has_a_case_for_every_knob_that_it_takes(self, launcher):
        used = {word.partition("=")[0] for case in CASES[launcher.name] for word in case.words.split()}
        assert {"tp", "pp", "dp", "ep", "zero", "micro_batch", "recompute", "schedule"} <= used

    def test_says_the_same_twice(self, launcher):
        case = CASES[launcher.name][0]
        first, second = (launcher.launch(case.job, case.plan, OPTIONS) for _ in range(2))
        assert first == second

    def test_names_each_flag_once(self, launcher):
        for case in CASES[launcher.name]:
            flags = [
                argument[0].partition("=")[0]
                for argument in launcher.launch(case.job, case.plan, OPTIONS).arguments
            ]
            assert len(flags) == len(set(flags)), case.name

    def test_keeps_the_batch_that_was_asked_for(self, launcher):
        for case in CASES[launcher.name]:
            said = words(launcher.launch(case.job, case.plan, OPTIONS).arguments)
            pairs = [*pairwise(said), *(tuple(word.split("=", 1)) for word in said if "=" in word)]
            batch = next(int(pair[1]) for pair in pairs if pair[0] in BATCH_FLAGS)
            samples = case.plan.micro_batch * n_microbatches(case.job, case.plan) * case.plan.dp
            assert batch == samples == case.job.workload.global_batch, case.name

    def test_writes_text_files_with_plain_names(self, launcher):
        for case in CASES[launcher.name]:
            files = export_files(case.job, case.plan, launcher.name, "both", OPTIONS)
            assert all(PurePath(name).name == name and text.endswith("\n") for name, text in files.items())
            assert json.loads(files["plan.json"])["launcher"] == launcher.name

    def test_is_told_of_more_than_one_missing_knob_at_a_time(self, launcher):
        plan = Plan.parse(
            "pp=2 dp=32 schedule=zb-h1 rank_order=tp-cp-pp-dp zero=2 recompute=full recompute_every=5"
        )
        assert len(launcher.lacks(LLAMA_8B, plan)) >= 2

    def test_answers_a_plan_that_cannot_be_laid_out_without_falling_over(self, launcher):
        assert launcher.lacks(LLAMA_8B, Plan(pp=64, first_layers=40))
