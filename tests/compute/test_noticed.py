"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
import itertools
import math

import numpy as np

from fsdl_tools.compute import search, uncertainty


def test_stages_interleave_where_layers_and_rounds_divide():
    grid = np.array(list(itertools.product((1, 2, 4), (1, 2, 3), (1, 2, 4), (1, 2, 3), (24, 64))))
    dp, micro, pp, vp, batch = grid.T
    for layers in (12, 22, 32):
        got = [bool(search._can_interleave(dict(zip(('dp', 'micro_batch', 'pp', 'vp'), map(np.array, row[:4]), strict=True)), dict(layers=layers), row[4])) for row in grid]
        wanted = [p > 1 and math.ceil(layers/p) % v == 0 and (n/(d*m)) % p == 0 for d, m, p, v, n in zip(dp, micro, pp, vp, batch, strict=True)]
        assert got == wanted and any(got) and not all(got)


def test_twelve_runs_in_four_cells_are_enough():
    enough = lambda cells, runs: bool(uncertainty._is_enough(np.arange(runs) % cells, np.ones(runs, bool)))
    assert [enough(4, 12), enough(3, 12), enough(4, 11), enough(5, 30)] == [True, False, False, True]
    only = np.arange(24) < 12
    assert uncertainty._is_enough(np.arange(24) % 4, only) and not uncertainty._is_enough(np.arange(24) % 4, only & (np.arange(24) > 0))
