"""Megatron-core's column- and row-parallel layers beside ours, in the side environment `megatron`.

    python benchmarks/megatron.py        # builds the environment where it is missing

Writes fsdl_tools/data/results/megatron.json.
"""

import datetime, json
from pathlib import Path
from fsdl_tools.files import write_atomic
from fsdl_tools.environments import build_env, run_in, side_env

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'megatron.json'

if __name__ == '__main__':
    build_env(side_env('megatron'))
    found = run_in('megatron', 'fsdl_tools.parallel.megatron:run_megatron', dict(ranks=[2, 4]), timeout=300)
    write_atomic(out, json.dumps(dict(date=str(datetime.date.today())) | found, indent=1) + '\n')
    for r in found['rows']:
        print(r)
