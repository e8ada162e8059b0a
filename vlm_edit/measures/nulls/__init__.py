"""Nulls: data and dictionaries that lack what a measurement is to show, and are alike otherwise.

| null | keeps | destroys |
| --- | --- | --- |
| ``unpaired_gaussians`` | mean and covariance of each stream | pairing, sparsity, clusters |
| ``joint_gaussian`` | the same, and covariances across streams | sparsity, clusters |
| ``random_dictionary`` | data, size, activation, features active per sample | directions |
| ``frozen_dictionary`` | the same, and an encoder that is trained | directions of the decoder |

``vlm_edit.host.random_host`` gives the host with weights drawn anew. What a null reproduces is no
finding about what it destroys: ``census`` counts the classes of each.
"""

from vlm_edit.measures.nulls.census import LITTLE as LITTLE
from vlm_edit.measures.nulls.census import QUICK as QUICK
from vlm_edit.measures.nulls.census import ROWS as ROWS
from vlm_edit.measures.nulls.census import Census, CensusRow, Halves, Read, census_of
from vlm_edit.measures.nulls.dictionaries import config_like as config_like
from vlm_edit.measures.nulls.dictionaries import frozen_dictionary, random_dictionary
from vlm_edit.measures.nulls.gaussians import joint_gaussian, unpaired_gaussians

__all__ = [
    "Census",
    "CensusRow",
    "Halves",
    "Read",
    "census_of",
    "frozen_dictionary",
    "joint_gaussian",
    "random_dictionary",
    "unpaired_gaussians",
]
