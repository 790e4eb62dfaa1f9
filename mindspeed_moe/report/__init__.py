"""Expert-load telemetry as one self-contained HTML page, and as pictures.

Flow: segments (lines) -> records (checked) -> reader (tables of a rank) -> axis (columns) -> loads (a layer) -> page.
"""
