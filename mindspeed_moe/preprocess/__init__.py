"""From a routing map to the split sizes of the all-to-alls.

Flow: routing map -> counts -> exchange -> (copy, wait) -> split plan -> dispatcher attributes.

Legend for shapes in this package:
    T   local tokens            E   experts                 L   local experts, E / EP
    EP  expert-parallel size    TP  expert-tensor-parallel size
    n   [E] local tokens per expert: column sums of the routing map
The rank with coordinates (i in EP, k in TP) has index i*TP + k in the TPxEP group and owns experts [i*L, (i+1)*L).
"""
