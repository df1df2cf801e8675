"""Many conversions from one file: jobs and matrices, planned first, run anywhere, gone on with after a kill."""

from ctxforge.batch.batch import BatchOptions, BatchResult, Prepared, due_jobs, prepare, run
from ctxforge.batch.results import FROM_BEST_TO_WORST, JobResult

__all__ = [
    "FROM_BEST_TO_WORST",
    "BatchOptions",
    "BatchResult",
    "JobResult",
    "Prepared",
    "due_jobs",
    "prepare",
    "run",
]
