"""Measure preprocess and its host half: stock, `reference` and `packed`, interleaved call by call.

Flow: shapes -> traffic -> world (simulated or real processes) -> contestants -> equality -> timing -> report.
"""
