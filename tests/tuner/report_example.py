"""A study report made by hand: no storage, no runner, everything a reader may meet."""

from objectives.metrics import METRICS, Goal, Job
from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Recompute
from search_spaces.workload import Workload
from tuner.report.content import StudyReport, TrialRow
from tuner.report.importance import knob_importance

HOSTILE = '<script>alert("1")</script> & </script>'
LAYOUTS = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (8, 2), (1, 4), (2, 4), (4, 4)]


def job():
    return Job(
        model=load_model("llama-3-8b"),
        cluster=load_cluster("dgx-h100", 16),
        workload=Workload(seq_len=8192, global_batch=64),
    )


def plan(tp, pp):
    recompute = Recompute.FULL if pp > 1 else Recompute.NONE
    return Plan(tp=tp, pp=pp, dp=16 // tp // pp, sequence_parallel=tp > 1, zero=1, recompute=recompute)


def measured(step_s, peak_bytes):
    return Measured(
        step_s=step_s,
        step_spread_s=0.01,
        peak_memory_bytes=peak_bytes,
        origin=OutcomeOrigin.SIMULATED,
        log_tail=HOSTILE,
    )


def trial(number, tp, pp):
    """Trial `number`: the higher tp * pp, the slower and the leaner; predicted a tenth too fast."""
    step_s, peak_bytes = 2.0 + tp * pp / 10 + pp / 50, 80e9 / (tp * pp) ** 0.25
    return TrialRow(
        number=number,
        plan=plan(tp, pp),
        ran=(job(), plan(tp, pp)),
        state="measured",
        predicted_s=0.9 * step_s,
        predicted_bytes=peak_bytes,
        outcome=measured(step_s, peak_bytes),
        values=(step_s, peak_bytes),
    )


def failed(number):
    outcome = Failed(
        cause=Cause.CRASH, message=HOSTILE, origin=OutcomeOrigin.SIMULATED, log_tail=f"line 1\n{HOSTILE}"
    )
    return without_values(number, plan(4, 4), "failed", outcome=outcome)


def running(number):
    return without_values(number, plan(2, 4), "running")


def without_values(number, tried, state, **more):
    return TrialRow(
        number=number,
        plan=tried,
        ran=(job(), tried),
        state=state,
        predicted_s=2.0,
        predicted_bytes=50e9,
        **more,
    )


def study_report(n_trials=11, *, metrics=("step_time", "peak_memory"), name="example"):
    """A report of so many trials that ran, one that failed and one that runs."""
    rows = [trial(number, *layout) for number, layout in enumerate(LAYOUTS[:n_trials])]
    return StudyReport(
        name=name,
        job=job(),
        metrics=tuple(METRICS[each] for each in metrics),
        trials=(*rows, failed(n_trials), running(n_trials + 1)),
        importance=knob_importance(
            [row.plan for row in rows], [row.values[0] for row in rows], Goal.MINIMIZE
        ),
        provenance=(("runner", HOSTILE),),
    )
