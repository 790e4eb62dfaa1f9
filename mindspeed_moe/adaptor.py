"""Importing this module enables the plugin, with the configuration that the launch names.

That is the file after --mindspeed-moe-config on the command line, else the one in MINDSPEED_MOE_CONFIG, else the
defaults. In a MindSpeed launch, import it after MindSpeed's own adaptor.
"""

from mindspeed_moe.api import enable
from mindspeed_moe.environment import configured_file

plan = enable(configured_file())
