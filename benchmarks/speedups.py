"""What each switch buys on the digits of training.speedups: time of a step, time to an accuracy, memory, accuracy;
DeepSpeed; Muon.

Baseline and switches take turns in an order drawn anew; ratios are taken inside a turn (a turn of the way to an
accuracy has a seed of its own).

    python benchmarks/speedups.py [--turns 5]
    python benchmarks/speedups.py --only-switches                  # all switches; DeepSpeed and Muon stay as they
    are in the file
    python benchmarks/speedups.py --only-switches bf16 recompute   # these two beside the baseline; all else stays as
    it is

DeepSpeed runs in the side environment `sharding`; the result is fsdl_tools/data/results/speedups.json.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch

from fsdl_tools.core import one_of
from fsdl_tools.environments import build_env, run_in
from fsdl_tools.models.gpt import GPT, GPTConfig, lm_loss
from fsdl_tools.models.tiny import rule_batch
from fsdl_tools.training.speedups import DigitRun, Switches, interleaved, paired_ratio, saved_bytes

TARGET, PLANNED, SHORT = 0.93, 240, 60
SWITCHES = {
    'baseline': Switches(),
    'bf16': Switches(precision='bf16'),
    'torch.compile': Switches(compile=True),
    'channels last': Switches(channels_last=True),
    'optimizer: foreach': Switches(optimizer='foreach'),
    'optimizer: fused': Switches(optimizer='fused'),
    'accumulate 4 micro-batches': Switches(micro_batches=4),
    'recompute': Switches(recompute=True),
    'progressive sizes': Switches(growing=True),
    'augmentation stops halfway': Switches(augment=0.5),
}
TOGETHER = [('fused', dict(optimizer='fused')), ('augment half', dict(augment=0.5)), ('sizes', dict(growing=True))]
ALONE = {'fused': 'optimizer: fused', 'augment half': 'augmentation stops halfway', 'sizes': 'progressive sizes'}
REMARKS = {
    'CPU Adam': ['yes', 'compiled when first used (30 to 90 s); the same update as AdamW'],
    'curriculum by sequence length': ['yes', 'a schedule; equal to one line of code, below'],
    'random layerwise token dropping': ['the schedule', 'its gather and scatter are CUDA kernels'],
    'quantised gradients (ZeRO++)': ['no', 'int8 and int4 kernels of CUDA'],
    '1-bit Adam, 0/1 Adam, 1-bit LAMB': ['no', 'the module is gone from this version; the idea is a function below'],
    'sparse attention': ['no', 'the module is gone from this version; FlexAttention, below, took its place'],
    'progressive layer drop': ['no', 'the module is gone from this version'],
}


def kept(switches):
    run = DigitRun(switches)
    x, y = run.draw()
    share = len(x) // switches.micro_batches
    return saved_bytes(lambda: run.loss(x[:share], y[:share]))


def short_run(switches):
    "A run of SHORT planned steps, again and again, so that schedules are passed through"
    run = DigitRun(switches, steps=SHORT)

    def again():
        run.done = 0
        for _ in range(SHORT):
            run.step()

    again()
    return again


def to_accuracy(turns, chosen):
    "Seconds, steps and final accuracy by switch and turn; None where the accuracy was not reached"
    seconds, steps, accuracy = ({k: [] for k in chosen} for _ in range(3))
    for seed in range(turns):
        for name in random.Random(seed).sample(list(chosen), len(chosen)):
            run = DigitRun(chosen[name], seed=seed, steps=PLANNED)
            took, at = run.train_to(TARGET, clock=time.process_time)
            while run.done < PLANNED:
                run.step()
            seconds[name].append(took)
            steps[name].append(at)
            accuracy[name].append(run.accuracy())
        print('to accuracy', seed, {k: round(v[-1] or -1, 2) for k, v in seconds.items()}, file=sys.stderr, flush=True)
    return seconds, steps, accuracy


def ratio(base, other):
    return None if None in other else paired_ratio(base, other).to_dict()


def switches(turns, names):
    "A row for each of these switches, and the baseline that took turns with them"
    chosen = {k: SWITCHES[k] for k in ['baseline', *names]}
    took = interleaved({k: short_run(s) for k, s in chosen.items()}, turns, clock=time.process_time)
    print('steps done', file=sys.stderr, flush=True)
    seconds, steps, accuracy = to_accuracy(turns, chosen)
    whole = kept(Switches())
    rows = []
    for k in names:
        rows.append(
            dict(
                switch=k,
                step=ratio(took['baseline'], took[k]),
                to_accuracy=ratio(seconds['baseline'], seconds[k]),
                steps=statistics.median(steps[k]),
                kept=kept(chosen[k]) / whole,
                accuracy=statistics.median(accuracy[k]),
                seconds=seconds[k],
            )
        )
    return rows, dict(
        seconds=seconds['baseline'],
        steps=statistics.median(steps['baseline']),
        accuracy=statistics.median(accuracy['baseline']),
        step=took['baseline'],
    )


def together(turns, rows):
    on, made = {}, {'baseline': short_run(Switches())}
    for name, change in TOGETHER:
        on |= change
        made[name] = short_run(Switches(**on))
    took = interleaved(made, turns, clock=time.process_time)
    alone = {r['switch']: r['step']['mid'] for r in rows}
    return [
        dict(added=name, step=ratio(took['baseline'], took[name]), alone=alone[ALONE[name]]) for name, _ in TOGETHER
    ]


def optimizers(model, kind, lr):
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and 'layers' in n]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    if kind == 'AdamW':
        return [torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0), torch.optim.AdamW(others, lr=3e-3, weight_decay=0)]


def gpt_run(kind, lr, seed, steps):
    model = GPT(GPTConfig(layers=2, hidden=48, heads=4, ctx=32), seed)
    opts, last, start = optimizers(model, kind, lr), [], time.perf_counter()
    for s in range(steps):
        x, y = rule_batch(1000 * seed + s, 16, 32, 256)
        loss = lm_loss(model(x), y)
        for o in opts:
            o.zero_grad()
        loss.backward()
        for o in opts:
            o.step()
        last.append(loss.item())
    return statistics.mean(last[-5:]), (time.perf_counter() - start) / steps * 1e3


def muon(steps=100):
    rows = []
    for kind, rates in (('AdamW', (1e-3, 3e-3, 1e-2, 3e-2)), ('Muon', (3e-3, 1e-2, 3e-2, 1e-1))):
        tried = [(lr, [gpt_run(kind, lr, seed, steps) for seed in range(3)]) for lr in rates]
        lr, runs = min(tried, key=lambda t: statistics.mean(r[0] for r in t[1]))
        losses = [r[0] for r in runs]
        rows.append(
            dict(
                optimizer=kind,
                lr=lr,
                loss=statistics.mean(losses),
                losses=losses,
                ms=statistics.median(r[1] for r in runs),
            )
        )
    return dict(
        steps=steps,
        rows=rows,
        conditions=(
            'GPT of 2 layers and hidden size 48, the rule of models.tiny; mean of the last five losses; for Muon the'
            ' matrices of the layers, the rest by AdamW at 3e-3'
        ),
    )


def merged(old, rows, apart):
    "A result with these rows in place of the old ones of the same switches; each says when and beside which baseline"
    new = {r['switch']: r | dict(apart=apart) for r in rows}
    return old | dict(rows=list(({r['switch']: r for r in old['rows']} | new).values()))


def arguments(given):
    "What was asked for; ends with a message for a name that is none, and where there is no file to merge into"
    p = argparse.ArgumentParser()
    p.add_argument('--turns', type=int, default=7)
    p.add_argument(
        '--only-switches',
        nargs='*',
        metavar='NAME',
        help=(
            'keep what the file says of DeepSpeed and Muon; with names, measure these switches beside the baseline and'
            ' keep all else'
        ),
    )
    p.add_argument('--out', type=Path, default=Path(__file__).parent.parent / 'fsdl_tools/data/results/speedups.json')
    a = p.parse_args(given)
    try:
        for name in a.only_switches or []:
            one_of('switch', name, [k for k in SWITCHES if k != 'baseline'])
    except ValueError as e:
        p.error(str(e))
    if a.only_switches is not None and not a.out.exists():
        p.error(f'there is no {a.out} to keep anything of: measure all first')
    return a


def main(given=None):
    a = arguments(given)
    old = json.loads(a.out.read_text()) if a.only_switches is not None else {}
    torch.set_num_threads(1)
    conditions = (
        f'one CPU thread of a machine that had other work, seconds of the processor; accuracy {TARGET:.0%} on 297 test'
        f' pictures; a turn of a step is {SHORT} steps; compile with a warm cache'
    )
    facts = dict(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        repeats=a.turns,
        planned=PLANNED,
        target=TARGET,
        conditions=conditions,
    )
    names = list(dict.fromkeys(a.only_switches or [])) or [k for k in SWITCHES if k != 'baseline']
    rows, baseline = switches(a.turns, names)
    out = (
        merged(old, rows, facts | dict(baseline=baseline))
        if a.only_switches
        else whole_result(a.turns, old, facts, rows, baseline)
    )
    a.out.write_text(json.dumps(out, indent=1) + '\n')


def whole_result(turns, old, facts, rows, baseline):
    "All that the file says, with the old measurements of DeepSpeed and Muon where they are kept"
    combined = together(turns, rows)
    print('together done', file=sys.stderr, flush=True)
    if not old:
        build_env('sharding')
    deepspeed = old.get('deepspeed') or run_in(
        'sharding', 'fsdl_tools.training.speedups:deepspeed_run', dict(turns=21), timeout=400
    )
    deepspeed |= dict(remarks=REMARKS, conditions='one thread; side environment sharding')
    return facts | dict(
        baseline=baseline, rows=rows, together=combined, deepspeed=deepspeed, muon=old.get('muon') or muon()
    )


if __name__ == '__main__':
    main()
