"""Plans in the words of the programs that train: one row a launcher, loaded when asked for.

Each launcher turns a plan into its own arguments and files and says which knobs it lacks; `export.export`
writes them with batch scripts.  A launcher never imports the program it writes for.
"""

from collections.abc import Mapping
from types import MappingProxyType

from runners.launchers.base import Launcher
from search_spaces.rows import load_row

LAUNCHERS: Mapping[str, str] = MappingProxyType(
    {
        "megatron-lm": "runners.launchers.megatron_lm:MegatronLM",
        "deepspeed": "runners.launchers.deepspeed:DeepSpeed",
        "x-moe": "runners.launchers.x_moe:XMoE",
        "torchtitan": "runners.launchers.torchtitan:Torchtitan",
        "llm-foundry": "runners.launchers.llm_foundry:LLMFoundry",
        "axonn": "runners.launchers.axonn:AxoNN",
    }
)


def load_launcher(name: str) -> Launcher:
    """The launcher of this name.

    Raises
    ------
    UnknownName
        The table has no such row; the nearest name is suggested.
    """
    launcher: Launcher = load_row("launcher", name, LAUNCHERS)()
    return launcher
