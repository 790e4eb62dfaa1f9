"""Whether the plugin gives right results on this machine: every layout, mode and choice against an oracle, and load."""
