"""`python -m mindspeed_moe`."""

import sys

from mindspeed_moe.cli import main

sys.exit(main())
