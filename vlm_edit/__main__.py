"""``python -m vlm_edit`` is ``vlm-edit``."""

import sys

from vlm_edit.cli import main

sys.exit(main())
