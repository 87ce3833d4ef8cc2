"""How many architectures export to ONNX and verify?

    python benchmarks/onnx_coverage.py run timm transformers decoders [--seconds 540]   # resumable: stops after so
    long, goes on where it stopped
    python benchmarks/onnx_coverage.py optimum [--seconds 540]                           # the same list with
    optimum-onnx, in an environment of its own (built at the first run)
    python benchmarks/onnx_coverage.py collect                                           # writes
    fsdl_tools/data/results/onnx_coverage.json

One model from each of timm's module families (its smallest member with images of at most 256 pixels, if there is
one; otherwise with images of 224 pixels where its
constructor allows that, see `smaller`), and transformers architectures from tiny configurations. Every model runs in
a process of its own with a timeout. A model passes when its file was verified: one and three in the batch, two
sequence lengths,
relative difference at most 1e-4.
"""

import argparse, datetime, json, multiprocessing, os, subprocess, sys, tempfile, time
from pathlib import Path

here = Path(__file__).resolve().parent
lines, result = (
    here.parent / '.cache' / 'onnx_coverage.jsonl',
    here.parent / 'fsdl_tools' / 'data' / 'results' / 'onnx_coverage.json',
)
_stages = dict(depths=[1, 1, 1, 1])
_swin = dict(embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, patch_size=4)
_clip = dict(
    text_config=dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        projection_dim=32,
    ),
    vision_config=dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    ),
    projection_dim=32,
)
_conv = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
archs = dict.fromkeys(
    '''bert roberta distilbert albert electra deberta deberta-v2 mpnet xlm-roberta mobilebert squeezebert convbert
    roformer rembert layoutlm lilt ernie nystromformer fnet
    megatron-bert ibert modernbert xlnet xlm flaubert big_bird longformer esm canine camembert gpt2 gpt_neo gpt_neox
    gptj opt bloom llama mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma gemma2
    gemma3_text phi phi3 falcon mamba olmo olmo2 stablelm starcoder2 cohere granite codegen gpt_bigcode biogpt xglm
    smollm3 persimmon glm mpt t5 mt5 bart mbart pegasus marian blenderbot m2m_100 led
    vit deit beit swin swinv2 convnext convnextv2 resnet regnet segformer dinov2 mobilevit mobilenet_v2 poolformer
    levit cvt pvt yolos data2vec-vision focalnet bit hiera wav2vec2 hubert wavlm whisper
    audio-spectrogram-transformer clip siglip blip vilt chinese_clip altclip funnel'''.split(),
    {},
) | dict(
    gpt_neo=dict(num_layers=2, attention_types=[[['global', 'local'], 1]], window_size=8),
    swin=_swin,
    swinv2=_swin,
    mobilebert=dict(true_hidden_size=32, intra_bottleneck_size=32, embedding_size=32, hidden_size=64),
    convnext=dict(hidden_sizes=[8, 16, 16, 32], patch_size=4) | _stages,
    convnextv2=dict(hidden_sizes=[8, 16, 16, 32], patch_size=4) | _stages,
    resnet=_conv,
    regnet=_conv | dict(groups_width=4),
    bit=_conv | dict(num_groups=4),
    esm=dict(vocab_size=33, pad_token_id=1, position_embedding_type='rotary'),
    longformer=dict(attention_window=[4, 4]),
    led=dict(attention_window=[4, 4]),
    lilt=dict(hidden_size=48, num_attention_heads=4, max_2d_position_embeddings=1024),
    funnel=dict(architectures=['FunnelModel'], block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64),
    levit=dict(image_size=224, patch_size=16),
    big_bird=dict(attention_type='original_full'),
    segformer=dict(
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        image_size=64,
    ),
    clip=_clip,
    chinese_clip=_clip,
    siglip=dict(text_config=_clip['text_config'], vision_config=_clip['vision_config']),
    blip=_clip | dict(image_text_hidden_size=32),
    altclip=dict(
        text_config=_clip['text_config'] | dict(project_dim=32),
        vision_config=_clip['vision_config'],
        projection_dim=32,
    ),
    **{'audio-spectrogram-transformer': dict(patch_size=8, num_mel_bins=16, max_length=64)},
)
archs['deberta-v2'] = archs['deberta'] = dict(pooler_hidden_size=32)
decoders = dict(gpt2={}, llama={}, mistral=dict(sliding_window=6), qwen3={}, gemma={}, phi={}, opt={}, gpt_neox={})

smaller = {
    n: dict(img_size=224, pretrained_cfg_overlay=dict(input_size=[3, 224, 224]))
    for n in ('deepseek_vit_412m', 'gemma4_vit_167m')
}  # by default 546 and 768 pixels: ten minutes were not enough


def families():
    "Family -> its smallest member, from the list of names that `--families` made"
    return json.loads((here / 'onnx_families.json').read_text())


def done():
    return {(r['set'], r['name']) for r in map(json.loads, lines.read_text().splitlines())} if lines.exists() else set()


def one(kind, name):
    "Export and verify one model; a record of what happened"
    import torch
    from fsdl_tools.onnx.export import export
    from fsdl_tools.onnx.sources import tiny_config

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        path = f'{d}/m.onnx'
        if kind == 'decoders':
            from fsdl_tools.onnx.decoder import export_decoder

            r = export_decoder(tiny_config(name, **decoders[name]), path)
            return dict(ok=r.verified, max_rel=r.max_rel, cures=r.cures, tokens=r.tokens)
        r = (
            export(name, path, **smaller.get(name, {}))
            if kind == 'timm'
            else export(tiny_config(name, **archs[name]), path)
        )
        fixed = [c for c in r.cures if ' fixed at ' in c]
        return dict(
            ok=r.verified,
            max_rel=r.max_rel,
            **(dict(built_with=smaller[name]) if kind == 'timm' and name in smaller else {}),
            top1=min([x['top1'] for x in r.checked if x['top1'] is not None], default=None),
            cures=[c for c in r.cures if c not in fixed],
            fixed=fixed,
            on=r.on,
            parameters=r.parameters,
            nodes=r.nodes,
            tried=[t[:300] for t in r.tried],
        )


def _child(pipe, kind, name):
    try:
        out = one(kind, name)
    except Exception as e:
        out = dict(ok=False, error=f'{type(e).__name__}: {str(e)[:1500]}')
    pipe.send(out)
    pipe.close()
    os._exit(0)


def isolated(kind, name, timeout):
    "Run `one` in a forked process, so that imports are paid once"
    ours, theirs = multiprocessing.Pipe(False)
    p = multiprocessing.get_context('fork').Process(target=_child, args=(theirs, kind, name))
    t0 = time.time()
    p.start()
    theirs.close()
    try:
        out = ours.recv() if ours.poll(timeout) else dict(ok=False, error=f'timeout after {timeout} s')
    except EOFError:
        out = dict(ok=False, error='the process died')
    p.kill()
    p.join()
    return dict(set=kind, name=name) | out | dict(seconds=round(time.time() - t0, 1), date=str(datetime.date.today()))


def record(row):
    lines.parent.mkdir(exist_ok=True)
    with open(lines, 'a') as f:
        f.write(json.dumps(row) + '\n')
    print(
        row['set'],
        row['name'],
        'ok' if row['ok'] else 'FAILED',
        row.get('cures', ''),
        row.get('error', '')[:200],
        row['seconds'],
        flush=True,
    )


def run(kinds, seconds, timeout):
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    import timm, torch, torch.onnx, transformers, onnx, onnxscript, onnxruntime  # paid once, before forking
    import fsdl_tools.onnx.export

    t0, have = time.time(), done()
    todo = [
        (k, n)
        for k in kinds
        for n in dict(timm=list(families().values()) if k == 'timm' else [], transformers=archs, decoders=decoders)[k]
        if (k, n) not in have
    ]
    for k, n in todo:
        if time.time() - t0 > seconds:
            print('to be continued')
            sys.exit(3)
        record(isolated(k, n, timeout))


_optimum = r"""
import json, multiprocessing, os, sys, tempfile, time, torch, warnings; warnings.filterwarnings("ignore")
from fsdl_tools.core import fix_torchvision; fix_torchvision()
from transformers import AutoConfig, AutoModel
from optimum.exporters.onnx import onnx_export_from_model
torch.set_num_threads(1)
def work(pipe, kind, kw):
    try:
        os.dup2(2, 1); torch.manual_seed(0)
        m = AutoModel.from_config(AutoConfig.for_model(kind, **kw)).eval()
        with tempfile.TemporaryDirectory() as d: onnx_export_from_model(m, d, task="feature-extraction", atol=1e-4,
            do_validation=True, device="cpu")
        pipe.send(dict(ok=True))
    except BaseException as e: pipe.send(dict(ok=False, error=f"{type(e).__name__}: {str(e)[:300]}"))
    os._exit(0)
for line in sys.stdin:
    kind, kw, timeout = json.loads(line)
    ours, theirs = multiprocessing.Pipe(False); t = time.time()
    p = multiprocessing.get_context("fork").Process(target=work, args=(theirs, kind, kw)); p.start(); theirs.close()
    try: out = ours.recv() if ours.poll(timeout) else dict(ok=False, error=f"timeout after {timeout} s")
    except EOFError: out = dict(ok=False, error="the process died")
    p.kill(); p.join(); print(json.dumps(dict(set="optimum", name=kind, **out, seconds=round(time.time() - t, 1))),
        flush=True)
"""


def plain(name):
    """The fields of a tiny configuration that differ from the defaults, so that another version of transformers can
    build it
    """
    from fsdl_tools.onnx.sources import tiny_config
    import transformers as tr

    c, d = tiny_config(name, **archs[name]).to_dict(), tr.AutoConfig.for_model(name).to_dict()
    return {
        k: v
        for k, v in c.items()
        if d.get(k) != v
        and not k.startswith('_')
        and k
        not in (
            'rope_parameters',
            'layer_types',
            'text_config',
            'vision_config',
            'stage_names',
            'out_features',
            'out_indices',
        )
    } | archs[name]


def optimum(python, seconds, timeout):
    "The same architectures through optimum-onnx, run by the Python of an environment of its own"
    from fsdl_tools.environments import build_env

    t0, have = time.time(), done()
    python = python or build_env('optimum')
    p = subprocess.Popen(
        [python, '-c', _optimum], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for n in archs:
        if ('optimum', n) in have:
            continue
        if time.time() - t0 > seconds:
            p.kill()
            print('to be continued')
            sys.exit(3)
        p.stdin.write(json.dumps([n, plain(n), timeout]) + '\n')
        p.stdin.flush()
        record(json.loads(p.stdout.readline()) | dict(date=str(datetime.date.today())))
    p.stdin.close()
    p.wait()


def collect(optimum_versions=''):
    import importlib.metadata as md

    rows = {}
    for r in map(json.loads, lines.read_text().splitlines()):
        rows[r['set'], r['name']] = r  # a repeated run replaces the earlier one
    fam = {v: k for k, v in families().items()}
    rows = [r | (dict(family=fam[r['name']]) if r['set'] == 'timm' else {}) for r in rows.values()]
    n = lambda s, f=lambda r: r['ok']: sum(bool(f(r)) for r in rows if r['set'] == s)
    out = dict(
        date=str(datetime.date.today()),
        versions={p: md.version(p) for p in ('torch', 'timm', 'transformers', 'onnx', 'onnxruntime', 'onnxscript')}
        | (dict(optimum=optimum_versions) if optimum_versions else {}),
        conditions=(
            'random weights with constant parameters disturbed and batch normalisations calibrated; batches 1 and 3,'
            ' sequence lengths 5 and 12; every output within 1e-4 of its own spread over the inputs, the same winner,'
            ' shapes as declared, two inputs with answers further apart than the tolerance; one thread; optimum: its'
            ' own check, largest difference at most 1e-4; every row has its own date'
        ),
        not_run={
            s: [
                n
                for n in dict(timm=list(families().values()), transformers=archs, decoders=decoders, optimum=archs)[s]
                if (s, n) not in {(r['set'], r['name']) for r in rows}
            ]
            for s in ('timm', 'transformers', 'decoders', 'optimum')
        },
        summary={
            s: dict(
                tried=n(s, lambda r: True),
                verified=n(s),
                batch_only=n(s, lambda r: r.get('fixed')),
                with_a_cure=n(s, lambda r: r.get('cures')),
            )
            for s in ('timm', 'transformers', 'decoders', 'optimum')
        },
        rows=rows,
    )
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps(out['summary'], indent=1))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=['run', 'optimum', 'collect'])
    p.add_argument('sets', nargs='*', default=['timm', 'transformers', 'decoders'])
    p.add_argument('--seconds', type=float, default=540)
    p.add_argument('--timeout', type=float, default=240)
    p.add_argument('--python', help='default: the side environment optimum')
    p.add_argument('--optimum-versions', default='')
    a = p.parse_args()
    if a.command == 'run':
        run(a.sets or ['timm', 'transformers', 'decoders'], a.seconds, a.timeout)
    elif a.command == 'optimum':
        optimum(a.python, a.seconds, a.timeout)
    else:
        collect(a.optimum_versions)
