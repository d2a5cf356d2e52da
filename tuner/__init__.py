"""Who decides and tells: studies, samplers, reports, and the Python API.

The names below are loaded when they are first used, so that `import tuner` stays quick.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import describe_job, estimate, export, rank
    from tuner.config import read_config
    from tuner.study import resume, tune
    from tuner.view import load_study

__all__ = ["describe_job", "estimate", "export", "load_study", "rank", "read_config", "resume", "tune"]

_HOMES = MappingProxyType(
    {
        "describe_job": "tuner.api",
        "estimate": "tuner.api",
        "export": "tuner.api",
        "load_study": "tuner.view",
        "rank": "tuner.api",
        "read_config": "tuner.config",
        "resume": "tuner.study",
        "tune": "tuner.study",
    }
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
