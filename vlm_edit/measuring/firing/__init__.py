"""What fires where: the codes of single tokens, their places, and maps of a run's examples."""

from vlm_edit.measuring.firing.mapping import is_pooled as is_pooled
from vlm_edit.measuring.firing.mapping import map_examples as map_examples
from vlm_edit.measuring.firing.mapping import map_site as map_site
from vlm_edit.measuring.firing.maps import Firing as Firing
from vlm_edit.measuring.firing.maps import Maps as Maps
from vlm_edit.measuring.firing.maps import load_maps as load_maps
from vlm_edit.measuring.firing.places import Places as Places
from vlm_edit.measuring.firing.places import PlacesFinder as PlacesFinder
from vlm_edit.measuring.firing.tokens import TokenCodes as TokenCodes
from vlm_edit.measuring.firing.tokens import token_codes as token_codes
