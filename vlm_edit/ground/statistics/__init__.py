"""Intervals and scores that tables need, right for few cases and for cases in groups."""

from vlm_edit.ground.statistics.estimate import Estimate, proportion
from vlm_edit.ground.statistics.estimate import short as short
from vlm_edit.ground.statistics.many import adjusted_p, benjamini_hochberg, holm
from vlm_edit.ground.statistics.means import (
    drawn_difference,
    mean_difference,
    mean_estimate,
    ratio_estimate,
    ratio_figures,
)
from vlm_edit.ground.statistics.paired import PairedTest, mcnemar, share_difference
from vlm_edit.ground.statistics.roc import auc, auc_difference, auc_estimate, auc_p
from vlm_edit.ground.statistics.student import middle, t_quantile

__all__ = [
    "Estimate",
    "PairedTest",
    "adjusted_p",
    "auc",
    "auc_difference",
    "auc_estimate",
    "auc_p",
    "benjamini_hochberg",
    "drawn_difference",
    "holm",
    "mcnemar",
    "mean_difference",
    "mean_estimate",
    "middle",
    "proportion",
    "ratio_estimate",
    "ratio_figures",
    "share_difference",
    "t_quantile",
]
