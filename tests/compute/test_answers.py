"Answers of the planner as they were"
import numpy as np

from fsdl_tools.compute.columns import columns
from fsdl_tools.compute.step_time import step_time, waves
from tests.answers import answer, same_answers


def test_waves(request):
    sizes = np.random.default_rng(0).integers(1, 20_000, (40, 2))
    same_answers(request, 'waves', {f'{m} {n}': answer(waves, m, n) for m, n in sizes})
