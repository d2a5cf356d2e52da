"""The seams: a runner tries plans; an executor tries many at once, out of order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

from objectives.metrics import Job
from objectives.outcome import Failed, Outcome, OutcomeOrigin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans
from search_spaces.rows import load_row

RUNNERS: Mapping[str, str] = MappingProxyType(
    {
        "analytic": "runners.analytic:AnalyticRunner",
        "simulated": "runners.simulated:SimulatedRunner",
        "replay": "runners.replay:ReplayRunner",
        "command": "runners.command:CommandRunner",
        "torch": "runners.torch_trial.runner:TorchRunner",
    }
)
MAX_LOST_RETRIES = 2


class Runner(Protocol):
    """Turns plans into outcomes; outcome i belongs to plan i."""

    @property
    def origin(self) -> OutcomeOrigin:
        """How its outcomes come about; known on the class too, before anything is built."""
        ...

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Try every plan once.  A plan that fails is an outcome, never an exception.

        `attempt` counts the tries that a lost machine cost these plans before.
        """
        ...


@runtime_checkable
class WarmRunner(Protocol):
    """A runner that loads something large; a trial server has it do so once, before it forks trials."""

    def warm_up(self) -> None:
        """Load it."""
        ...


@runtime_checkable
class EffectiveRunner(Protocol):
    """A runner that may run different plans as the very same thing, and can say so before it runs them.

    Its outcomes carry `effective["key"]`, and `effective["machine"]`, on which the key may depend.
    """

    def effective_key(self, plan: Plan, machine: Mapping[str, Any] | None = None) -> str | None:
        """The key that the plan's outcome will carry on a machine (None: this one); None if nothing runs."""
        ...


@runtime_checkable
class ScalingRunner(Protocol):
    """A runner that can also run smaller jobs on its machine: proxies of the plans that it was built for."""

    def of_job(self, job: Job) -> Runner:
        """The same runner, on the same machine, for another job."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerRecipe:
    """What it takes to build a runner in another process: a name from `RUNNERS`, the job, and options."""

    kind: str
    job: Job
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> OutcomeOrigin:
        """How the runner's outcomes come about."""
        origin: OutcomeOrigin = self._runner_class().origin
        return origin

    def build(self) -> Runner:
        """The runner: `RUNNERS[kind](job, **options)`."""
        runner: Runner = self._runner_class()(self.job, **self.options)
        return runner

    @property
    def scales(self) -> bool:
        """Whether its runner can also run smaller jobs (`ScalingRunner`)."""
        return hasattr(self._runner_class(), "of_job")

    def _runner_class(self) -> Any:
        return load_row("runner", self.kind, RUNNERS)


RunnerSource = Runner | RunnerRecipe
"""What an executor needs: a recipe, or a runner that pickles."""


class Executor(Protocol):
    """Tries plans side by side.  One owner submits and waits; outcomes come in any order, each exactly once.

    A lost worker or node is retried inside, a bounded number of times, and then comes back as
    `Failed(Cause.LOST_MACHINE)`; a plan that fails by itself (out of memory, crash, hang) is never retried.
    A machine that cannot run anything at all is a `RunnerError` of `wait`.
    `close` ends every process it started; it may be called twice.
    """

    @property
    def n_slots(self) -> int:
        """Plans that run at the same time."""
        ...

    def submit(self, ticket: int, plan: Plan, job: Job | None = None) -> None:
        """Start a plan, or queue it behind those that run; `job` takes the place of the runner's own."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Outcomes that arrived, at once if there are any, else after at most `timeout_s` (maybe none)."""
        ...

    def close(self) -> None:
        """Stop everything."""
        ...


def runner_of(runner: Runner | EffectiveRunner, job: Job | None) -> Runner:
    """The runner, or the same one for another job.

    Raises
    ------
    InvalidSpec
        It runs no other job than its own.
    """
    if job is None:
        return cast("Runner", runner)
    must = "a runner must be able to run smaller jobs for a study with fidelities"
    if not isinstance(runner, ScalingRunner):
        raise InvalidSpec(must, type(runner).__name__)
    return runner.of_job(job)


def is_lost(outcome: Outcome) -> bool:
    """Whether the machine, not the plan, is to blame, so that another try may succeed."""
    return isinstance(outcome, Failed) and outcome.cause.is_machine_fault


def run_all(executor: Executor, plans: Plans) -> list[Outcome]:
    """Every plan through an executor; outcome i belongs to plan i."""
    outcomes: dict[int, Outcome] = {}
    for i, plan in enumerate(plans):
        executor.submit(i, plan)
    while len(outcomes) < len(plans):
        outcomes.update(executor.wait(timeout_s=1.0))
    return [outcomes[i] for i in range(len(plans))]
