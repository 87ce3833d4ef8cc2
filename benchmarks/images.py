"""The planner's step of networks for images beside published ones: fsdl_tools/data/image_runs.csv, half of which
gave it constants.

python benchmarks/images.py      # writes fsdl_tools/data/results/images.json; about five minutes, no GPU
"""

import datetime
import json
from pathlib import Path

from fsdl_tools.compute.gpus import Cluster
from fsdl_tools.compute.planner import estimate
from fsdl_tools.core import fix_torchvision, read_data
from fsdl_tools.files import write_atomic
from fsdl_tools.models.profile import profile

OUT = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'images.json'


def predicted(run):
    "Milliseconds of a step, channels first; timm and PyTorch of July 2022 wrote attention out"
    spec = profile(run['network'], train=True, fused=False)
    if spec.inputs[0].shape[-1] != run['edge']:
        raise ValueError(f"{run['network']} takes pictures of {spec.inputs[0].shape[-1]} here, not {run['edge']}")
    e = estimate(spec, f"micro_batch={run['batch']},precision={run['precision']}", Cluster(run['gpu'], 1), run['batch'])
    return 1e3 * e.step_time


def main():
    fix_torchvision()
    old = {r['network']: r for r in json.loads(OUT.read_text())['rows']} if OUT.exists() else {}
    rows = []
    for run in read_data('image_runs.csv'):
        ms = predicted(run)
        rows.append(
            dict(
                network=run['network'],
                part=run['part'],
                measured_ms=run['step_ms'],
                predicted_ms=round(ms, 1),
                ratio=round(ms / run['step_ms'], 3),
                earlier=old.get(run['network'], {}).get('earlier'),
            )
        )
        print(rows[-1], flush=True)
    doc = dict(
        date=datetime.date.today().isoformat(),
        gpu='RTX 3090',
        conditions=(
            'fp16 autocast, channels first, PyTorch 1.12, largest batch that fits; measured and published by the'
            ' authors of timm; earlier: the ratio by the constants that an H200 alone had given, kept as it was'
        ),
        rows=rows,
    )
    write_atomic(OUT, json.dumps(doc, indent=1) + '\n')


if __name__ == '__main__':
    main()
