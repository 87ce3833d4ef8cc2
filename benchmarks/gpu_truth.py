"""Ten minutes on a machine with one GPU: predictions written down first, then measured, and both kept whatever they
say.

    python benchmarks/gpu_truth.py --out truth.json                 # on a GPU: about ten minutes
    python benchmarks/gpu_truth.py --device cpu --out truth.json    # without one: predictions for an H100, and tiny
    measurements
                                                                    # of this processor that prove the script runs

What is predicted and measured: products of matrices, attention by kernel, head size and length, 8-bit products where
the card has
them, updates of optimizers, and peak memory and step time of models of timm and transformers. FILE.predicted is
written before the
first measurement; the result names the card, the date and the versions.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import time
import numpy as np
import measure_models
from fsdl_tools.compute.columns import complete_columns, resolve
from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.compute.hardware import attention_shares, kernel_of, time_constants
from fsdl_tools.compute.planner import estimate
from fsdl_tools.compute.step_time import _gemm, derive
from fsdl_tools.files import write_atomic

PRODUCTS = [(8192, 8192, 8192), (16384, 4096, 4096), (8192, 14336, 4096), (4096, 28672, 8192), (2048, 2048, 2048)]
ATTENTION = [(heads, size, seq) for heads, size in ((32, 64), (32, 128), (16, 256)) for seq in (2048, 8192, 16384)]
LARGER = [
    'resnet50:256',
    'vit_base_patch16_224:128',
    'convnext_base:64',
    'efficientnet_b0:256',
    'gpt2:32',
    'llama-160m:32',
    'llama-1b:16',
]
OPTIMIZERS = ['adamw', 'adamw fused', 'sgd']
PARAMETERS = 200_000_000
TINY = dict(products=[(256, 256, 256)], attention=[(2, 64, 256)], parameters=100_000)
ONE_LAYER = dict(
    layers=1, hidden=4096, heads=32, ffn=16384, vocab=32000, seq=4096, gpus=1, tp=1, pp=1, dp=1, global_batch=1
)


def constants(gpu, precision='bf16'):
    "Constants of plain PyTorch on a GPU"
    c = complete_columns(ONE_LAYER | dict(gpu=gpu, framework='pytorch', precision=precision))
    k = resolve(c, time_constants())
    derive(c, k)
    return k


def predicted_product(gpu, m, n, k, precision='bf16'):
    "Seconds of one matrix product"
    c = constants(gpu, precision)
    return float(_gemm(m, n, k, c['rate'], *c['shape']))


def predicted_attention(gpu, heads, size, seq, passes):
    "Seconds of causal attention of one sequence, forward or backward; None where no kernel's rate is known"
    forward, backward, half = attention_shares('pytorch', gpu, '', str(float(size)))
    share = forward if passes == 'forward' else backward
    if np.isnan(share):
        return None
    flops = 2 * heads * size * seq**2 * (1 if passes == 'forward' else 2.5)
    return flops * (1 + half / seq) / (find(gpu).tflops['bf16'] * 1e12 * share)


def predicted_update(gpu, name, parameters):
    "Seconds of an optimizer's step"
    row = complete_columns(ONE_LAYER | dict(gpu=gpu, framework='pytorch', optimizer=name.split()[0]))
    k = resolve(row, time_constants())
    derive(row, k)
    return float(parameters * k['adam_bytes'] * k['optimizer_traffic'] / k['memory'])


def predicted_model(gpu, name, batch):
    "Bytes and seconds of a step of a model, as estimate gives them"
    _, spec = measure_models.build(name)
    seq = measure_models.SEQ if name in measure_models.CONFIGS else None
    e = estimate(spec, f'micro_batch={batch},precision=amp_bf16', Cluster(gpu, 1), batch, seq)
    return dict(bytes=e.allocated, seconds=e.step_time)


def shapes(tiny):
    "What is measured, in full or as far as a processor gets in a second"
    if tiny:
        return TINY['products'], TINY['attention'], TINY['parameters']
    return PRODUCTS, ATTENTION, PARAMETERS


def predict(gpu, models, tiny):
    "Rows with what, which and the prediction"
    products, attention, parameters = shapes(tiny)
    for shape in products:
        yield dict(what='product', which=list(shape), predicted_seconds=predicted_product(gpu, *shape))
        if 'fp8' in find(gpu).tflops:
            seconds = predicted_product(gpu, *shape, 'fp8')
            yield dict(what='product fp8', which=list(shape), predicted_seconds=seconds)
    for a in attention:
        for passes in ('forward', 'backward'):
            seconds = predicted_attention(gpu, *a, passes)
            yield dict(
                what=f'attention {passes}', which=list(a), kernel=kernel_of('pytorch', gpu), predicted_seconds=seconds
            )
    for name in OPTIMIZERS:
        seconds = predicted_update(gpu, name, parameters)
        yield dict(what='update', which=[name, parameters], predicted_seconds=seconds)
    for m in models:
        name, batch = m.split(':')
        try:
            got = predicted_model(gpu, name, int(batch))
        except ValueError as e:  # a network that this version of a zoo cannot make
            yield dict(what='model', which=[name, int(batch)], error=str(e).splitlines()[0][:200])
            continue
        yield dict(
            what='model', which=[name, int(batch)], predicted_seconds=got['seconds'], predicted_bytes=got['bytes']
        )


def timed(f, device, repeats=10):
    "Median seconds of `f`, after three calls that do not count"
    import torch

    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    took = []
    for i in range(repeats + 3):
        wait()
        t = time.perf_counter()
        f()
        wait()
        if i >= 3:
            took.append(time.perf_counter() - t)
    return float(np.median(took))


def measured_product(device, m, n, k, narrow=False):
    import torch

    a, b = (
        torch.randn(m, k, device=device, dtype=torch.bfloat16),
        torch.randn(n, k, device=device, dtype=torch.bfloat16),
    )
    if not narrow:
        return timed(lambda: a @ b.T, device)
    one = torch.ones((), device=device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    return timed(lambda: torch._scaled_mm(a8, b8.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16), device)


def measured_attention(device, heads, size, seq, passes):
    "Seconds by kernel: PyTorch's choice, and each of its back ends that takes the shape"
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        torch.randn(1, heads, seq, size, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    forward = lambda: scaled_dot_product_attention(q, k, v, is_causal=True)

    def both():
        forward().sum().backward()

    found = {}
    ends = (
        dict(sdpa=None)
        if device == 'cpu'
        else dict(sdpa=None, flash=SDPBackend.FLASH_ATTENTION, cudnn=SDPBackend.CUDNN_ATTENTION)
    )
    for name, end in ends.items():
        try:
            with sdpa_kernel(end) if end else torch.enable_grad():
                once = timed(forward, device, 5)
                found[name] = once if passes == 'forward' else timed(both, device, 5) - once
        except RuntimeError as e:
            found[name] = str(e).splitlines()[0][:100]
    return found


def measured_update(device, name, parameters):
    import torch

    weights = [torch.nn.Parameter(torch.zeros(parameters // 20, device=device)) for _ in range(20)]
    for w in weights:
        w.grad = torch.ones_like(w)
    make = torch.optim.SGD if name == 'sgd' else torch.optim.AdamW
    opt = make(weights, lr=1e-3, **(dict(fused=True) if 'fused' in name else {}))
    return timed(opt.step, device, 5)


def measure(row, device):
    "The measurement that belongs to a prediction"
    what, which = row['what'], row['which']
    if what.startswith('product'):
        return dict(measured_seconds=measured_product(device, *which, narrow='fp8' in what))
    if what.startswith('attention'):
        by = measured_attention(device, *which, what.split()[1])
        return dict(measured_seconds=by['sdpa'], by_kernel=by)
    if what == 'update':
        return dict(measured_seconds=measured_update(device, *which))
    import gc
    import torch

    try:
        got, _ = measure_models.measure(*which, kernels=40)
    except Exception as e:  # the next row is not this one's
        return dict(error=f'{type(e).__name__}: {e}'.splitlines()[0][:200])
    finally:
        gc.collect()
    return dict(
        measured_seconds=got['seconds'],
        measured_bytes=got['allocated'],
        reserved_bytes=got['reserved'],
        kernels=got['kernels'],
    )


def about(device):
    "Card, date and versions"
    import torch

    card = torch.cuda.get_device_name(0) if device == 'cuda' else platform.processor() or platform.machine()
    versions = {p: importlib.metadata.version(p) for p in ('torch', 'timm', 'transformers', 'numpy')}
    return dict(
        date=datetime.date.today().isoformat(),
        device=device,
        card=card,
        cuda=torch.version.cuda,
        versions=versions | dict(python=platform.python_version()),
    )


def show(row):
    "One line: what, predicted, measured, ratio"
    p, m = row.get('predicted_seconds'), row.get('measured_seconds')
    number = lambda x: f'{1e3 * x:10.3f} ms' if isinstance(x, float) else f'{str(x)[:12]:>13}'
    ratio = f'{p / m:6.2f}' if isinstance(p, float) and isinstance(m, float) else '     -'
    size = f"  bytes {row['predicted_bytes'] / row['measured_bytes']:.3f}" if row.get('measured_bytes') else ''
    print(
        f"{row['what']:20} {str(row['which']):28} predicted {number(p)}  measured {number(m)} {ratio}{size}", flush=True
    )


def main(argv):
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    a.add_argument('--gpu', help='name in gpus.csv; default: the card found, or an H100')
    a.add_argument(
        '--models',
        nargs='*',
        help='MODEL:BATCH; default: those of measure_models.py and larger batches on a GPU, none on a CPU',
    )
    a.add_argument('--only', nargs='*', help='product, attention, update or model')
    a.add_argument('--out', required=True)
    a = a.parse_args(argv)
    import torch

    if a.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('there is no CUDA device here; --device cpu shows that the script runs')
    gpu = find(a.gpu or (torch.cuda.get_device_name(0) if a.device == 'cuda' else 'H100')).name
    tiny = a.device == 'cpu'
    models = a.models if a.models is not None else [] if tiny else [*measure_models.MODELS, *LARGER]
    rows = list(predict(gpu, models, tiny))
    if a.only:
        rows = [r for r in rows if r['what'].startswith(tuple(a.only))]
    doc = about(a.device) | dict(gpu=gpu, rows=rows)
    write_atomic(f'{a.out}.predicted', json.dumps(doc, indent=1) + '\n')
    for row in rows:
        if 'error' not in row and not (tiny and row['what'] in ('product fp8', 'model')):
            row |= measure(row, a.device)
        show(row)
        write_atomic(a.out, json.dumps(doc, indent=1) + '\n')  # what was measured stays, wherever the time ends


if __name__ == '__main__':
    main(sys.argv[1:])
