"""Measure: a host, a dictionary and pairs, to scores and examples of every feature."""

from vlm_edit.measuring.accumulator import MeasurementAccumulator as MeasurementAccumulator
from vlm_edit.measuring.census import census
from vlm_edit.measuring.centring import centred
from vlm_edit.measuring.centring import expect_centrable as expect_centrable
from vlm_edit.measuring.collecting import collect
from vlm_edit.measuring.encoders import image_encoder, text_encoder
from vlm_edit.measuring.firing import Firing as Firing
from vlm_edit.measuring.firing import Maps as Maps
from vlm_edit.measuring.firing import Places as Places
from vlm_edit.measuring.firing import PlacesFinder as PlacesFinder
from vlm_edit.measuring.firing import TokenCodes as TokenCodes
from vlm_edit.measuring.firing import is_pooled as is_pooled
from vlm_edit.measuring.firing import load_maps as load_maps
from vlm_edit.measuring.firing import map_examples as map_examples
from vlm_edit.measuring.firing import map_site as map_site
from vlm_edit.measuring.firing import token_codes as token_codes
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import EXAMPLES as EXAMPLES
from vlm_edit.measuring.lookup import found_in as found_in
from vlm_edit.measuring.naming import NAME_COLUMNS as NAME_COLUMNS
from vlm_edit.measuring.naming import Name as Name
from vlm_edit.measuring.naming import Names as Names
from vlm_edit.measuring.naming import Neighbours as Neighbours
from vlm_edit.measuring.naming import Promoted as Promoted
from vlm_edit.measuring.naming import caption_holds as caption_holds
from vlm_edit.measuring.naming import name_features, neighbours, promotes
from vlm_edit.measuring.order import shown as shown
from vlm_edit.measuring.pairs import Pairs, read_pairs
from vlm_edit.measuring.pairs import one_sided as one_sided
from vlm_edit.measuring.pictures import IMAGE_ENDINGS as IMAGE_ENDINGS
from vlm_edit.measuring.pictures import IMAGE_FORMATS as IMAGE_FORMATS
from vlm_edit.measuring.pictures import as_seen as as_seen
from vlm_edit.measuring.pictures import open_image as open_image
from vlm_edit.measuring.pictures import size_of as size_of
from vlm_edit.measuring.provenance import pairs_listing as pairs_listing
from vlm_edit.measuring.provenance import provenance as provenance
from vlm_edit.measuring.provenance import texts_digest as texts_digest
from vlm_edit.measuring.reader import STREAMS as STREAMS
from vlm_edit.measuring.reader import Batch as Batch
from vlm_edit.measuring.reader import Reader as Reader
from vlm_edit.measuring.recovering import LossRecovered as LossRecovered
from vlm_edit.measuring.recovering import expect_loss as expect_loss
from vlm_edit.measuring.recovering import loss_recovered
from vlm_edit.measuring.repeats import RepeatedPairs as RepeatedPairs
from vlm_edit.measuring.repeats import Repeats as Repeats
from vlm_edit.measuring.result import Measurement, load_measurement
from vlm_edit.measuring.run import is_finished as is_finished
from vlm_edit.measuring.run import measure
from vlm_edit.measuring.run import measure_part as measure_part
from vlm_edit.measuring.run import measure_together as measure_together
from vlm_edit.measuring.run import merge_parts as merge_parts
from vlm_edit.measuring.run import was_measured as was_measured
from vlm_edit.measuring.saving import save_runs as save_runs
from vlm_edit.measuring.shards import Sample as Sample
from vlm_edit.measuring.shards import Shards as Shards
from vlm_edit.measuring.shards import is_sharded as is_sharded
from vlm_edit.measuring.shards import listing_of as listing_of
from vlm_edit.measuring.shards import read_all as read_all
from vlm_edit.measuring.shards import shards_of as shards_of
from vlm_edit.measuring.sharing import Sharing as Sharing
from vlm_edit.measuring.sharing import expect_cut as expect_cut
from vlm_edit.measuring.table import Features as Features
from vlm_edit.measuring.table import class_labels as class_labels
from vlm_edit.measuring.table import host_words as host_words
from vlm_edit.measuring.table import title_of as title_of

__all__ = [
    "Pairs",
    "image_encoder",
    "read_pairs",
    "text_encoder",
    "Judge",
    "Measurement",
    "census",
    "centred",
    "collect",
    "load_measurement",
    "loss_recovered",
    "measure",
    "name_features",
    "neighbours",
    "promotes",
]
