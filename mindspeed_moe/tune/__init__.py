"""Which choices of `packed` are the fastest on this machine and group, measured on all its ranks."""
