"""Leases and admission, the rules that let several drivers share a study: `tuner.leases`, `tuner.ledger`."""

import dataclasses
import time

import pytest
from optuna.trial import TrialState

from tests.tuner import studies
from tuner.leases import LEASE_S, Lease, Owner, lease_of, this_host
from tuner.ledger import MAX_REAPS, Ended, Verdict, admission, expired, n_counted, waiting_plans

PLANS = ["a", "b", "c"]


@pytest.fixture
def book(tmp_path):
    return studies.open_book(studies.storage_url(tmp_path, "journal"), owner=Owner.this_process())[0]


def choosing(book):
    """A trial that has not declared its plan."""
    return book._create({"attempt": 1})


def declared(book, plan):
    number = choosing(book)
    assert book.declare(number, plan, {"step_s": 1.0, "peak_memory_bytes": 1.0})
    return number


def verdict(book, number, plan, budget=10):
    return admission(book.trials(), number, plan, budget=budget)


def test_the_lower_numbered_of_two_trials_with_one_plan_is_admitted(book):
    low, high = declared(book, "a"), declared(book, "a")
    assert verdict(book, low, "a") is Verdict.ADMITTED
    assert verdict(book, high, "a") is Verdict.DUPLICATE


def test_nobody_is_admitted_while_a_lower_numbered_driver_still_chooses(book):
    low, high = choosing(book), declared(book, "a")
    assert verdict(book, high, "a") is Verdict.WAIT
    book.declare(low, "b", {})
    assert verdict(book, high, "a") is Verdict.ADMITTED


def test_a_dead_trial_frees_its_plan_and_its_place_in_the_budget(book):
    low, high = declared(book, "a"), declared(book, "a")
    book.end(low, Ended.REAPED)
    assert verdict(book, high, "a", budget=1) is Verdict.ADMITTED


def test_the_budget_admits_no_more_trials_than_it_has(book):
    numbers = [declared(book, plan) for plan in PLANS]
    verdicts = [verdict(book, number, plan, budget=2) for number, plan in zip(numbers, PLANS, strict=True)]
    assert verdicts == [Verdict.ADMITTED, Verdict.ADMITTED, Verdict.FULL]


def test_trials_of_another_program_are_not_waited_for(book):
    book.storage.create_new_trial(book._study_id)
    assert verdict(book, declared(book, "a"), "a", budget=1) is Verdict.ADMITTED


@pytest.mark.parametrize("why", [Ended.REAPED, Ended.RELEASED, Ended.WITHDRAWN, Ended.MACHINE])
def test_a_plan_that_got_no_outcome_waits_for_another_trial(why, book):
    book.end(declared(book, "a"), why)
    assert [waiting.template.number for waiting in waiting_plans(book.trials())] == [0]
    retry = book.retry(waiting_plans(book.trials())[0])
    assert waiting_plans(book.trials()) == []
    assert book.trials()[retry].user_attrs["attempt"] == (1 if why is Ended.WITHDRAWN else 2)


def test_a_duplicate_leaves_its_plan_to_the_other(book):
    low, high = declared(book, "a"), declared(book, "a")
    book.end(high, Ended.DUPLICATE)
    assert waiting_plans(book.trials()) == []
    book.end(low, Ended.REAPED)
    assert [waiting.template.number for waiting in waiting_plans(book.trials())] == [low]


def test_a_plan_lost_by_the_machine_three_times_is_given_up(book):
    book.end(declared(book, "a"), Ended.MACHINE)
    for _ in range(2):
        book.end(book.retry(waiting_plans(book.trials())[0]), Ended.MACHINE)
    assert waiting_plans(book.trials()) == []


def test_a_plan_that_ran_each_time_its_driver_died_is_given_up(book):
    book.end(declared(book, "a"), Ended.REAPED)
    for _ in range(MAX_REAPS):
        book.end(book.retry(waiting_plans(book.trials())[0]), Ended.REAPED)
    assert waiting_plans(book.trials()) == []


def test_a_finished_trial_is_neither_told_nor_renewed_again(book):
    number = declared(book, "a")
    assert book.end(number, Ended.REAPED)
    assert not book.end(number, Ended.RELEASED)
    assert not book.renew(number)
    assert not book.declare(number, "b", {})
    assert n_counted(book.trials()) == 0


def test_a_lease_ends_with_its_time_or_with_its_process():
    here = Owner.this_process()
    dead = dataclasses.replace(here, pid=studies.ended_process())
    reused = dataclasses.replace(here, started=here.started - 3600)
    elsewhere = dataclasses.replace(dead, host="another:host")
    assert [Lease.taken_by(owner).is_over for owner in (here, dead, reused, elsewhere)] == [
        False,
        True,
        True,
        False,
    ]
    assert Lease(owner=here, until=time.time() - 1).is_over
    assert Lease.taken_by(here).until == pytest.approx(
        time.time() + LEASE_S, abs=5
    )  # seconds this test may take


def test_a_lease_survives_its_storage(book):
    number = declared(book, "a")
    lease = lease_of(book.trials()[number].user_attrs)
    assert lease.owner == book.owner
    assert lease.owner.host == this_host()


def test_only_running_trials_of_dead_drivers_are_reaped(book, tmp_path):
    dead, _ = studies.open_book(studies.storage_url(tmp_path, "journal"))
    ours, theirs = declared(book, "a"), declared(dead, "b")
    assert [trial.number for trial in expired(book.trials())] == [theirs]
    assert book.reap() == [theirs]
    assert [trial.state for trial in book.trials()] == [TrialState.RUNNING, TrialState.FAIL]
    assert ours == 0
