"""What is written: whole or not at all, with a checksum where it holds tensors."""

from vlm_edit.ground.files.folders import replacing as replacing
from vlm_edit.ground.files.spool import Spool as Spool
from vlm_edit.ground.files.tensors import CHECKSUM as CHECKSUM
from vlm_edit.ground.files.tensors import HEADER as HEADER
from vlm_edit.ground.files.tensors import checksum as checksum
from vlm_edit.ground.files.tensors import has_checksum as has_checksum
from vlm_edit.ground.files.tensors import pack_tensors as pack_tensors
from vlm_edit.ground.files.tensors import read_header as read_header
from vlm_edit.ground.files.tensors import read_tensors as read_tensors
from vlm_edit.ground.files.tensors import write_joined as write_joined
from vlm_edit.ground.files.tensors import write_tensors as write_tensors
from vlm_edit.ground.files.whole import append_text as append_text
from vlm_edit.ground.files.whole import beside as beside
from vlm_edit.ground.files.whole import expect_place as expect_place
from vlm_edit.ground.files.whole import locked as locked
from vlm_edit.ground.files.whole import make_folder as make_folder
from vlm_edit.ground.files.whole import packed as packed
from vlm_edit.ground.files.whole import write_bytes as write_bytes
from vlm_edit.ground.files.whole import write_new as write_new
from vlm_edit.ground.files.whole import write_text as write_text
from vlm_edit.ground.files.whole import write_together as write_together
