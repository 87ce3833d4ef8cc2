"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
import itertools
import math

import numpy as np

from fsdl_tools.compute import search


def test_stages_interleave_where_layers_and_rounds_divide():
    grid = np.array(list(itertools.product((1, 2, 4), (1, 2, 3), (1, 2, 4), (1, 2, 3), (24, 64))))
    dp, micro, pp, vp, batch = grid.T
    for layers in (12, 22, 32):
        got = [bool(search._can_interleave(dict(zip(('dp', 'micro_batch', 'pp', 'vp'), map(np.array, row[:4]), strict=True)), dict(layers=layers), row[4])) for row in grid]
        wanted = [p > 1 and math.ceil(layers/p) % v == 0 and (n/(d*m)) % p == 0 for d, m, p, v, n in zip(dp, micro, pp, vp, batch, strict=True)]
        assert got == wanted and any(got) and not all(got)
