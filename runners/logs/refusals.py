"""Why the figures of a log must not be used, each reason with its sentence.

The cases are those of a published run: 37.4 TFLOP/s were reported as 149.5 because the engine's JSON said
micro-batch 4 and the launcher 1; every timed step was one that loss scaling skipped; one held a validation.
"""

from collections.abc import Iterator, Sequence

from runners.logs.account import Account
from runners.logs.facts import Disturbance
from runners.logs.figures import Expected, LogSummary
from runners.logs.window import FEWEST_STEPS, TimedStep
from search_spaces.errors import sentence
from search_spaces.units import TFLOPS

# FlashAttention-2 (arXiv:2307.08691, table 1) trains at 72 % of an A100's peak, the most published.
MOST_SHARE_OF_PEAK = 0.75
# Attention counted in full or causal, embeddings counted or not: no two countings of one step differ so much.
MOST_FLOPS_RATIO = 2.0
MOST_TOKENS_RATIO = 1.1  # printed figures are rounded, and a mean of rates is not the rate of the mean
_MOST_NAMED = 6
_WORDS = {
    Disturbance.SKIPPED: "loss scaling skipped steps",
    Disturbance.VALIDATION: "validation ran between the steps",
    Disturbance.CHECKPOINT: "checkpoints were saved between the steps",
}
_HINTS = {
    Disturbance.SKIPPED: "use bf16, or set a small initial loss scale",
    Disturbance.VALIDATION: "turn validation off, or run more steps between two of them",
    Disturbance.CHECKPOINT: "turn checkpoints off, or run more steps between two of them",
}


def refusals_of(
    account: Account, timed: Sequence[TimedStep], summary: LogSummary, expected: Expected
) -> tuple[str, ...]:
    """One sentence for each reason not to believe the log."""
    found = [
        *_two_batches(account),
        *_other_run(account, expected),
        *_beyond_the_device(summary, expected),
    ]
    if summary.window is None:
        return (*found, _no_window(account, timed))
    return (
        *found,
        *_other_work(summary, expected),
        *_other_tokens(summary, expected),
    )


def _two_batches(account: Account) -> Iterator[str]:
    for name in ("global_batch", "micro_batch", "accumulation", "seq_len"):
        said = account.claims.get(name, {})
        if len(set(said.values())) > 1:
            given = " and ".join(f"{value} ({source})" for source, value in said.items())
            hint = "give the launcher and the engine's configuration the same batch"
            yield sentence(f"{name} must be one number everywhere in the log", given, hint=hint)


def _other_run(account: Account, expected: Expected) -> Iterator[str]:
    """What the log states was run must be what was asked for."""
    asked = {name: getattr(expected, name) for name in ("global_batch", "micro_batch", "seq_len", "tp", "pp")}
    for name, wanted in {**asked, "devices": expected.n_devices}.items():
        said = account.claims.get(name, {})
        if wanted is not None and said and len(set(said.values())) == 1 and wanted not in said.values():
            given = f"{next(iter(said.values()))} ({next(iter(said))})"
            yield sentence(f"the run's {name} must be the plan's, {wanted}", given)


def _no_window(account: Account, timed: Sequence[TimedStep]) -> str:
    if not account.records:
        return sentence(
            f"the log must have step lines of {account.reader.name}", f"none in {account.n_lines} lines"
        )
    if not timed:
        must = "the log must tell the seconds of a step"
        hint = "name the global batch (and devices), or let the trainer print time stamps"
        return sentence(must, f"{len(account.records)} step lines without", hint=hint)
    disturbed = [each for each in timed if each.disturbed_by]
    must = f"{FEWEST_STEPS} steps in a row after their warm-up must be undisturbed"
    if not disturbed:
        given = f"too few steps: {sum(each.n_steps for each in timed)} in {len(timed)} lines"
        return sentence(must, given, hint="run more steps, or log every step")
    kinds = sorted({kind for each in disturbed for kind in each.disturbed_by})
    which = ", ".join(str(each.step) for each in disturbed[:_MOST_NAMED])
    rest = len(disturbed) - _MOST_NAMED
    which += f" and {rest} more" if rest > 0 else ""
    given = f"{'; '.join(_WORDS[kind] for kind in kinds)} (steps {which} of {account.last_step})"
    return sentence(must, given, hint=_HINTS[kinds[0]])


def _beyond_the_device(summary: LogSummary, expected: Expected) -> Iterator[str]:
    peak, tflops = expected.peak_flops_per_s, summary.most_tflops_per_device
    if not peak or tflops is None or tflops * TFLOPS <= MOST_SHARE_OF_PEAK * peak:
        return
    kind = summary.convention or "FLOP/s"
    must = f"{kind} must be below {MOST_SHARE_OF_PEAK:.0%} of the device's peak of {peak / TFLOPS:g} TFLOP/s"
    hint = "the batch, or what the trainer counts, is not what ran"
    yield sentence(must, f"{tflops * TFLOPS / peak:.0%} ({tflops:.1f} TFLOP/s)", hint=hint)


def _other_work(summary: LogSummary, expected: Expected) -> Iterator[str]:
    """Seconds x TFLOP/s x devices is the work of a step: it must be the job's."""
    window, tflops, devices = summary.window, summary.tflops_per_device, expected.n_devices
    wanted = expected.model_flops_per_step
    if window is None or tflops is None or devices is None or not wanted:
        return
    ratio = window.step_s * tflops * TFLOPS * devices / wanted
    if not 1 / MOST_FLOPS_RATIO < ratio < MOST_FLOPS_RATIO:
        given = f"{window.step_s:.4g} s x {tflops:.4g} TFLOP/s x {devices} devices, {ratio:.2g} times as much"
        yield sentence(
            "the log's work of a step must be the job's", given, hint="the batch or the model differs"
        )


def _other_tokens(summary: LogSummary, expected: Expected) -> Iterator[str]:
    """Seconds x tokens/s are the tokens of a step: they must be the job's."""
    if summary.window is None or expected.global_batch is None or expected.seq_len is None:
        return
    wanted, said = expected.global_batch * expected.seq_len, summary.tokens_per_s
    if said is None and summary.tokens_per_s_per_device and expected.n_devices:
        said = summary.tokens_per_s_per_device * expected.n_devices
    if said is None:
        return
    ratio = summary.window.step_s * said / wanted
    if not 1 / MOST_TOKENS_RATIO < ratio < MOST_TOKENS_RATIO:
        given = f"{summary.window.step_s * said:.4g}"
        yield sentence(f"the log's tokens of a step must be the job's, {wanted}", given)
