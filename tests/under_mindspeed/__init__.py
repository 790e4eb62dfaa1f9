"""Tests of the plugin as a feature of MindSpeed, on the double of it in `tests/mindspeed_double`."""
