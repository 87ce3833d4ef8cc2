"""How fast is a model in onnxruntime, compared to torch?

    python benchmarks/onnx_speed.py [--seconds 400]     # resumable; writes fsdl_tools/data/results/onnx_speed.json
    when all models are done
    python benchmarks/onnx_speed.py --repeat            # eager and onnxruntime fp32 only, five times over: is a
    ratio below 1 more than noise?

Every model is exported and verified, quantised to int8 (dynamic; convolutional networks also static, calibrated on
random images) and timed against eager torch in interleaved rounds
with one thread: what is published is the median over rounds of the ratio within a round. torch.compile is timed for
resnet18.
"""

import argparse, datetime, json, os, platform, sys, tempfile, time
from pathlib import Path

here = Path(__file__).resolve().parent
lines, repeated, result = (
    here.parent / '.cache' / 'onnx_speed.jsonl',
    here.parent / '.cache' / 'onnx_speed_repeats.jsonl',
    here.parent / 'fsdl_tools' / 'data' / 'results' / 'onnx_speed.json',
)
bert = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=1000)
gpt = dict(n_embd=256, n_layer=4, n_head=4, vocab_size=1000, n_positions=256, bos_token_id=0, eos_token_id=0)
models = {
    'resnet18': {},
    'mobilenetv3_small_100': {},
    'efficientnet_b0': {},
    'convnext_atto': {},
    'vit_tiny_patch16_224': {},
    'bert, 4 layers of 256': dict(config=('bert', bert)),
    'gpt2, 4 layers of 256': dict(config=('gpt2', gpt)),
}


def one(name):
    import torch
    from fsdl_tools.onnx.run import random_inputs
    from fsdl_tools.onnx.export import export
    from fsdl_tools.onnx.sources import open_model, tiny_config
    from fsdl_tools.onnx.optimise import benchmark, quantise

    torch.set_num_threads(1)
    conf = models[name].get('config')
    src, out = open_model(tiny_config(conf[0], **conf[1]) if conf else name), dict(model=name, timings=[], smaller=[])
    with tempfile.TemporaryDirectory() as d:
        out['max_rel'] = export(src, f'{d}/m.onnx').max_rel
        files = {'onnxruntime fp32': f'{d}/m.onnx'}
        kinds = dict(int8='dynamic int8') | ({} if conf else dict(static='static int8'))
        for k, label in kinds.items():
            cal = [random_inputs(src.specs, seed=50 + i, batch=4) for i in range(4)] if k == 'static' else None
            out['smaller'].append(
                quantise(files['onnxruntime fp32'], f'{d}/{k}.onnx', k, calibration=cal).replace(path='').to_dict()
            )
            files[label] = f'{d}/{k}.onnx'
        for b in (1, 8):
            out['timings'] += [
                t.to_dict()
                for t in benchmark(
                    src,
                    files,
                    batches=(b,),
                    n=11,
                    name=name,
                    sizes=dict(sequence=64),
                    compiled=b == 1 and name == 'resnet18',
                )
            ]
    return out


def again(name, repeats=5):
    "The ratio of eager to onnxruntime fp32, measured from scratch several times"
    from fsdl_tools.onnx.export import export
    from fsdl_tools.onnx.sources import open_model, tiny_config
    from fsdl_tools.onnx.optimise import benchmark
    import torch

    torch.set_num_threads(1)
    conf = models[name].get('config')
    src, out = open_model(tiny_config(conf[0], **conf[1]) if conf else name), {}
    with tempfile.TemporaryDirectory() as d:
        export(src, f'{d}/m.onnx')
        for b in (1, 8):
            out[b] = [
                benchmark(src, {'onnxruntime fp32': f'{d}/m.onnx'}, batches=(b,), n=9, sizes=dict(sequence=64))[1].ratio
                for _ in range(repeats)
            ]
    return [
        dict(model=name, batch=b, ratios=[round(r, 3) for r in rs], date=str(datetime.date.today()))
        for b, rs in out.items()
    ]


def collect():
    "Write what has been measured so far"
    import importlib.metadata as md

    rows = [json.loads(l) for l in lines.read_text().splitlines()]
    result.write_text(
        json.dumps(
            dict(
                date=str(datetime.date.today()),
                versions={p: md.version(p) for p in ('torch', 'timm', 'transformers', 'onnxruntime')}
                | dict(python=platform.python_version()),
                conditions=(
                    'one thread of a shared 2-core x86 machine with AVX-512 VNNI; 11 interleaved rounds; sequences of'
                    ' 64 tokens'
                ),
                not_run=[m for m in models if m not in {r['model'] for r in rows}],
                repeats=[json.loads(l) for l in repeated.read_text().splitlines()] if repeated.exists() else [],
                rows=rows,
            ),
            indent=1,
        )
        + '\n'
    )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=400)
    p.add_argument('--collect', action='store_true', help='only write what has been measured so far')
    p.add_argument('--repeat', action='store_true', help='only measure again whether onnxruntime is slower')
    a = p.parse_args()
    lines.parent.mkdir(exist_ok=True)
    t0 = time.time()
    if a.repeat:
        for n in sorted(models, key=lambda n: 'vit' not in n):
            if repeated.exists() and f'"{n}"' in repeated.read_text():
                continue
            got = again(n)
            with open(repeated, 'a') as f:
                f.writelines(json.dumps(r) + '\n' for r in got)
            print(got, round(time.time() - t0), flush=True)
        collect()
        sys.exit()
    have = {json.loads(l)['model'] for l in lines.read_text().splitlines()} if lines.exists() else set()
    for n in models:
        if n in have or a.collect:
            continue
        if time.time() - t0 > a.seconds:
            collect()
            print('to be continued')
            sys.exit(3)
        r = one(n)
        with open(lines, 'a') as f:
            f.write(json.dumps(r) + '\n')
        print(
            n,
            {(t['runner'], t['batch']): round(t['ratio'], 2) for t in r['timings']},
            round(time.time() - t0),
            flush=True,
        )
    collect()
