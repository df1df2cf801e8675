"""Where tasks run: on this machine, on a Ray cluster, or through Slurm."""

from ctxforge.batch.executors.interface import Ended, Executor, Handle
from ctxforge.batch.executors.local import LocalExecutor

__all__ = ["Ended", "Executor", "Handle", "LocalExecutor"]
