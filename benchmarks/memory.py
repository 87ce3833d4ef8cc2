"""Predicted against measured memory of a training step, and other estimators on the same models.

    python benchmarks/memory.py            # all models; a model that is in the results already is skipped
    python benchmarks/memory.py resnet18   # these again
    python benchmarks/memory.py --deepspeed    # add what DeepSpeed's estimator says, from the side environment sharding

Nothing is computed: models live on the meta device and the steps run on tensors without data. Writes
fsdl_tools/data/results/memory.json.
"""

import datetime, json, sys, time, warnings
from importlib.metadata import version
from pathlib import Path
import torch
from fsdl_tools.core import fix_torchvision
from fsdl_tools.files import write_atomic

fix_torchvision()
from fsdl_tools.memory.measure import blocks_of, measure, summary
from fsdl_tools.memory.predict import breakdown
from fsdl_tools.models.build import build, example_inputs, longest_text

out, batch, seq = Path(__file__).parents[1] / 'fsdl_tools' / 'data' / 'results' / 'memory.json', 8, 512
models = '''
    resnet50 vit_small_patch16_224 convnext_tiny swin_tiny_patch4_window7_224 efficientnet_b0 mobilenetv3_large_100
    regnety_016 densenet121 deit3_small_patch16_224 mixer_b16_224 maxvit_tiny_tf_224 vgg16 gpt2 llama bert t5 roberta
    distilbert opt gpt_neox qwen3 electra bart
'''.split()
shorter = dict(
    llama=dict(num_hidden_layers=4),
    opt=dict(num_hidden_layers=4),
    gpt_neox=dict(num_hidden_layers=4),
    qwen3=dict(num_hidden_layers=4),
    bart=dict(encoder_layers=4, decoder_layers=4),
)
once_only = {'densenet121'}  # its layers share a list that grows: a recomputation would find it longer
settings = {'fp32': {}, 'autocast bf16': dict(precision='amp'), 'fp32, recomputed': dict(recompute=True)}


def peers(model, inputs):
    "What accelerate and torchinfo say about the peak of a training step, in bytes"
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    found = {
        'accelerate estimate-memory': max(
            estimate_training_usage(calculate_maximum_sizes(model)[0], 'float32').values()
        )
    }
    import torchinfo

    try:
        s = torchinfo.summary(model, input_data=inputs, device='meta', verbose=0)
    except Exception as e:
        print('  torchinfo:', ' '.join(str(e).split())[:120])
        return found
    return found | {'torchinfo': s.total_input + s.total_output_bytes + s.total_param_bytes}


def deepspeed(rows):
    """Add what DeepSpeed's ZeRO-2 estimator says of one GPU to the rows that have peers; needs the side environment
    `sharding`
    """
    from fsdl_tools.environments import run_in

    code = (
        'def main(ns):\n    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as'
        ' f\n    import deepspeed\n    return deepspeed.__version__, [f(n, 1, 1, cpu_offload=False)[1] for n in ns]'
    )
    asked = [r for r in rows if 'peers' in r]
    release, answers = run_in('sharding', code, [r['parameters'] for r in asked])
    for r, a in zip(asked, answers):
        r['peers']["DeepSpeed's estimator"] = a
    return release


def one(name, setting):
    "The row of one model in one setting"
    model, kw = build(name, device='meta', **shorter.get(name, {})), settings[setting]
    length = min(seq, longest_text(model) or seq) if hasattr(model, 'config') else seq
    inputs = example_inputs(model, batch, length)
    start = time.perf_counter()
    p = breakdown(model, batch, length, kernels='cpu', **kw)
    mid = time.perf_counter()
    m = summary(measure(model, inputs, **kw | dict(recompute=blocks_of(model) if 'recompute' in kw else ())))
    end = time.perf_counter()
    row = dict(
        model=name,
        setting=setting,
        reduced=shorter.get(name, {}),
        parameters=sum(p.numel() for p in model.parameters()),
        predicted=p.to_dict(),
        measured=m.to_dict(),
        predict_seconds=round(mid - start, 2),
        measure_seconds=round(end - mid, 2),
    )
    return row | (dict(peers=peers(model, inputs)) if setting == 'fp32' else {})


if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[1:] == ['--deepspeed']:
        result = json.loads(out.read_text())
        result['versions']['deepspeed'] = deepspeed(result['rows'])
        write_atomic(out, json.dumps(result, indent=1) + '\n')
        sys.exit()
    again, old = sys.argv[1:], json.loads(out.read_text())['rows'] if out.exists() else []
    rows = {(r['model'], r['setting']): r for r in old if r['model'] not in again}
    for name in again or models:
        for setting in settings:
            if (name, setting) in rows or (
                'recompute' in settings[setting] and (name in once_only or not blocks_of(build(name, device='meta')))
            ):
                continue
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter('always')
                r = rows[name, setting] = one(name, setting)
            for w in said:
                if 'no rule' in str(w.message):
                    print('  ', w.message)
            print(
                f"{name:32}{setting:18}",
                *(f"{c} {r['predicted'][c] / r['measured'][c]:.4f}" for c in ('activations', 'logits', 'peak')),
                r['predict_seconds'],
                r['measure_seconds'],
                flush=True,
            )
            order = [rows[n, s] for n in models for s in settings if (n, s) in rows]
            versions = {k: version(k) for k in ('torch', 'timm', 'transformers', 'accelerate', 'torchinfo')}
            write_atomic(
                out,
                json.dumps(
                    dict(
                        date=str(datetime.date.today()),
                        versions=versions,
                        batch=batch,
                        seq=seq,
                        optimizer='adamw',
                        kernels='cpu',
                        rows=order,
                    ),
                    indent=1,
                )
                + '\n',
            )
