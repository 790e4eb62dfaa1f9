"""A double of MindSpeed's manager, list, arguments and adaptor; see README.md of this folder's parent."""

import os

QUIRKS = frozenset(filter(None, os.environ.get("MINDSPEED_DOUBLE", "").split(",")))
