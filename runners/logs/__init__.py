"""What a trainer's log says: one reader a trainer, loaded when asked for.

    bytes -> lines -> facts of one line (a reader) -> an account of the whole log -> figures, or refusals
                   -> clues of one line            -> the cause of a failure

A reader parses one line at a time and keeps nothing, so a log of any size is read in little memory.  Formats
are those of the trainers' own sources, named in each reader; a reader never imports its trainer.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from runners.logs.facts import LogReader
from search_spaces.errors import UnknownName

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
    if name not in READERS:
        raise UnknownName("a log's trainer", name, READERS)
    module, _, attribute = READERS[name].partition(":")
    reader: LogReader = getattr(import_module(module), attribute)()
    return reader
