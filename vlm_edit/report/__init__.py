"""What people read: tables for the screen, and pages with pictures."""

from vlm_edit.report.browse import Browser as Browser
from vlm_edit.report.browse import browse as browse
from vlm_edit.report.details import Details as Details
from vlm_edit.report.facts import facts_of as facts_of
from vlm_edit.report.firing import FeatureSheet as FeatureSheet
from vlm_edit.report.firing import feature_sheet as feature_sheet
from vlm_edit.report.firing import write_maps as write_maps
from vlm_edit.report.neuronpedia import write_neuronpedia
from vlm_edit.report.page import has_plotly as has_plotly
from vlm_edit.report.page import write_page
from vlm_edit.report.payload import Examples
from vlm_edit.report.picture import Picture
from vlm_edit.report.picture import address_of as address_of
from vlm_edit.report.runs import Run
from vlm_edit.report.runs import runs_table as runs_table
from vlm_edit.report.sprites import PER_ROW as PER_ROW
from vlm_edit.report.sprites import PER_SHEET as PER_SHEET
from vlm_edit.report.sprites import SIDE as SIDE
from vlm_edit.report.sprites import Sprites as Sprites
from vlm_edit.report.sprites import pack as pack
from vlm_edit.report.table import Table
from vlm_edit.report.tables import census_table as census_table
from vlm_edit.report.tables import class_table as class_table
from vlm_edit.report.tables import feature_table as feature_table
from vlm_edit.report.tables import halves_table as halves_table
from vlm_edit.report.tables import stability_table as stability_table
from vlm_edit.report.templates import write_plain as write_plain

__all__ = [
    "Examples",
    "Picture",
    "Run",
    "Table",
    "write_neuronpedia",
    "write_page",
]
