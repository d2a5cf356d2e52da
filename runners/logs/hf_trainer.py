"""Lines of the Hugging Face Trainer (transformers 4 and 5).

Source: transformers/trainer.py, `Trainer.log`; transformers/trainer_utils.py, `speed_metrics`;
transformers/trainer_callback.py, `ProgressCallback.on_log` (from 5.0 on numbers are quoted) and tqdm's bar.
A log line has neither a step's number nor its seconds.  With `include_num_input_tokens_seen` it has the
run's own clock, `train_runtime`; else the bar's does, in whole seconds, and many steps are needed.
It prints no TFLOP/s, and no device memory.
"""

import re
from collections.abc import Iterable

from runners.logs.facts import (
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    ProgressFact,
    StepFact,
    number,
)

_ITEM = re.compile(r"'(?P<name>\w+)': '?(?P<value>[-+\d.einfa]+)'?(?=[,}])")
_LOG = re.compile(r"\{(?=[^{}]*'loss': )[^{}]*\}")
_EVALUATION = re.compile(r"\{(?=[^{}]*'eval_\w+': )[^{}]*\}")
_RUNNING = re.compile(r"\*\*\*\*\* Running (?:Evaluation|evaluation|Prediction) \*\*\*\*\*")
_BAR = re.compile(r"\d+%\|[^|]*\| (?P<step>\d+)/\d+ \[(?P<clock>(?:\d+:)?\d+:\d\d)<")


class HFTrainerLog:
    """The reader `hf-trainer`."""

    name = "hf-trainer"
    convention: Convention | None = None

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line; a bar and a log line may share one."""
        if "%|" in text and (match := _BAR.search(text)):
            yield ProgressFact(step=int(match["step"]), clock_s=_seconds(match["clock"]))
        if "'loss': " in text and (match := _LOG.search(text)):
            items = {item["name"]: number(item["value"]) for item in _ITEM.finditer(match[0])}
            yield StepFact(
                clock_s=items.get("train_runtime"),
                tokens_per_s=None,  # `train_tokens_per_second` is a mean since the start, warm-up included
                loss=items.get("loss"),
                grade=1 if items.get("train_runtime") is not None else 0,
            )
        elif ("'eval_" in text and _EVALUATION.search(text)) or ("*****" in text and _RUNNING.search(text)):
            yield DisturbanceFact(kind=Disturbance.VALIDATION)
        elif "Saving model checkpoint to " in text:
            yield DisturbanceFact(kind=Disturbance.CHECKPOINT)


def _seconds(clock: str) -> float:
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return float(total)
