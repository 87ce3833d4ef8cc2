"""What each switch buys on a GPU, alone and one after the other; and whether loaders keep up with it.

    python benchmarks/speedups_gpu.py --out FILE [--turns 5] [--only resnet50 vit gpt2 loaders]
    python benchmarks/speedups_gpu.py --device cpu --out FILE      # without one: tiny sizes, which prove that the
    script runs

What the planner expects is written to FILE.predicted before anything is measured. Baseline and switches of a network
take turns in an order
drawn anew; a ratio is taken inside a turn. A step reads its data from the GPU. The result names the card, the date
and the versions.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from fsdl_tools.compute.gpus import Cluster, find
from fsdl_tools.compute.planner import estimate
from fsdl_tools.core import fix_torchvision
from fsdl_tools.files import write_atomic
from fsdl_tools.models.profile import profile
from fsdl_tools.training.speedups import interleaved, paired_ratio
from fsdl_tools.training.switches import Trial, Turned, switches_alone, switches_together

STEPS = 4  # of a turn


@dataclasses.dataclass(frozen=True)
class Task:
    "A network, its batch, and the switches that mean something to it"

    name: str
    batch: int
    seq: int = 0  # 0: pictures
    leave_out: tuple = ()


WRITTEN = 'attention written out'
IMAGES = (WRITTEN,)
TEXT = ('channels last', '+ channels last')
SWITCHES = (
    {('alone', k): on for k, on in switches_alone.items()}
    | {('alone', WRITTEN): Turned()}
    | {('together', k): on for k, on in switches_together.items()}
)
TASKS = {
    'resnet50': Task('resnet50', 128, leave_out=IMAGES),
    'vit': Task('vit_base_patch16_224', 96, leave_out=(*IMAGES, *TEXT, 'compile')),
    'gpt2': Task('gpt2', 8, 1024, TEXT),
}
TINY = {
    'resnet50': Task('resnet18', 2, leave_out=IMAGES),
    'vit': Task('vit_tiny_patch16_224', 2, leave_out=(*IMAGES, *TEXT, 'compile')),
    'gpt2': Task('gpt2-tiny', 2, 32, TEXT),
}


def gpt2_config(task, attention='sdpa'):
    from transformers import GPT2Config

    small = dict(n_layer=2, n_embd=64, n_head=2, vocab_size=1000) if 'tiny' in task.name else {}
    return GPT2Config(
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        n_positions=task.seq,
        use_cache=False,
        attn_implementation=attention,
        **small,
    )


def network(task, attention='sdpa'):
    "What is trained: timm's name of a network, or a configuration of transformers"
    return gpt2_config(task, attention) if task.seq else task.name


def layout_of(task, switch, on):
    "What the planner is asked, or None where it has no word for a switch"
    if on.channels_last and not task.seq or switch == WRITTEN:
        return None
    precision = dict(fp32='fp32', tf32='tf32', bf16='amp_bf16')[on.precision]
    words = [f'micro_batch={max(task.batch // on.micro_batches, 1)}', f'precision={precision}']
    if on.compile:
        words.append('compile=true')
    if on.recompute:
        words.append('recompute=full')
    return ','.join(words)


def predicted(task, switch, on, gpu):
    "Milliseconds and GiB of a step as the planner has it, or why not"
    layout = layout_of(task, switch, on)
    if layout is None:
        return dict(not_predicted='the planner has no word for it')
    spec = gpt2_config(task) if task.seq else profile(task.name, train=True)
    try:
        e = estimate(spec, layout, Cluster(gpu, 1), task.batch, task.seq or None)
    except (ValueError, KeyError) as why:
        return dict(not_predicted=str(why).splitlines()[0][:200])
    return dict(predicted_ms=1e3 * e.step_time, predicted_gib=e.allocated / 2**30)


def chosen(task):
    "Switches that mean something to a network, by (how, name)"
    return {key: on for key, on in SWITCHES.items() if key[1] not in task.leave_out}


def predictions(tasks, gpu):
    return {
        net: {': '.join(key): predicted(task, key[1], on, gpu) for key, on in chosen(task).items()}
        for net, task in tasks.items()
    }


def measured(task, device, turns):
    "Rows of a network: how, switch, ms, ratio with its interval, GiB, seconds of the first step"
    runs, errors = {}, {}
    for key, on in chosen(task).items():
        attention = 'eager' if key[1] == WRITTEN else 'sdpa'
        try:
            runs[key] = Trial(network(task, attention), on, task.batch, task.seq or None, device=device, steps=STEPS)
        except Exception as e:  # the other switches are not this one's
            errors[key] = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
        print(task.name, *key, errors.get(key, 'ready'), flush=True)
    took = interleaved(runs, turns)
    rows = []
    for key, seconds in took.items():
        ratio = paired_ratio(took['alone', 'baseline'], seconds).to_dict()
        rows.append(
            dict(
                how=key[0],
                switch=key[1],
                ms=1e3 * statistics.median(seconds) / STEPS,
                ratio=ratio,
                peak_gib=runs[key].peak / 2**30,
                first_step_s=runs[key].first,
                seconds=seconds,
            )
        )
    return rows + [dict(how=how, switch=switch, error=e) for (how, switch), e in errors.items()]


# Do loaders keep up?


def write_jpegs(folder, n, edge):
    from fsdl_tools.training.custom import _synthetic_image

    def one(i):
        f = folder / 'jpegs' / f'class{i % 4}' / f'{i:05}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        _synthetic_image(i, edge, 0).save(f, quality=90)

    processes = [
        multiprocessing.get_context('fork').Process(target=lambda a=a: [one(i) for i in range(a, n, 8)])
        for a in range(8)
    ]
    for p in processes:
        p.start()
    for p in processes:
        p.join()


def opened(folder, size, batch, epochs):
    "Name -> function that gives batches without end (or for long enough)"
    from torch.utils.data import DataLoader
    from fsdl_tools.training.loaders import JpegFolder, Mapped, batches

    def jpegs(workers, pin):
        data = JpegFolder(folder / 'jpegs', size)
        loader = DataLoader(
            data,
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
        )
        return lambda: (b for _ in range(epochs) for b in loader)

    pin = torch.cuda.is_available()
    mapped = lambda kind, workers: (
        lambda: batches(Mapped(folder / f'{kind}.pack', size), batch, stop=10**6, workers=workers)
    )
    return {
        'JPEGs, 4 workers': jpegs(4, pin),
        'JPEGs, 16 workers': jpegs(16, pin),
        'JPEGs, 16 workers, not pinned': jpegs(16, False),
        'packed JPEGs, 16 threads': mapped('jpeg', 16),
        'packed pixels, 1 thread': mapped('pixels', 1),
        'packed pixels, 4 threads': mapped('pixels', 4),
    }


def fed(run, source, batch, seconds):
    "Pictures a second that a network is trained with, fed from a loader; None: the batch that lies on the GPU"
    mean, taken, stream = 128.0, 0, iter(source()) if source else None

    def step():
        if stream is not None:
            x, _ = next(stream)
            x = x.to(run.device, non_blocking=True).float().sub_(mean).div_(64.0)
            run.inputs = {'x': x.contiguous(memory_format=torch.channels_last)}
        run.step()

    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 2:  # what workers had made while they started is used up
        step()
        run._wait()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        taken += batch
        if taken % (8 * batch) == 0:
            run._wait()
    run._wait()
    took = time.perf_counter() - start
    if stream is not None:
        getattr(stream, 'close', lambda: None)()
    return taken / took


def loaders(device, seconds, turns=2):
    from fsdl_tools.training.loaders import pack

    tiny = device == 'cpu'
    task = Task('resnet18' if tiny else 'resnet50', 4 if tiny else 256)
    run = Trial(task.name, Turned('bf16', True, True, not tiny), task.batch, device=device)
    n, edge, size = (40, 64, 48) if tiny else (2048, 256, 224)
    lies = run.inputs
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        write_jpegs(folder, n, edge)
        for kind in ('jpeg', 'pixels'):
            pack(folder / 'jpegs', folder / f'{kind}.pack', kind, workers=8)
        print('packed', flush=True)
        rates = {}
        for _ in range(turns):
            for name, source in {'lies on the GPU': None, **opened(folder, size, task.batch, 10**6)}.items():
                run.inputs = lies
                rates.setdefault(name, []).append(fed(run, source, task.batch, seconds))
                print(name, round(rates[name][-1]), flush=True)
    return dict(network=task.name, batch=task.batch, images=n, jpeg_edge=edge, edge=size, rates=rates)


def about(device):
    card = torch.cuda.get_device_name(0) if device == 'cuda' else platform.processor() or platform.machine()
    versions = {p: importlib.metadata.version(p) for p in ('torch', 'timm', 'transformers', 'numpy')}
    return dict(
        date=datetime.date.today().isoformat(),
        device=device,
        card=card,
        cuda=torch.version.cuda,
        versions=versions | dict(python=platform.python_version()),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    p.add_argument('--gpu', help='name in gpus.csv; default: the card found, or an H100')
    p.add_argument('--turns', type=int, default=5)
    p.add_argument('--seconds', type=float, default=3.0, help='that each loader feeds the network in a turn')
    p.add_argument('--only', nargs='*', default=['resnet50', 'gpt2', 'vit', 'loaders'])
    p.add_argument('--out', required=True)
    a = p.parse_args()
    if a.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('there is no CUDA device here; --device cpu shows that the script runs')
    fix_torchvision()
    gpu = find(a.gpu or (torch.cuda.get_device_name(0) if a.device == 'cuda' else 'H100')).name
    tasks = {k: t for k, t in (TASKS if a.device == 'cuda' else TINY).items() if k in a.only}
    doc = about(a.device) | dict(
        gpu=gpu,
        turns=a.turns,
        steps=STEPS,
        tasks={k: dataclasses.asdict(t) for k, t in tasks.items()},
        predicted=predictions(tasks, gpu),
        rows={},
    )
    save = lambda name: write_atomic(name, json.dumps(doc, indent=1) + '\n')
    save(f'{a.out}.predicted')
    for key in a.only:
        start = time.perf_counter()
        if key == 'loaders':
            doc['loaders'] = loaders(a.device, a.seconds)
        else:
            doc['rows'][key] = measured(tasks[key], a.device, a.turns)
            for r in doc['rows'][key]:
                print(
                    f"{key:9} {r['how']:9} {r['switch']:28}",
                    r.get('error')
                    or f"{r['ms']:8.2f} ms  × {r['ratio']['mid']:.2f} "
                    f"({r['ratio']['low']:.2f}–{r['ratio']['high']:.2f})  "
                    f"{r['peak_gib']:.2f} GiB  first {r['first_step_s']:.1f} s",
                    flush=True,
                )
        save(a.out)  # what was measured stays, wherever the time ends
        if a.device == 'cuda':
            torch.cuda.empty_cache()
        print(key, 'took', round(time.perf_counter() - start, 1), 's', flush=True)


if __name__ == '__main__':
    main()
