"""What the launchers' parsers look for at import and a CPU machine has not got.  Import this first.

Runs in the environment of `make launchers`, not in that of the tests.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types
import typing
from unittest.mock import MagicMock

import torch
import torch._dynamo
import torch._functorch.aot_autograd
import torch._inductor.codecache
import torch._inductor.runtime.triton_compat
import torch.utils._triton
import typing_extensions


class Hollow(types.ModuleType):
    """A module in which every name exists."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class HollowTriton(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds triton and everything below it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "triton":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Hollow(spec.name)

    def exec_module(self, module):
        module.__version__ = "0"


class Device:
    """The accelerator that the checks pretend to run on."""

    major, minor = (int(part) for part in os.environ.get("TARGET_CAPABILITY", "9.0").split("."))
    multi_processor_count = 132
    total_memory = 80 * 10**9
    name = "stand-in"


# torch looked for triton above and found none; it must not find ours.
torch.utils._triton.has_triton_package = lambda: False
torch.utils._triton.has_triton = lambda *_: False
sys.meta_path.append(HollowTriton())
if not hasattr(typing, "override"):  # Python 3.12
    typing.override = typing_extensions.override
torch.cuda.get_device_capability = lambda *_, **__: (Device.major, Device.minor)
torch.cuda.get_device_properties = lambda *_, **__: Device
torch.cuda.current_device = lambda: 0
