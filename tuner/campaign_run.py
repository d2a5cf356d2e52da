"""A campaign's loop: the member most worth a trial takes nodes, runs, tells, gives them back.

Trials of different members run side by side on disjoint nodes.  Within a member plans under way count as if
they had come out as expected (the sampler's own liar), so the next one is another.  All state is in the
members' studies: a campaign that stops goes on from there, and several drivers may share one.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from optuna.storages import BaseStorage

from objectives.metrics import Goal, metric_named
from objectives.valuing import metric_values
from runners.node_pool import NodePool
from runners.protocol import Executor
from search_spaces.errors import check
from tuner.budget import Stop
from tuner.campaign import CAMPAIGN_ATTRIBUTE, Campaign, Member, Share
from tuner.config import ExecutorKind, Machine
from tuner.driver import Driver
from tuner.events import OnEvent, ignore
from tuner.inputs import StudyInputs
from tuner.interrupts import interruptible
from tuner.ledger import n_counted
from tuner.prices import prices_of, spent_device_s, steps_of, under_way_device_s
from tuner.samplers.goals import quantity, with_joules
from tuner.samplers.model_based import MeshtuneSampler
from tuner.storage import open_storage
from tuner.study import OpenStudy, check_machine, lent_executor, make_executor, n_slots, open_study
from tuner.view import StudyView, load_study

POLL_S = 0.2
KAPPA = 1.96  # spreads below the expectation that a hope takes: DeepHyper's exploration weight of UCB
OnMember = Callable[[Member], OnEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignResult:
    """Every member's study after the loop, why it ended, and the most nodes that were busy at once."""

    campaign: Campaign
    views: tuple[StudyView, ...]
    stop: Stop
    most_busy_nodes: int


@dataclass(kw_only=True, eq=False)
class _Running:
    """One member while the campaign runs; `is_over` once it has nothing more to start."""

    member: Member
    opened: OpenStudy
    driver: Driver
    own: MeshtuneSampler
    n_started: int = 0
    is_over: bool = False
    hope: tuple[int, float] = field(default=(-1, 0.0))


def run_campaign(campaign: Campaign, *, on_member: OnMember = lambda _: ignore) -> CampaignResult:
    """Run a campaign, or go on with it, until its budget is used up.

    Raises
    ------
    InvalidSpec
        A machine on which members cannot run side by side, or what `tune` refuses of a member.
    StorageError, RunnerError
        The machine's trouble; nothing that finished is lost.
    """
    _check_machine(campaign)
    storage = open_storage(campaign.lead.storage)
    pool = NodePool(campaign.n_nodes)
    with ExitStack() as stack:
        is_interrupted = stack.enter_context(interruptible())
        make = _executor_maker(campaign)
        running = [
            _open(
                campaign,
                member,
                storage,
                make=make,
                stack=stack,
                is_interrupted=is_interrupted,
                on_event=on_member(member),
            )
            for member in campaign.members
        ]
        loop = _Loop(campaign=campaign, running=running, pool=pool, is_interrupted=is_interrupted)
        try:
            stop = loop.run()
        finally:
            for each in running:
                each.driver.release()
    views = tuple(load_study(member.config.name, storage) for member in campaign.members)
    return CampaignResult(campaign=campaign, views=views, stop=stop, most_busy_nodes=loop.most_busy)


def _open(  # noqa: PLR0913 - what all members share
    campaign: Campaign,
    member: Member,
    storage: BaseStorage,
    *,
    make: Callable[[StudyInputs, Machine], Executor],
    stack: ExitStack,
    is_interrupted: Callable[[], bool],
    on_event: OnEvent,
) -> _Running:
    config = member.config
    opened = open_study(config, storage, on_event)
    opened.book.note(CAMPAIGN_ATTRIBUTE, campaign.document(member))
    driver = opened.driver(
        n_slots=min(campaign.n_nodes // member.n_nodes, n_slots(config.inputs, config.machine)),
        get_executor=stack.enter_context(lent_executor(config, None, opened.book, make)),
        is_interrupted=is_interrupted,
        on_event=on_event,
    )
    return _Running(member=member, opened=opened, driver=driver, own=opened.believer())


@dataclass(kw_only=True, eq=False)
class _Loop:
    campaign: Campaign
    running: Sequence[_Running]
    pool: NodePool
    is_interrupted: Callable[[], bool]
    most_busy: int = 0
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Stop:
        while (stop := self._reason_to_stop()) is None:
            self._fill()
            self._collect()
        return stop

    def _reason_to_stop(self) -> Stop | None:
        budget = self.campaign.lead.budget
        if self.is_interrupted():
            return Stop.INTERRUPTED
        if time.monotonic() - self.began >= budget.seconds:
            return Stop.HOURS
        if self._n_counted() >= budget.trials:
            return Stop.TRIALS
        busy = any(each.driver.in_flight for each in self.running)
        if not busy and self._spent_device_s() >= budget.device_s:
            return Stop.DEVICE_HOURS
        if busy or not all(each.is_over for each in self.running):
            return None
        worths = [each.driver.worth for each in self.running]
        below = budget.stop_below
        settled = below is not None and any(each and each.probability < below for each in worths)
        return Stop.SETTLED if settled else Stop.EXHAUSTED

    def _n_counted(self) -> int:
        return sum(n_counted(each.opened.book.trials()) for each in self.running)

    def _fill(self) -> None:
        """Start trials while nodes and the budget last: the most wanted member first."""
        while not self.is_interrupted() and self._has_budget():
            if not any(self._start(each) for each in self._by_want()):
                return

    def _has_budget(self) -> bool:
        n_in_flight = sum(len(each.driver.in_flight) for each in self.running)
        budget = self.campaign.lead.budget
        if self._spent_device_s(and_foreseen=True) >= budget.device_s:
            return False
        return self._n_counted() + n_in_flight < budget.trials

    def _spent_device_s(self, *, and_foreseen: bool = False) -> float:
        """Device-seconds that all trials held, and those foreseen of what runs; 0 without such a budget."""
        if self.campaign.lead.budget.device_hours is None:
            return 0.0
        spent_s = 0.0
        for each in self.running:
            trials = each.opened.book.trials()
            spent_s += spent_device_s(trials)
            if and_foreseen:
                n_steps = steps_of(each.member.config.inputs.runner.options)
                spent_s += under_way_device_s(trials, prices_of(trials, n_steps))
        return spent_s

    def _start(self, each: _Running) -> bool:
        n_nodes = each.member.n_nodes
        if sum(len(one.driver.in_flight) for one in self.running) >= self.campaign.lead.machine.parallel:
            return False
        if len(each.driver.in_flight) >= each.driver.n_slots or not self.pool.take(
            each.member.config.name, n_nodes
        ):
            return False
        if not each.driver.start_one():
            each.is_over = True
            self.pool.give_back(n_nodes)
            return False
        each.n_started += 1
        self.most_busy = max(self.most_busy, self.pool.n_nodes - self.pool.n_free)
        return True

    def _by_want(self) -> list[_Running]:
        """Members that may start a trial, the most wanted first; those without any trial go before."""
        open_ones = [each for each in self.running if not each.is_over]
        if self.campaign.share is Share.EVEN:
            return sorted(open_ones, key=lambda each: len(each.opened.book.trials()))
        return sorted(open_ones, key=lambda each: (bool(each.opened.book.trials()), hope_of(each)))

    def _collect(self) -> None:
        ended = 0
        for each in self.running:
            n = each.driver.collect(0.0)
            ended += n
            self.pool.give_back(n * each.member.n_nodes)
        if not ended:
            time.sleep(POLL_S)


def hope_of(each: _Running) -> float:
    """What a member's best untried plan may reach: log of the first metric, smaller is better.

        min over untried plans that likely run of  ln(value) - kappa sigma

    The value is the cost model's, corrected by what the member's trials say; a maximised metric counts
    negative.  Plans under way count as tried.
    """
    trials = each.opened.book.trials()
    stamp = len(trials) + 1000 * n_counted(trials)
    if each.hope[0] != stamp:
        each.hope = (stamp, _hope(each))
    return each.hope[1]


def _hope(each: _Running) -> float:
    own, study = each.own, each.opened.book.study
    inputs, candidates = each.member.config.inputs, own.table.candidates
    metric = metric_named(inputs.objective[0])
    posterior = own.posterior(study)
    which = quantity(metric.name)
    sought = min(which, posterior.every.mean.shape[1] - 1)
    prior = with_joules(posterior.predicted, posterior.log_watts)
    learned = posterior.every.mean[:, sought] - prior[:, sought]
    sign = 1.0 if metric.goal is Goal.MINIMIZE else -1.0
    value = sign * np.log(metric_values(inputs.job, metric.name, candidates.plans, candidates.estimate))
    hopes = value + learned - KAPPA * posterior.every.std[:, sought]
    untried = own.untried(study) & (posterior.log_feasible > np.log(0.5))
    return float(hopes[untried].min(initial=np.inf))


def _check_machine(campaign: Campaign) -> None:
    machine = campaign.lead.machine
    for member in campaign.members:
        check_machine(member.config.inputs, machine)
    apart = machine.executor is ExecutorKind.RAY and machine.address is None and len(campaign.members) > 1
    must = "members of a campaign that run on Ray must share one Ray cluster"
    hint = "start one and name it with [runner] address, or set executor = in-process"
    check(not apart, must, "no [runner] address", hint=hint)


def _executor_maker(campaign: Campaign) -> Callable[[StudyInputs, Machine], Executor]:
    """Executors of one allocation lend nodes from one queue; of Ray each trial reserves its own nodes."""
    machine = campaign.lead.machine
    if machine.executor is not ExecutorKind.SLURM:
        return lambda inputs, of: make_executor(inputs, replace(of, bundles=inputs.cluster.n_nodes))
    from runners.slurm.choice import Mode, allocated  # noqa: PLC0415

    if machine.slurm.mode_in(os.environ) is not Mode.ALLOCATION:
        return make_executor  # a job of its own for each trial: Slurm's own queue
    from runners.slurm.allocation import AllocationExecutor  # noqa: PLC0415
    from runners.slurm.nodes import NodeQueue  # noqa: PLC0415

    most = max(member.n_nodes for member in campaign.members)
    queue = NodeQueue(os.environ["SLURM_JOB_ID"], allocated(os.environ), most)

    def make(inputs: StudyInputs, of: Machine) -> Executor:
        limit = inputs.runner.outer_limit_s
        return AllocationExecutor(
            inputs.recipe, of.slurm, n_slots=of.parallel, time_limit_s=limit, queue=queue
        )

    return make
