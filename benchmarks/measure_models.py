"""Predicted against measured peak memory and step time of real models on one GPU; without a GPU, against a trace of
fake tensors.

usage: measure_models.py [--out FILE] [MODEL:BATCH ...]        (rows of other models that FILE already has are kept)

Each model trains a few steps with Adam in a process of its own. On a GPU: bf16 autocast, peak allocated and reserved
bytes of the
allocator, median of the last steps. On a CPU nothing is computed: MemTracker adds up the tensors of two steps in fp32.
"""

import datetime, importlib.metadata, json, platform, subprocess, sys, time
from pathlib import Path
from fsdl_tools.core import fix_torchvision
from fsdl_tools.files import write_atomic
from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.compute.planner import estimate
from fsdl_tools.models.profile import profile

MODELS = [
    'resnet18:32',
    'resnet50:16',
    'vit_small_patch16_224:16',
    'convnext_tiny:16',
    'efficientnet_b0:16',
    'mobilenetv3_large_100:32',
    'regnety_016:16',
    'gpt2:4',
    'llama-160m:4',
    'qwen2-small:4',
]
SEQ = 512
CONFIGS = {
    'gpt2': (
        'GPT2Config',
        dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, n_positions=SEQ, activation_function='gelu'),
    ),
    'llama-160m': (
        'LlamaConfig',
        dict(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            intermediate_size=2048,
            vocab_size=32000,
            max_position_embeddings=SEQ,
        ),
    ),
    'llama-1b': (
        'LlamaConfig',
        dict(
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=8192,
            vocab_size=32000,
            max_position_embeddings=SEQ,
        ),
    ),
    'qwen2-small': (
        'Qwen2Config',
        dict(
            hidden_size=896,
            num_hidden_layers=12,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=32000,
            max_position_embeddings=SEQ,
        ),
    ),
}


def build(name):
    "Model and what the planner is told about it"
    fix_torchvision()
    if name in CONFIGS:
        import transformers

        cls, kw = CONFIGS[name]
        config = getattr(transformers, cls)(use_cache=False, attn_implementation='sdpa', **kw)
        return lambda: transformers.AutoModelForCausalLM.from_config(config), config
    import timm

    return lambda: timm.create_model(name), profile(name, train=True)


def batch_of(name, spec, n, device):
    "Arguments of a step; fake tensors get a mask, since no value can be looked at to see that none is needed"
    import torch

    if name not in CONFIGS:
        return (torch.zeros((n, *spec.inputs[0].shape[1:]), device=device),), {}
    if device == 'cuda':
        ids = torch.randint(1000, (n, SEQ), device=device)  # one id alone would queue up at its embedding
        return (ids,), dict(labels=ids)
    ids = torch.zeros((n, SEQ), dtype=torch.int64, device=device)
    return (ids,), dict(attention_mask=torch.zeros((n, 1, SEQ, SEQ), device=device), labels=ids)


def loss_of(out):
    return out.loss if hasattr(out, 'loss') else out.float().logsumexp(-1).mean()


def trace(name, n):
    "Peak bytes by category of two steps on fake tensors"
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    make, spec = build(name)
    with torch.device('meta'):
        model = make().train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device='cpu')
        opt = torch.optim.AdamW(model.parameters(), foreach=False)
        args, kw = batch_of(name, spec, n, 'cpu')
        tracker = MemTracker()
        tracker.track_external(model, opt)
        with tracker as t:
            for step in range(2):
                loss_of(model(*args, **kw)).backward()
                opt.step()
                opt.zero_grad()
                if step == 0:
                    t.reset_mod_stats()
            peak = next(iter(t.get_tracker_snapshot('peak').values()))
    return dict(allocated=next(v for k, v in peak.items() if str(getattr(k, 'value', k)) == 'Total')), spec


def measure(name, n, steps=12, kernels=0):
    "Peak bytes and seconds of a step on the GPU, and the longest kernels of a step: (name, microseconds, calls)"
    import torch

    make, spec = build(name)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = make().cuda().train()
    opt = torch.optim.AdamW(model.parameters(), fused=True)
    args, kw = batch_of(name, spec, n, 'cuda')
    times = []

    def step():
        torch.cuda.synchronize()
        t = time.perf_counter()
        with torch.autocast('cuda', torch.bfloat16):
            out = loss_of(model(*args, **kw))
        out.backward()
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - t)

    for _ in range(steps):
        step()
    seconds = sorted(times[steps // 3 :])[len(times[steps // 3 :]) // 2]
    got = dict(allocated=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved(), seconds=seconds)
    return got | (dict(kernels=longest_kernels(step, kernels)) if kernels else {}), spec


def longest_kernels(step, most):
    "The kernels that take most of a step: (name, microseconds, calls)"
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
        step()
    took = {}
    for e in prof.events():
        if str(e.device_type).endswith('CUDA'):
            total, calls = took.get(e.name, (0.0, 0))
            took[e.name] = total + e.time_range.elapsed_us(), calls + 1
    return [(name[:160], round(t, 1), k) for name, (t, k) in sorted(took.items(), key=lambda x: -x[1][0])[:most]]


def one(name, n):
    "A model's row: measured, predicted, ratio"
    import torch

    gpu = torch.cuda.is_available()
    got, spec = (measure if gpu else trace)(name, n)
    where = Cluster(find(torch.cuda.get_device_name(0)) if gpu else 'A100-SXM-80GB', 1)
    e = estimate(
        spec, f"micro_batch={n},precision={'amp_bf16' if gpu else 'fp32'}", where, n, SEQ if name in CONFIGS else None
    )
    held = e.allocated - (0 if gpu else e.first['fixed'])  # the trace sees no library workspaces
    row = dict(
        model=name,
        batch=n,
        measured_bytes=got['allocated'],
        predicted_bytes=held,
        memory_ratio=round(held / got['allocated'], 4),
    )
    if gpu:
        row |= dict(
            measured_seconds=got['seconds'],
            predicted_seconds=e.step_time,
            time_ratio=round(e.step_time / got['seconds'], 4),
            reserved_bytes=got['reserved'],
        )
    return row


def main(args):
    if args[:1] == ['--one']:
        return print(json.dumps(one(args[1], int(args[2]))))
    out = args.pop(args.index('--out') + 1) if '--out' in args else None
    rows = []
    for m in [a for a in args if a != '--out'] or MODELS:
        name, n = m.split(':')
        r = subprocess.run([sys.executable, __file__, '--one', name, n], capture_output=True, text=True, timeout=600)
        rows.append(
            json.loads(r.stdout.splitlines()[-1])
            if r.returncode == 0
            else dict(model=name, batch=int(n), error=r.stderr.strip().splitlines()[-1][:300])
        )
        print(rows[-1], flush=True)
    import torch

    doc = dict(
        date=datetime.date.today().isoformat(),
        how='one GPU, bf16 autocast' if torch.cuda.is_available() else 'fake tensors, fp32, no GPU',
        device=torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none',
        versions={p: importlib.metadata.version(p) for p in ('torch', 'timm', 'transformers')}
        | dict(python=platform.python_version()),
        models=rows,
    )
    if out and Path(out).exists():
        names = {r['model'] for r in rows}
        doc['models'] = [r for r in json.loads(Path(out).read_text())['models'] if r['model'] not in names] + rows
    if out:
        write_atomic(out, json.dumps(doc, indent=1) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
