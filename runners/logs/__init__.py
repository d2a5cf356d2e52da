"""What a trainer's log says: one reader a trainer, loaded when asked for.

    bytes -> lines -> facts of one line (a reader) -> an account of the whole log -> figures, or refusals
                   -> clues of one line            -> the cause of a failure

A reader parses one line at a time and keeps nothing, so a log of any size is read in little memory.  Formats
are those of the trainers' own sources, named in each reader; a reader never imports its trainer.
"""

from collections.abc import Mapping
from types import MappingProxyType

from runners.logs.facts import LogReader
from search_spaces.rows import load_row

READERS: Mapping[str, str] = MappingProxyType(
    {
        "megatron-lm": "runners.logs.megatron:MegatronLMLog",
        "megatron-deepspeed": "runners.logs.megatron:MegatronDeepSpeedLog",
        "deepspeed": "runners.logs.deepspeed:DeepSpeedLog",
        "torchtitan": "runners.logs.torchtitan:TorchtitanLog",
        "nanotron": "runners.logs.nanotron:NanotronLog",
        "hf-trainer": "runners.logs.hf_trainer:HFTrainerLog",
        "composer": "runners.logs.composer:ComposerLog",
        "json-lines": "runners.logs.json_lines:JsonLinesLog",
    }
)


def load_reader(name: str) -> LogReader:
    """The reader of this trainer's logs.

    Raises
    ------
    UnknownName
        The table has no such row; the nearest name is suggested.
    """
    reader: LogReader = load_row("a log's trainer", name, READERS)()
    return reader
