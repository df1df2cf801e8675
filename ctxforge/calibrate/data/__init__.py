"""Documents to samples: sources are read, filtered and tokenised once, and drawn from by (seed, step) alone.

`parse_source` reads `--data`; `open_or_build` gives a source's `TokenCache`; `distinct` and `split` choose what is
trained on; `make_mixture` weighs sources and lengths; `plan_batch` says what a step trains on; `read_row` has the ids.
"""

from ctxforge.calibrate.data.build import open_or_build
from ctxforge.calibrate.data.cache import TokenCache, require_length
from ctxforge.calibrate.data.contamination import ContaminationGuard, make_guard
from ctxforge.calibrate.data.documents import Document, Tally
from ctxforge.calibrate.data.filters import Filters
from ctxforge.calibrate.data.header import CacheHeader, DamagedCacheError
from ctxforge.calibrate.data.mixture import Mixture, Stage, curriculum, make_mixture
from ctxforge.calibrate.data.plan import BatchPlan, PlannedRow, plan_batch
from ctxforge.calibrate.data.pools import Piece
from ctxforge.calibrate.data.read import read_documents
from ctxforge.calibrate.data.rows import RowTokens, held_out_windows, read_row
from ctxforge.calibrate.data.spec import DataSource, parse_source
from ctxforge.calibrate.data.split import Ranges, Split, distinct, split, whole

__all__ = [
    "BatchPlan",
    "CacheHeader",
    "ContaminationGuard",
    "DamagedCacheError",
    "DataSource",
    "Document",
    "Filters",
    "Mixture",
    "Piece",
    "PlannedRow",
    "Ranges",
    "RowTokens",
    "Split",
    "Stage",
    "Tally",
    "TokenCache",
    "curriculum",
    "distinct",
    "held_out_windows",
    "make_guard",
    "make_mixture",
    "open_or_build",
    "parse_source",
    "plan_batch",
    "read_documents",
    "read_row",
    "require_length",
    "split",
    "whole",
]
