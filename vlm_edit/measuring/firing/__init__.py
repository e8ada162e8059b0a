"""Where features fire in a picture: the place of each image token."""

from vlm_edit.measuring.firing.places import Places as Places
from vlm_edit.measuring.firing.places import PlacesFinder as PlacesFinder
