"""What goes wrong in a live run: each fault, what the user sees, within how long, and what is left.

A scenario trains a MoE layer on two ranks, each a process, with `verify: always` and telemetry on; after some steps
something goes wrong on one rank. docs/reliability.md is the table of what these tests saw:

    python -m pytest tests/faults --record-faults docs/reliability.json && python ci/documents.py
"""
