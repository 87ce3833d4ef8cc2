"""Predicted against measured peak memory on a CUDA device: allocated, reserved, and what the device reports.

    python benchmarks/memory_gpu.py                 # eight models, fp32 and autocast
    python benchmarks/memory_gpu.py --device cpu    # without a GPU: predictions and the replayed allocator only,
    nothing is written

Each model runs in a process of its own, so that no cached segment helps the next. Writes
fsdl_tools/data/results/memory_gpu.json.
"""

import argparse, datetime, json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
import torch
from fsdl_tools.core import fix_torchvision
from fsdl_tools.units import human_bytes
from fsdl_tools.files import write_atomic

fix_torchvision()
from fsdl_tools.memory.measure import cross_entropy, logits_of, measure, summary
from fsdl_tools.memory.tracker import reserved
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.models.build import build, example_inputs

out = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'memory_gpu.json'
models = {
    'resnet50': 64,
    'vit_base_patch16_224': 64,
    'convnext_tiny': 64,
    'swin_tiny_patch4_window7_224': 32,
    'gpt2': 8,
    'bert': 16,
    't5': 8,
    'opt': 4,
    'llama': 2,
    'qwen3': 4,
}
smaller = dict(llama=dict(num_hidden_layers=8), qwen3=dict(num_hidden_layers=8), opt=dict(num_hidden_layers=12))


def train(name, batch, seq, precision, device):
    "Two steps on the device; bytes of the second: allocated and reserved at most, and used on the device"
    model = build(name, **smaller.get(name, {})).to(device).train()
    if getattr(getattr(model, 'config', None), 'use_cache', False):
        model.config.use_cache = False
    inputs, opt = (
        {k: v.to(device) for k, v in example_inputs(model, batch, seq, 'cpu').items()},
        torch.optim.AdamW(model.parameters()),
    )
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast('cuda', torch.bfloat16, enabled=precision == 'amp'):
            y = logits_of(model(**inputs))
        cross_entropy(y).backward()
        opt.step()
        opt.zero_grad()
        del y
    free, total = torch.cuda.mem_get_info()
    return dict(
        allocated=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved(), device=total - free
    )


def one(name, batch, seq, precision, device):
    "The row of one model"
    model = build(name, device='meta', **smaller.get(name, {}))
    p = breakdown(model, batch, seq, precision=precision)
    replayed, rounded = reserved(measure(model, example_inputs(model, batch, seq), precision=precision))
    row = dict(
        model=name,
        batch=batch,
        seq=seq,
        precision=precision,
        predicted=p.to_dict(),
        replayed_reserved_cpu_kernels=replayed,
        replayed_allocated_cpu_kernels=rounded,
    )
    return row | (dict(measured=train(name, batch, seq, precision, device)) if device == 'cuda' else {})


def in_gib(row, before):
    "A row as the page reads it; `before` is what an earlier prediction said, where there was one"
    if 'error' in row:
        return row
    gib = lambda n: round(n / 2**30, 3)
    predicted = gib(row['predicted']['peak'])
    told = {k: row[k] for k in ('model', 'batch', 'seq', 'precision')} | dict(settings=smaller.get(row['model'], {}))
    told |= dict(before_gib=before.get((row['model'], row['precision']), predicted), predicted_gib=predicted)
    return told | {f'{k}_gib': gib(v) for k, v in row['measured'].items()}


def in_a_process(a, name, precision):
    "The row of a model, whose process ends with it; an error is a row too"
    done = subprocess.run(
        [sys.executable, __file__, '--device', a.device, '--seq', str(a.seq), '--one', name, precision],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        row = dict(model=name, precision=precision, error=done.stderr.strip().splitlines()[-1][:300])
        print(row, flush=True)
        return row
    row = json.loads(done.stdout.splitlines()[-1])
    m = row.get('measured', {})
    if a.jobs > 1:
        m.pop('device', None)
    got = ' '.join(f'{k} {human_bytes(v)}' for k, v in m.items())
    print(
        f"{name:32}{precision:6} predicted {human_bytes(row['predicted']['peak']):>11}  replayed"
        f" {human_bytes(row['replayed_reserved_cpu_kernels']):>11} {got}",
        flush=True,
    )
    return row


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    a.add_argument('--models', nargs='*', default=list(models))
    a.add_argument('--seq', type=int, default=512)
    a.add_argument('--one', nargs=2, metavar=('MODEL', 'PRECISION'), help=argparse.SUPPRESS)
    a.add_argument(
        '--jobs', type=int, default=1, help='models at a time; what the device reports as used is then left out'
    )
    a.add_argument('--out', default=str(out))
    a = a.parse_args()
    if a.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('there is no CUDA device here; --device cpu shows the predictions')
    if a.one:
        print(json.dumps(one(a.one[0], models[a.one[0]], a.seq, a.one[1], a.device)))
        sys.exit()
    cases = [(name, precision) for name in a.models for precision in ('fp32', 'amp')]
    with ThreadPoolExecutor(a.jobs) as pool:
        rows = list(pool.map(lambda case: in_a_process(a, *case), cases))
    if a.device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        versions = {k: version(k) for k in ('torch', 'timm', 'transformers')}
        known = json.loads(out.read_text()) if out.exists() else dict(rows=[], conditions='')
        before = {(r['model'], r['precision']): r['before_gib'] for r in known['rows']}
        doc = dict(
            date=str(datetime.date.today()),
            device=card.name,
            memory=card.total_memory,
            cuda=torch.version.cuda,
            versions=versions,
            conditions=known['conditions'],
            rows=[in_gib(r, before) for r in rows],
        )
        write_atomic(a.out, json.dumps(doc, indent=1) + '\n')
