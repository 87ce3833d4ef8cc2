"""Profile every architecture of timm and transformers, write the index, and compare FLOPs with published and rival
counts.

    python benchmarks/zoo.py profile --minutes 9      # call again until it says that nothing is left: progress is kept
    python benchmarks/zoo.py rivals                   # fvcore, calflops, torchinfo beside ours on 30 models (skips
    what is not installed)
    python benchmarks/zoo.py decoder                  # time and memory of a 7 B decoder in a fresh process
    python benchmarks/zoo.py imagenet --sheets DIR    # accuracy and speed of known models, from timm's results/ folder
    python benchmarks/zoo.py report --sheets DIR      # fsdl_tools/data/zoo.csv and fsdl_tools/data/results/zoo.json

DIR holds timm's published sheets: timm_imagenet.csv (its results/results-imagenet.csv) and timm_infer_rtx4090.csv
(its inference benchmark).
Progress lives in .cache/zoo/, which git does not keep.
"""

import argparse, collections, csv, datetime, importlib.metadata, json, resource
import statistics, subprocess, sys, time, warnings
from pathlib import Path

here = Path(__file__).parent
work = here.parent / '.cache' / 'zoo'
warnings.filterwarnings('ignore')


def task_of(name):
    "The task that a family of transformers is for, by the rule of tasks_of; empty when no class builds it alone"
    from fsdl_tools.models.architectures import load_config, tasks_of

    try:
        return tasks_of(load_config(name))[0]
    except (ValueError, ImportError, AttributeError):
        return ''


def jobs():
    "Every (library, name, task) to profile: of a family of transformers the task it is for, and all of timm"
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    import timm
    from fsdl_tools.models.configurations import hf_types

    return [('transformers', n, task_of(n)) for n in hf_types()] + [
        ('timm', n, 'image-classification') for n in timm.list_models()
    ]


def norms_counter():
    """A dispatch mode that counts what fvcore would add for normalisations: 2 per element of a batch norm with
    stored statistics, 5 of another norm
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Norms(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            op = func._overloadpacket.__name__
            if 'batch_norm' in op:
                affine, training = args[1] is not None, len(args) > 5 and args[5] is True
                self.total += args[0].numel() * ((5 if affine else 4) if training else (2 if affine else 1))
            elif op in ('native_layer_norm', 'native_group_norm'):
                self.total += args[0].numel() * (5 if args[2 if 'layer' in op else 1] is not None else 4)
            return func(*args, **(kwargs or {}))

    return Norms()


def one(library, name, task):
    """Profile one architecture; transformers falls back to a shrunken configuration, and to real tensors where the
    forward pass looks at values
    """
    from fsdl_tools.models.profile import profile
    from fsdl_tools.models.build import build

    kw = {} if library == 'timm' else dict(task=task)
    slow = any(
        s in name for s in ('mamba', 'rwkv', 'xlstm', 'recurrent', 'jamba', 'bailing', 'deepseek_v4', 'kimi')
    )  # loops over the sequence, token by token
    tries = (
        [{}]
        if library == 'timm'
        else [dict(seq=64 if slow else None), dict(seq=64, tiny=True), dict(seq=64, tiny=True, real=True)]
    )
    row, errors = dict(library=library, name=name, task=task, date=str(datetime.date.today())), []
    if not task:
        return row | dict(error='part of other models: no class builds it alone')
    for extra in tries:
        start = time.perf_counter()
        norms = norms_counter()
        if 'real' in extra and not (
            'values of tensors' in errors[-1]
            and sum(p.numel() for p in build(name, task, device='meta', tiny=True).parameters()) < 1e9
        ):
            continue
        try:
            with norms:
                s = profile(name, **kw, **extra)
        except Exception as e:
            errors.append(f"{type(e).__name__}: {' '.join(str(e).split())[:240]}")
            continue
        i = s.inputs[0]
        return row | dict(
            seconds=round(time.perf_counter() - start, 3),
            tiny='tiny' in extra,
            family=s.family,
            kind=s.kind,
            version=s.library,
            input='x'.join(map(str, i.shape[1:])),
            params=s.params,
            flops=s.flops,
            activations=s.activations,
            saved=s.saved,
            norms=norms.total,
            errors=errors,
        )
    return row | dict(error=errors[0], shrunken=errors[-1])


def profile_all(minutes, only):
    "Profile what has not been profiled yet, for so many minutes"
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    import gc, transformers

    transformers.logging.set_verbosity_error()
    end, done = time.monotonic() + 60 * minutes, {(r['library'], r['name'], r['task']) for r in rows()}
    left = [j for j in jobs() if j not in done and (only is None or only in j)]
    with open(work / 'rows.jsonl', 'a') as f:
        for n, job in enumerate(left):
            if time.monotonic() > end:
                print(f'{len(left) - n} of {len(left)} left: call again')
                return
            r = one(*job)
            f.write(json.dumps(r) + '\n')
            f.flush()
            if n % 20 == 0:
                gc.collect()
    print('nothing is left')


def rows(name='rows.jsonl'):
    p = work / name
    return [json.loads(l) for l in p.read_text().splitlines()] if p.exists() else []


# Well-known image models, one line a family. Of each, the tag with the best published accuracy among those trained on
# ImageNet-1k alone, else the best of all
known = """
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d wide_resnet50_2 seresnet50 resnetrs50
resnetrs152 resnetv2_50 resnetv2_101x1_bit
vgg11 vgg16 vgg19 densenet121 densenet169 inception_v3 inception_v4 inception_resnet_v2 xception41 dpn92
res2net50_26w_4s
mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_conv_medium
mobilenetv4_conv_large mnasnet_100 ghostnet_100 mixnet_s lcnet_100 mobileone_s1 repvgg_b1
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 tf_efficientnet_b5 tf_efficientnet_b7
efficientnet_lite0 tf_efficientnetv2_s tf_efficientnetv2_m tf_efficientnetv2_l
regnetx_032 regnety_008 regnety_016 regnety_032 regnety_080 regnety_160 dm_nfnet_f0 dm_nfnet_f1 eca_nfnet_l0
convnext_atto convnext_nano convnext_tiny convnext_small convnext_base convnext_large convnextv2_atto convnextv2_nano
convnextv2_tiny convnextv2_base convnextv2_large
vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 vit_base_patch32_224 vit_large_patch16_224
vit_base_patch16_clip_224 vit_large_patch14_clip_224
deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit3_small_patch16_224 deit3_base_patch16_224
deit3_large_patch16_224
swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224 swin_large_patch4_window7_224
swinv2_tiny_window8_256 beit_base_patch16_224 beitv2_base_patch16_224
eva02_tiny_patch14_336 eva02_base_patch14_448 eva02_large_patch14_448 cait_s24_224 xcit_small_12_p16_224
maxvit_tiny_tf_224 maxvit_base_tf_224 coatnet_0_rw_224 hiera_base_224 mvitv2_base
levit_256 efficientformer_l1 fastvit_t8 fastvit_sa12 mobilevit_s mobilevitv2_100 edgenext_small poolformer_s12
pvt_v2_b2 mixer_b16_224 gmlp_s16_224 caformer_s18 focalnet_tiny_srf tiny_vit_21m_224
""".split()


def more_data(tag):
    "Was more than ImageNet-1k used, as far as the tag says?"
    return any(
        s in tag
        for s in (
            'in21k',
            'in22k',
            'in12k',
            'jft',
            'ig1b',
            'wsl',
            'ssl',
            'clip',
            'laion',
            'openai',
            'mim',
            'm38m',
            'swag',
            'goog',
            'ms_in22k',
        )
    )


def sheet(folder, name):
    if folder is None:
        raise SystemExit('give --sheets, the folder of the published sheets')
    with open(folder / name, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def imagenet(folder):
    "fsdl_tools/data/imagenet.csv"
    from fsdl_tools.models.profile import profile
    from fsdl_tools.table import Table

    speed = {}
    for r in sheet(folder, 'timm_infer_rtx4090.csv'):
        for key in (r['model'], r['model'].split('.')[0]):
            speed.setdefault((key, int(r['infer_img_size'])), float(r['infer_samples_per_sec']))
    tags, out = collections.defaultdict(list), []
    for r in sheet(folder, 'timm_imagenet.csv'):
        tags[r['model'].split('.')[0]].append(r)
    for arch in known:
        best = max(tags[arch], key=lambda r: (not more_data(r['model'].split('.')[1]), float(r['top1'])))
        size = int(best['img_size'])
        s = profile(arch, input_size=size)
        out.append(
            dict(
                model=best['model'],
                family=s.family,
                input=size,
                more_data='yes' if more_data(best['model'].split('.')[1]) else 'no',
                top1=float(best['top1']),
                params=s.params,
                flops=s.flops,
                activations=s.activations,
                traffic=s.traffic,
                images_per_second=speed.get((best['model'], size), speed.get((arch, size))),
                conditions=(
                    'top-1 on the ImageNet-1k validation set; speed: RTX 4090, mixed precision, PyTorch 2.4, large'
                    ' batch; params, FLOPs, activations (fp32 traffic): fsdl_tools'
                ),
                source='huggingface/pytorch-image-models results/ at aa4b5850',
                date='2026-08',
            )
        )
        print(out[-1]['model'], flush=True)
    Table(out).to_csv(here.parent / 'fsdl_tools' / 'data' / 'imagenet.csv')


rival_models = (
    'resnet50 resnext50_32x4d seresnet50 vgg16 densenet121 inception_v3 mobilenetv2_100 mobilenetv3_large_100'
    ' efficientnet_b0 regnety_016 eca_nfnet_l0 convnext_tiny convnextv2_nano convmixer_768_32 vit_small_patch16_224'
    ' deit3_small_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 beit_base_patch16_224 cait_xxs24_224'
    ' xcit_nano_12_p16_224 maxvit_tiny_tf_224 poolformer_s12 mixer_s32_224 fastvit_t8 sequencer2d_s gpt2 bert vit t5'
).split()


def rivals():
    "GMACs of 30 models by fvcore, calflops and torchinfo beside ours"
    import logging, torch
    from fsdl_tools.models.profile import profile
    from fsdl_tools.models.build import build, example_inputs

    logging.disable(logging.WARNING)
    done = {r['model'] for r in rows('rivals.jsonl')}

    def fvcore(m, x):
        from fvcore.nn import FlopCountAnalysis

        a = FlopCountAnalysis(m, tuple(x.values())).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return a.total(), {k: int(v) for k, v in a.by_operator().items()}

    def calflops(m, x):
        from calflops import calculate_flops

        return (
            calculate_flops(
                m, args=list(x.values()), print_results=False, print_detailed=False, output_as_string=False
            )[1],
            None,
        )

    def torchinfo(m, x):
        from torchinfo import summary

        return (
            int(
                summary(
                    m, input_data=x if len(x) > 1 or 'input_ids' in x else list(x.values()), verbose=0
                ).total_mult_adds
            ),
            None,
        )

    with open(work / 'rivals.jsonl', 'a') as f:
        for n in rival_models:
            if n in done:
                continue
            s, m = profile(n, seq=128), build(n)
            if hasattr(m, 'config') and hasattr(m.config, 'use_cache'):
                m.config.use_cache = False
            x, r = example_inputs(m, seq=128, device='cpu'), dict(model=n, ours=s.macs)
            for tool in (fvcore, calflops, torchinfo):
                try:
                    with torch.no_grad():
                        r[tool.__name__], ops = tool(m, x)
                    if ops:
                        r['fvcore_matmuls'] = sum(
                            v
                            for k, v in ops.items()
                            if k in ('conv', 'linear', 'addmm', 'matmul', 'bmm', 'einsum', 'baddbmm', 'lstm')
                        )
                except Exception as e:
                    r[tool.__name__ + '_error'] = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
            f.write(json.dumps(r) + '\n')
            f.flush()
            print(r, flush=True)


def decoder():
    "Seconds and resident memory of profiling a 7 B decoder at 2,048 tokens, in a fresh process"
    code = """
import time, json, resource
t = time.perf_counter()
from fsdl_tools.models.profile import profile
s = profile('llama', seq=2048)
a = time.perf_counter()
s = profile('llama', seq=2048)
print(json.dumps(dict(model='llama', seq=2048, params=s.params, flops=s.flops, seconds_with_imports=round(a - t, 2),
    seconds=round(time.perf_counter() - a,
    2), max_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)))
"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    (work / 'decoder.json').write_text(r.stdout.strip().splitlines()[-1])
    print(r.stdout)


def published(folder):
    "(architecture, size) -> published GMACs and parameters (millions)"
    out = {}
    for r in sheet(folder, 'timm_infer_rtx4090.csv'):
        out.setdefault(
            (r['model'].split('.')[0], int(r['infer_img_size'])),
            (float(r['infer_gmacs']), float(r['param_count'].replace(',', '')), float(r['infer_macts'])),
        )
    return out


def explain(row, gmacs, params):
    "The class of the difference between our count and a published one (rounded to 0.01 G)"
    near = lambda ours: abs(ours - gmacs) <= 0.01 * gmacs + 0.005
    ours = row['flops'] / 2e9
    if near(ours):
        return 'within 1 %'
    if abs(row['params'] / 1e6 - params) > 0.005 * params + 0.005:
        return 'another architecture: parameters differ'
    if near(ours + row['norms'] / 1e9):
        return 'theirs counts normalisations'
    if ours > gmacs:
        return 'ours is larger'
    return 'ours is smaller'


def report(folder):
    "The index and the summary"
    from fsdl_tools.table import Table
    from fsdl_tools.core import fix_torchvision

    fix_torchvision()
    import timm

    done, tasks = (
        list({(r['library'], r['name'], r['task']): r for r in rows()}.values()),
        ['causal-lm', 'masked-lm', 'image-classification'],
    )
    licences = collections.defaultdict(collections.Counter)
    for t in timm.list_pretrained():
        licences[t.split('.')[0]][timm.get_pretrained_cfg(t).license or 'unstated'] += 1
    best = {}
    for r in done:  # one row a name: the first task that worked
        if (k := (r['library'], r['name'])) not in best or ('error' in best[k] and 'error' not in r):
            best[k] = r
    version = {l: f'{l} {importlib.metadata.version(l)}' for l in ('timm', 'transformers')}
    index, listed = [], set()
    for l, n, task in jobs():  # every name is in the index; its numbers are, once it has been profiled
        if (l, n) in listed:
            continue
        listed.add((l, n))
        r, numbers = best.get((l, n), {}), ('params', 'flops', 'activations', 'saved')
        cfg = timm.get_pretrained_cfg(n) if l == 'timm' else None
        family = timm.model_entrypoint(n).__module__.split('.')[-1] if cfg else n
        index.append(
            dict(
                name=n,
                library=l,
                family=family,
                task=r.get('task', task),
                kind=r.get('kind', 'vision' if cfg else ''),
                input='x'.join(map(str, cfg.input_size)) if cfg else r.get('input', ''),
                **{k: None if r.get('tiny') else r.get(k) for k in numbers},
                tags=licences[n].total() if cfg else None,
                licences=' '.join(k for k, _ in licences[n].most_common()) if cfg else '',
                source=version[l],
                date=r.get('date', str(datetime.date.today())),
            )
        )
    Table(index).to_csv(here.parent / 'fsdl_tools' / 'data' / 'zoo.csv')
    todo = collections.Counter(l if l == 'timm' or t not in tasks else f'{l} {t}' for l, n, t in jobs() if t)
    part = {'timm': [r for r in done if r['library'] == 'timm']} | {
        f'transformers {t}': [r for r in done if r['library'] == 'transformers' and r['task'] == t] for t in tasks
    }
    part['transformers, other tasks'] = [
        r for r in done if r['library'] == 'transformers' and r['task'] and r['task'] not in tasks
    ]
    coverage = {
        k: dict(
            architectures=todo.get(k, todo['transformers']),
            tried=len(v),
            profiled=sum('error' not in r for r in v),
            shrunken=sum(bool(r.get('tiny')) for r in v),
            median_seconds=statistics.median([r['seconds'] for r in v if 'seconds' in r] or [0]),
        )
        for k, v in part.items()
    }
    pub, classes = published(folder), collections.defaultdict(list)
    for r in part['timm']:
        if 'error' in r or r.get('tiny') or (p := pub.get((r['name'], int(r['input'].split('x')[-1])))) is None:
            continue
        classes[explain(r, p[0], p[1])].append(
            dict(model=r['name'], ours=round(r['flops'] / 2e9, 4), norms=round(r['norms'] / 1e9, 4), published=p[0])
        )
    versions = {p: importlib.metadata.version(p) for p in ('torch', 'timm', 'transformers')}
    out = dict(
        date=str(datetime.date.today()),
        versions=versions,
        machine='2 CPU cores, no GPU',
        coverage=coverage,
        failed=[
            dict(library=r['library'], name=r['name'], task=r['task'], cause=r['error'], shrunken=r.get('shrunken'))
            for r in done
            if 'error' in r and r['task'] and (r['library'] == 'timm' or r['task'] in tasks)
        ],
        failed_elsewhere=[
            dict(name=r['name'], task=r['task'], cause=r['error'][:120])
            for r in part['transformers, other tasks']
            if 'error' in r
        ],
        published=dict(
            source='huggingface/pytorch-image-models inference benchmark, RTX 4090 (August 2026)',
            compared=sum(map(len, classes.values())),
            classes={k: len(v) for k, v in classes.items()},
            examples={k: v if k.startswith('ours') else v[:12] for k, v in classes.items() if k != 'within 1 %'},
        ),
        rivals=rows('rivals.jsonl'),
        decoder=json.loads((work / 'decoder.json').read_text()) if (work / 'decoder.json').exists() else None,
    )
    (here.parent / 'fsdl_tools' / 'data' / 'results' / 'zoo.json').write_text(json.dumps(out, indent=1) + '\n')
    print(json.dumps(dict(coverage=coverage, classes=out['published']['classes'], failed=len(out['failed'])), indent=1))


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what', choices=['profile', 'rivals', 'decoder', 'imagenet', 'report'])
    ap.add_argument('--minutes', type=float, default=9)
    ap.add_argument('--only', help='only this library or task')
    ap.add_argument('--sheets', type=Path, help="folder of timm's published sheets")
    a = ap.parse_args()
    work.mkdir(parents=True, exist_ok=True)
    (work / '.gitignore').write_text('*\n')
    dict(
        profile=lambda: profile_all(a.minutes, a.only),
        rivals=lambda: rivals(),
        decoder=lambda: decoder(),
        imagenet=lambda: imagenet(a.sheets),
        report=lambda: report(a.sheets),
    )[a.what]()
