"""How a plan is tried: protocols, and the tables of runners and launchers."""

from runners.protocol import Executor, Runner, RunnerRecipe

__all__ = ["Executor", "Runner", "RunnerRecipe"]
