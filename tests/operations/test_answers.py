"""Answers of launching and of sweeps, kept beside the tests

Texts for every target, and what is read back where one place of them is changed; what targets are asked, and what their
answers mean; spaces, points of every distribution, verdicts, books and controllers of sweeps. No server, no cluster and
no scheduler takes part.
"""

import copy
import functools
import itertools
import json
import os
import random
import shutil
import sqlite3
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsdl_tools.units import GiB, KiB, MiB
from fsdl_tools.operations import clouds, containers, kubeflow, kubernetes, launch, local, manifests, platforms
from fsdl_tools.operations import ray_jobs, slurm, slurm_answers, slurm_cluster, targets
from fsdl_tools.operations import sweep_engines, sweep_ray, sweep_results, sweep_space, sweep_trials, sweeps
from fsdl_tools.operations.launch import Job, Limits, Secret
from fsdl_tools.operations.targets import Handle, Status, Target, TargetError

from ..answers import answer, plain, same_answers
from .hostile import hard

kubernetes_yaml = manifests.from_yaml
surrogates = ['\ud7ff', '\ud800', '\udc7f', '\udc80', '\udcff', '\udd00', '\udfff', '\ue000']
hidden = (
    Secret('TOKEN'),
    Secret('KEY', 'file', '/run/my key'),
    Secret('PASS', 'kubernetes', 'box/pass'),
    Secret('OTHER', 'env', 'MINE'),
)
full = Job(
    'tiny-gpt',
    ('python', 'train.py', '$5', "it's"),
    env={'ANSWER': 'no', 'PRICE': '$5', 'B': 'x y'},
    secrets=hidden[1:2],
    nodes=2,
    processes=2,
    gpus=2,
    gpu='A100-SXM-80GB',
    gpu_memory=40 * GiB,
    cpus=3,
    memory=2 * GiB,
    time=90_061,
    image='ghcr.io/me/fsdl:1',
    folder='/',
    retries=2,
    on_preempt='stop',
    grace=45,
    layout='dp4',
)
small = Job('one', ('true',), image='busybox')
wide = Job(
    'wide',
    ('python', '-m', 'train'),
    nodes=3,
    time=59,
    grace=0,
    memory=5 * MiB + 1,
    image='a.b/c/d_e:1',
    env={'A': 'b'},
    gpu='H100',
    gpus=1,
)
dense = full.replace(nodes=1, processes=4, gpus=0, secrets=(), env={}, command=('a', 'b'), folder='')


@pytest.fixture(autouse=True)
def books_in_memory():
    "Books that wait for no disk"
    connect, connections = sqlite3.connect, []

    def quick(path, **kw):
        connections.append([Path(str(path).partition('?')[0]).name, kw])
        db = connect(path, **kw)
        db.execute('pragma synchronous=off')
        return db

    with pytest.MonkeyPatch.context() as m:
        m.setattr(sqlite3, 'connect', quick)
        yield connections


def places():
    "Targets of every kind, usual ones and some with odd settings"
    return [
        local.Local(python='py'),
        slurm.Slurm(),
        slurm.Slurm(partition='gpu', account='me', qos='high', array='0-9%2', output='logs/%j.out'),
        slurm.Slurm(partition='bad queue', array='x', output='a b'),
        containers.Container(),
        containers.Container(mounts=('/', 'rel', '/nowhere')),
        containers.Docker(mounts=('/a:b', '/')),
        kubernetes.Kubernetes(),
        kubernetes.Kubernetes(namespace='Bad', limits=Limits(1, 1, '', 1, 1, 1, 60)),
        kubeflow.PyTorchJob(),
        kubeflow.TrainJob(namespace='ml', runtime='-r'),
        ray_jobs.Ray(),
        ray_jobs.RayTrain(),
        clouds.SageMaker(),
        clouds.SageMaker(role='me', output='bucket', instance='p4'),
        clouds.Anyscale(),
        clouds.Determined(),
        clouds.Determined(pool='p', metric='acc'),
        clouds.SkyPilot(),
        clouds.SkyPilot(spot=False, python='py'),
    ]


def some_job(r):
    "A job that some targets take and others do not"
    env = {
        k: r.choice(hard)
        for k in r.sample(
            ['V', 'PATH', 'WORLD', 'MASTER_ADDR', 'OMP_NUM_THREADS', 'fsdl_x', 'FSDL_JOB'], r.randrange(3)
        )
    }
    sizes = dict(
        nodes=r.choice([1, 1, 2, 11]),
        processes=r.choice([1, 1, 2, 4]),
        gpus=r.choice([0, 1, 4]),
        cpus=r.choice([1, 2]),
        memory=r.choice([0, GiB, 3 * MiB + 5]),
        time=r.choice([30, 3600, 200_000]),
    )
    words = dict(
        gpu=r.choice(['', 'A100-SXM-40GB', 'V100-SXM2-32GB', 'RTX 6000 Ada']),
        image=r.choice(['', 'ghcr.io/me/fsdl:1', 'Bad Image']),
        folder=r.choice(['', '/', 'rel', '/no where']),
        layout=r.choice(['', 'dp2']),
    )
    more = dict(
        gpu_memory=r.choice([0, 8 * GiB]),
        retries=r.choice([0, 3, 31]),
        on_preempt=r.choice(['requeue', 'stop']),
        grace=r.choice([0, 30, 3600]),
    )
    return Job(
        r.choice(['a', 'job-1', 'Train', 'x' * 57, '1st', 'a.b', 'two words', 'y' * 129]),
        ('python', *r.sample(hard, r.randrange(3))),
        env,
        tuple(r.sample(hidden, r.randrange(3))),
        **sizes,
        **words,
        **more,
    )


def name_of(i, place):
    return f'{i} {type(place).__name__}'


def apart(job, other):
    return {k: v for k, v in job.to_dict().items() if v != other.to_dict()[k]}


def asked_of(place, job):
    "What a target says of a job: problems, a sum of its text, and whether it reads back what it wrote"
    text = place.render(job, 'tok')
    back = answer(lambda: apart(place.parse(text), job))
    return [
        place.check(job),
        zlib.crc32(text.encode('utf-8', 'surrogatepass')),
        zlib.crc32(place.render(job).encode('utf-8', 'surrogatepass')),
        back,
    ]


def as_json(monkeypatch):
    "YAML is slow, and is asked elsewhere: manifests as JSON"
    for module in (kubernetes, kubeflow, containers, clouds):
        monkeypatch.setattr(module, 'to_yaml', lambda *documents: json.dumps(documents))
        monkeypatch.setattr(module, 'from_yaml', json.loads)


def test_what_targets_make_of_jobs(request, monkeypatch):
    as_json(monkeypatch)
    r = random.Random(1)
    jobs = [full, small, wide, dense, *(some_job(r) for _ in range(12))]
    same_answers(
        request,
        'targets',
        {
            f'{name_of(i, p)} {j}': answer(asked_of, p, job)
            for i, p in enumerate(places())
            for j, job in enumerate(jobs)
            if j < 8 or i not in (2, 3, 5, 12, 14, 17, 19)
        },
    )


def test_texts_for_targets(request):
    found = {
        name_of(i, p): p.render(full, 'tok') for i, p in enumerate(places()) if i not in (2, 3, 5, 8, 12, 14, 17, 19)
    }
    found |= {f'{name_of(i, p)} small': p.render(small) for i, p in enumerate(places()) if i in (2, 4, 7, 9, 13, 18)}
    same_answers(request, 'texts', found)


# ---- texts that somebody changed ----


def paths(d, at=()):
    "Every place in a nested value"
    items = d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else ()
    for k, v in items:
        yield (*at, k)
        yield from paths(v, (*at, k))


def another(v):
    "Another value of about the same kind"
    if isinstance(v, bool):
        return not v
    if isinstance(v, int):
        return v + 2
    return 'odd' if isinstance(v, str) else type(v)() if isinstance(v, (list, dict)) else 1


def changed(d):
    "(name, a nested value with one place of it left out or changed, or with a word too many everywhere)"
    for path in paths(d):
        for how in ('without', 'other'):
            new = copy.deepcopy(d)
            above = functools.reduce(lambda x, k: x[k], path[:-1], new)
            if how == 'without':
                del above[path[-1]]
            else:
                above[path[-1]] = another(above[path[-1]])
            yield f'{how} {".".join(map(str, path))}', new
    new = copy.deepcopy(d)
    for path in list(paths(d)):
        if isinstance(below := functools.reduce(lambda x, k: x[k], path, new), dict):
            below['imgae'] = 1
    yield 'a word too many', new


def read_again(place, text, job):
    "What differs in the job of a text, or what is wrong with it, without the words of the readers of JSON and YAML"
    found = answer(lambda: apart(place.parse(text), job))
    return (
        found[:20] if isinstance(found, str) and found.startswith(('JSONDecodeError', 'ValueError: no YAML')) else found
    )


def test_manifests_that_somebody_changed(request, monkeypatch):
    for module in (kubernetes, kubeflow, containers, clouds):
        monkeypatch.setattr(module, 'from_yaml', lambda d: [copy.deepcopy(d)])
    read, found = kubernetes_yaml, {}
    for i, place in enumerate(places()):
        if i not in (0, 4, 7, 9, 10, 11, 13, 15, 16, 18):
            continue
        plain = full.replace(secrets=(), command=('a', 'b'), env={'A': 'b'}, gpu='', layout='')
        job = (
            plain.replace(secrets=hidden[2:3], gpu_memory=0, nodes=1 if i in (4, 9) else 2)
            if i in (4, 7, 9, 10)
            else plain
        )
        text = place.render(job)
        inside, outside = (json.loads, json.dumps) if text.startswith('{') else (lambda t: read(t)[-1], lambda d: d)
        for what, new in changed(inside(text)):
            found[f'{name_of(i, place)} {what}'] = read_again(place, outside(new), job)
    same_answers(
        request,
        'changed',
        {k: v for k, v in found.items() if v != {}} | dict(unchanged=sum(v == {} for v in found.values())),
    )


def test_other_manifests(request):
    k8s, torch, train, box = kubernetes.Kubernetes(), kubeflow.PyTorchJob(), kubeflow.TrainJob(), containers.Container()
    service, job = manifests.from_yaml(k8s.render(full.replace(secrets=())))
    one = manifests.from_yaml(torch.render(wide))[0]
    texts = {
        'no yaml': 'a: [',
        'twice': 'a: 1\na: 2',
        'twice below': 'b:\n  c: 1\n  c: 2',
        'nothing': '',
        'list': '- 1',
        'two': manifests.to_yaml(job, job),
        'service odd': manifests.to_yaml(service | dict(odd=1), job),
        'text': '"a"',
        'service alone': manifests.to_yaml(service),
        'args': manifests.to_yaml(job).replace('command:', 'args:'),
    }
    found = {
        f'{type(p).__name__} {k}': read_again(p, text, full)
        for p in (k8s, torch, train, box)
        for k, text in texts.items()
    }
    for n, spec in enumerate(
        [
            dict(completionMode='NonIndexed'),
            dict(parallelism=1),
            dict(podFailurePolicy={}),
            dict(podFailurePolicy=dict(rules=[dict(action='Odd', onPodConditions=[1])])),
            dict(podFailurePolicy=dict(rules=[dict(action='Ignore', onPodConditions=[1])])),
            dict(podFailurePolicy=dict(rules=[dict(action='Ignore')])),
            dict(
                podFailurePolicy=dict(
                    rules=[dict(action='Ignore', onPodConditions=[1]), dict(action='Count', onPodConditions=[1])]
                )
            ),
        ]
    ):
        found[f'spec {n}'] = read_again(k8s, manifests.to_yaml(job | dict(spec=job['spec'] | spec)), full)
    for n, per in enumerate(['auto', 3, '4', None]):
        found[f'nproc {n}'] = read_again(
            torch, manifests.to_yaml(one | dict(spec=one['spec'] | dict(nprocPerNode=per))), wide
        )
    two = manifests.from_yaml(torch.render(full))[0]['spec']['pytorchReplicaSpecs']
    specs = [
        dict(two, Worker=one['spec']['pytorchReplicaSpecs']['Master']),
        dict(Worker=two['Worker']),
        dict(Master=two['Master']),
        dict(two, Worker=two['Worker'] | dict(replicas=5)),
    ]
    found |= {
        f'replicas {n}': read_again(
            torch, manifests.to_yaml(one | dict(spec=one['spec'] | dict(pytorchReplicaSpecs=s))), wide
        )
        for n, s in enumerate(specs)
    }
    pod = manifests.from_yaml(box.render(full))[0]
    pod['spec']['containers'][1]['image'] = 'other'
    found['nodes differ'] = read_again(box, manifests.to_yaml(pod), full)
    for kind in (
        'A100-SXM-80GB',
        'A100-PCIe-40GB',
        'V100-SXM2-32GB',
        'V100-SXM2-16GB',
        'H100 SXM',
        'RTX 6000 Ada',
        'L4',
        'H100 NVL',
        '',
        'T4-16GB',
        'A10 80GB',
    ):
        found[f'sky {kind}'] = clouds._sky_gpu(kind)
    found |= {
        f'upgrade {j.name}': answer(
            lambda j=j: [zlib.crc32(kubeflow.upgrade_job(t, 'rt')[0].encode()), kubeflow.upgrade_job(t)[1]]
        )
        for j in (full, wide, small)
        for t in [kubeflow.PyTorchJob(namespace='n').render(j)]
    }
    same_answers(request, 'manifests', found)


def test_what_is_no_text_of_a_job_is_a_problem_and_no_crash():
    for place in places():
        for text in (
            '',
            '{}',
            '[]',
            '3',
            'null',
            '[1]',
            'a',
            '{"metadata": 3}',
            '{"a": null}',
            'kind: Job',
            'kind: Pod',
            'kind: PyTorchJob',
            'kind: TrainJob',
        ):
            assert place.check(text), (place, text)


def test_batch_scripts_that_somebody_changed(request):
    place, job = slurm.Slurm(partition='gpu'), full.replace(image='', secrets=hidden[:2] + hidden[3:])
    text, found = place.render(job, 'tok'), {}
    lines = text.splitlines()
    for i, line in enumerate(lines[: lines.index('done')]):
        if i < 40:
            found[f'without {line}'] = read_again(place, '\n'.join(lines[:i] + lines[i + 1 :]), job)
    heads = [
        '-N 3',
        '--nodes 4',
        '--nodes=x',
        '-n 3',
        '-t 90',
        '-p other',
        '--odd',
        '--nodse=2',
        '--mem=5',
        '--mem=5G',
        '--mem=x',
        '--gpus-per-node=4',
        '--gpus-per-node=a:b',
        '--requeue',
        '--no-requeue',
        '--signal=TERM@7',
        '--signal=B:USR1@70',
        '--signal=7',
        '-J',
        '-J name',
        '--job-name=',
        '-c  2',
        '--time=1:2',
        '--time=1:2:3',
        '--time=3-4',
        '--time=3-4:5',
        '--time=x',
        '--nodes',
        '---',
        '-A me',
        '--output a b',
    ]
    found |= {
        head: read_again(slurm.Slurm(), f'#!/bin/bash\n#SBATCH {head}\nfsdl_command=(\n  a\n)\n', small)
        for head in heads
    }
    command = 'fsdl_command=(\n  a\n)\n'
    for script in [
        '',
        '#SBATCH -N 2\n\n#SBATCH -c 2\n' + command,
        'x=1\n#SBATCH -N 2\n' + command,
        '#SBATCH -N 2\n#SBATCH --nodes=2\n' + command,
        '# fsdl gpu_memory=7\n# fsdl odd=1\n' + command,
        '# fsdl gpu_memory=7\n' + command,
        'fsdl_command=(\n  $a\n)\n',
        'fsdl_command=(\n)\n',
        'fsdl_command=(\n  a',
        "fsdl_command=(\n  'a b'\n  c\"'\"d\n)\n",
        command + '# fsdl layout=late\n',
        'cd -- /a || exit 1\n' + command,
        "cd -- '/a b' || exit 1\nexport X=1\n" + command,
        'fsdl_retries=4 fsdl_on_preempt=requeue\n' + command,
        'fsdl_retries=4 fsdl_on_preempt=odd\n' + command,
        '#SBATCH --requeue\n#SBATCH --partition=a\n' + command,
    ]:
        found[script] = read_again(slurm.Slurm(), script, small)
    found |= {
        f'clock {n}': [slurm_answers.clock(n), slurm_answers.read_clock(slurm_answers.clock(n))]
        for n in (0, 1, 59, 60, 61, 3599, 3600, 3661, 86399, 86400, 86401, 90061, 864000)
    }
    found |= {
        f'read {t}': answer(slurm_answers.read_clock, t)
        for t in (
            '90',
            '90:30',
            '1:30:00',
            '2-0',
            '2-12:00',
            '2-12:00:00',
            '0-1:2:3',
            '1:2:3:4',
            '-1',
            '',
            'a',
            '1-',
            '1:',
            '0',
        )
    }
    found |= {
        f'size {n}': [slurm._megabytes(n), kubernetes._bytes(n)] for n in (0, 1, MiB - 1, MiB, MiB + 1, 2 * MiB, GiB)
    }
    found |= {
        f'gres {k} {n}': slurm._gres(small.replace(gpu=k, gpus=n))
        for k in ('', 'A100-SXM-80GB', 'RTX 6000')
        for n in (0, 1, 8)
    }
    found |= {
        f'has {g}': slurm_answers._gpus_in(g)
        for g in ('(null)', 'gpu:8', 'gpu:a100:8(S:0-1)', 'gpu:a:2,gpu:b:3', 'shard:4', 'tmp:1,gpu:2', 'gpu:a:0')
    }
    found |= {
        f'name {n}': [slurm._name(n), slurm._plain(n)]
        for n in (
            'A',
            'PATH',
            'BASH_X',
            'fsdl_',
            '_',
            'UID',
            'LC_ALL',
            'HOSTX',
            'OPTIND',
            'OPTX',
            'a\rb',
            'a\nb',
            *surrogates,
        )
    }
    same_answers(request, 'scripts', {k.encode('utf-8', 'backslashreplace').decode(): v for k, v in found.items()})


# ---- the small things that all of them share ----


def test_records_of_jobs(request):
    found = {f'unusable {t!r}': launch._unusable(t) for t in ('', 'a', 'a\0b', 'é', *surrogates)}
    found |= {f'{n} letters': launch._unusable('a' * n) for n in (128 * KiB - 1, 128 * KiB, 128 * KiB + 1)} | {
        'two bytes': launch._unusable('é' * 64 * KiB)
    }
    for args in itertools.product(
        ('A', '1A'), ('env', 'file', 'kubernetes', 'evn'), ('', 'B', '/x', 'a/b', 'a/b/c', '$x')
    ):
        found[f'secret {args}'] = answer(lambda a=args: Secret(*a).to_dict())
    odd = dict(
        name=['', 1, 'a\nb', 'a\x7f', 'a\x1f', 'a\0', 'a '],
        command=['python a', (), ('',), ('a', 1), ('a', '\ud800'), ['a']],
        env=[{'1': 'a'}, {'A': 1}, {'A': 'a\0'}, {'RANK': '1'}, {'LOCAL_WORLD_SIZE': '1'}, {'TOKEN': 'x'}],
        nodes=[0, -1, 1.5, True, '2'],
        processes=[0],
        cpus=[0, 1.5],
        time=[0, '2h', '1-12:00:00', '90', 'x', 1.5],
        gpus=[-1, True, 1.5, 0],
        gpu_memory=['80GB', -1, 1.5],
        memory=['64GiB', 'x', True],
        retries=[-1, 1],
        grace=[-1, 0, '5'],
        secrets=[hidden, hidden[:1] * 2],
        on_preempt=['stop', 'requeu'],
        gpu=['a\tb'],
        folder=['a\nb', None],
        layout=['a\r'],
        image=['\x00'],
    )
    found |= {
        f'job {f}={v!r}'.encode('utf-8', 'backslashreplace').decode(): answer(
            lambda f=f, v=v: apart(Job(**dict(name='a', command=('b',), secrets=hidden[:1]) | {f: v}), small)
        )
        for f, values in odd.items()
        for v in values
    }
    found |= {'ranks': [j.ranks for j in (full, small, wide, dense)], 'page': [full._page().rows, small._page().rows]}
    asked = [
        dict(nodes=2),
        dict(gpus=3),
        dict(gpu_memory=40 * GiB),
        dict(gpu_memory=40 * GiB + 1),
        dict(cpus=2, processes=3),
        dict(memory=GiB),
        dict(time=61),
        {},
    ]
    limits = [Limits(), Limits(1, 2, '', 40 * GiB, 5, GiB - 1, 60), Limits(2, 3, 'A100-SXM-40GB', 0, 6, GiB, 61)]
    found |= {
        f'beyond {i} {more}': launch.beyond(Job('a', ('b',), **more), x) for i, x in enumerate(limits) for more in asked
    }
    found |= {f'gpu bytes {i}': x.gpu_bytes for i, x in enumerate([*limits, Limits(gpu='A100-SXM-80GB', gpu_memory=5)])}
    for words in (['a'], ['a', '--no-python', 'b'], ['--no-python'], ['a', '--no-python', '--no-python', 'c']):
        found[f'rank {words}'] = [targets.rank_command(words, n) for n in (0, 1, 2)]
    found['kept'] = [
        targets.kept_fields(j, ('gpus', 'gpu', 'cpus', 'retries', 'folder', 'nodes')) for j in (full, small)
    ]
    found['stated'] = [
        targets.stated(a=0, b='', c=(), d=1, e='x'),
        targets.complaints((0, 'a'), (1, 'b'), ('', 'c')),
        targets.complaints(),
    ]
    found['known'] = [
        answer(targets.only_known, 'a text', given, ['alpha', 'beta'])
        for given in ([], ['alpha'], ['alhpa'], {'beta': 1, 'x': 2})
    ]
    found['states'] = [[s, Status(s).done] for s in targets.states] + [answer(Status, 'runing'), str(Handle('a', 'b'))]
    found['target'] = [type(targets.target(n)).__name__ for n in (*targets.places, 'k8s')] + [
        answer(targets.target, 'slrum')
    ]
    found['home'] = [
        targets._at_home({})['PATH'].endswith(':/usr/sbin:/sbin'),
        targets._at_home(dict(PATH='/a', B='c')),
    ]
    same_answers(request, 'records', found)


def test_envelopes(request):
    words, found = ['a', 'b c', 'ü', 'd'], {}
    sealed = [
        launch.seal(words[:n], {'A': 'x'} if n % 2 else None, {'F': '/f'} if n > 2 else None, 'py') for n in range(1, 5)
    ] + [launch.seal(['w' * n]) for n in (99, 100, 101, 102, 103, 104, 105, 300)]
    found['sealed'] = [[list(map(len, s)), s[0], zlib.crc32(' '.join(s).encode())] for s in sealed]
    found['unsealed'] = [
        [launch.unseal(s), launch.unseal(s[:3]), launch.unseal((s[0], '-d', *s[2:])) is not None] for s in sealed[:4]
    ]
    found['damaged'] = [answer(launch.unseal, (*sealed[0][:3], t)).partition(':')[0] for t in ('x', '!', 'ww==')] + [
        launch.unseal(('a', '-c', 'b', 'c'))
    ]
    jobs = [
        small,
        full,
        full.replace(env={'A': '$'}),
        full.replace(command=('a', '$')),
        full.replace(env={'A': '$', 'B': 'c'}, secrets=()),
        small.replace(env={'BAD': 'x'}),
    ]
    for i, job in enumerate(jobs):
        for native in (('kubernetes',), ('file', 'env')):
            for named in (None, lambda k: k != 'BAD'):
                command, env = launch.wire(job, lambda t: '$' not in t, 'py', native, named)
                found[f'wire {i} {native} {named is None}'] = [
                    len(command),
                    env,
                    launch.unseal(command),
                    launch.unwire(command, env)[2],
                ]
    same_answers(request, 'envelopes', found)


def test_prices_of_jobs(request):
    offers = [
        SimpleNamespace(provider=p, gpu=g, gpus=n, usd_per_hour=d, tier='t', date='2026-01')
        for p, g, n, d in (
            ('a', 'A100-SXM-80GB', 8, 20.0),
            ('b', 'A100-SXM-40GB', 1, 1.5),
            ('c', 'H100-SXM', 2, 5.0),
            ('d', 'A100-SXM-80GB', 1, 2.0),
        )
    ]
    asked = [
        dict(gpus=1),
        dict(gpus=8, nodes=2),
        dict(gpus=9),
        dict(gpus=1, gpu='A100-SXM-80GB'),
        dict(gpus=1, gpu_memory=60 * GiB),
        dict(gpus=1, gpu_memory=800 * GiB),
        dict(gpus=1, gpu='T4'),
        dict(),
        dict(gpus=3, time=5400),
    ]
    found = {
        str(more): answer(lambda m=more: [(t := launch._price(Job('a', ('b',), **m), offers, 3)).rows, t.caption])
        for more in asked
    }
    from fsdl_tools.compute.gpus import find

    exact = int(find('A100-SXM-40GB').memory)
    found['limits of memory'] = [
        len(launch._able(Job('a', ('b',), gpu_memory=exact + d), offers)) for d in (-1, 0, 1)
    ] + [answer(launch._able, small, [])]
    from fsdl_tools.training.config import TrainConfig
    from fsdl_tools.operations.sweep_trials import hourly_price

    found['hour'] = [hourly_price(small.replace(gpus=8, time=t), offers) for t in (60, 7200)]
    config = TrainConfig(folder='/data/run')

    class Layout(SimpleNamespace):
        def settled(self):
            return 'dp'

    made = lambda plan, per, c=config: (
        lambda j: [j.nodes, j.processes, j.gpus, j.gpu, j.gpu_memory, j.name, j.layout]
    )(launch.Job.from_plan(plan, c, per))
    monkey = lambda job: [job.nodes, job.processes, job.gpus, job.command[:2], '"resume": true' in job.command[3]]
    found['plain plan'] = [answer(lambda: monkey(Job.from_plan(None, config))), answer(made, None, 8, TrainConfig())]
    real = config.layout
    for world in (1, 4, 8, 12, 16):
        for per in (4, 8):
            plan = SimpleNamespace(layout=real.replace(dp=world), gpu='A100-SXM-80GB', device=5)
            found[f'plan {world} {per}'] = answer(
                lambda p=plan, n=per: [
                    *monkey(Job.from_plan(p, config, n, time=7)),
                    Job.from_plan(p, config, n).layout,
                    Job.from_plan(p, config, n).gpu_memory,
                ]
            )
    same_answers(request, 'prices', found)


# ---- what is asked of a target, and what its answers mean: a program that says what the test wants ----


class Program:
    "Stands for every command: answers are looked up by a word of the command, and what was asked is kept"

    def __init__(self, monkeypatch, **answers):
        self.answers, self.asked = answers, []
        for module in (targets, slurm, containers):
            monkeypatch.setattr(module, 'run_command', self)

    def __call__(self, args, timeout=5, text='', env=None):
        self.asked.append([*map(str, args), timeout, len(text)])
        said = next((v for k, v in self.answers.items() if k in args), '')
        if isinstance(said, list):
            said = said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def alike(handle):
    return [handle.target, handle.id, handle.token]


def test_what_slurm_is_asked(request, monkeypatch, tmp_path):
    place, handle, found = slurm.Slurm(partition='gpu'), Handle('slurm', '7', 'tok'), {}
    log = tmp_path / 'out'
    log.write_bytes(b'said \xff')
    lines = dict(
        waits='JobId=7 JobState=PENDING Reason=Priority Restarts=0 ExitCode=0:0',
        runs='JobId=7 JobState=RUNNING Restarts=2 Reason=None ExitCode=0:0',
        failed='JobId=7 JobState=FAILED ExitCode=1:0 BatchHost=n1 StdOut=/nowhere/x',
        done=f'JobId=7 JobState=COMPLETED StdOut={log} BatchHost=n',
        odd='JobState=NEW a=b=c d',
        never='JobId=7 JobState=CANCELLED StdOut=/nowhere/x',
        empty='',
    )
    for name, text in lines.items():
        Program(monkeypatch, scontrol=text)
        found[name] = [
            slurm_answers.records(text.replace(str(tmp_path), '')),
            answer(place.status, handle),
            answer(place.logs, handle).replace(str(tmp_path), ''),
        ]
    for a, b in itertools.combinations(lines, 2):
        Program(monkeypatch, scontrol=f'{lines[a]}\n{lines[b]}')
        found[f'{a}, {b}'] = answer(lambda: place.status(handle).word)
    found['words'] = [slurm_answers.status_of(dict(JobState=w)).state for w in (*slurm_answers._states, 'ODD')]
    said = Program(
        monkeypatch,
        squeue='5 fsdl-other\n6 fsdl-tok\n7 fsdl-tok\n8\n9 fsdl-tok more',
        scancel='',
        sbatch='12;cluster\n',
    )
    job = full.replace(image='', secrets=())
    found['found'] = [answer(lambda: alike(place.find(t))) for t in ('tok', 'other', 'none')] + [place.find('none')]
    found['submitted'] = [
        alike(place._submit(job, 'tok')),
        alike(place._submit(job, 'new')),
        alike(place.submit(job))[:2],
        place.cancel(handle),
    ]
    found['not set'] = answer(place._submit, job.replace(secrets=(Secret('A', 'env', 'FSDL_NOT_SET'),)), 'tok')
    found['asked'] = [a[:-1] for a in said.asked]
    said = Program(monkeypatch, squeue=['', '6 fsdl-tok'], sbatch=TimeoutError('late'))
    found['late, and there'] = [alike(place._submit(job, 'tok')), [a[-2] for a in said.asked]]
    said = Program(monkeypatch, squeue='', sbatch=TimeoutError('late'))
    found['late, and not there'] = [answer(place._submit, job, 'tok'), [a[-2] for a in said.asked]]
    Program(monkeypatch, squeue=TimeoutError('late'))
    found['no controller'] = answer(place.find, 'tok')
    conf = 'SLURM_VERSION = 24\nPreemptType = {}\nJobRequeue={}\nAuthInfo = socket=/x,cred_expire={}\nnothing'
    part = 'PartitionName=gpu State=UP TotalNodes=3 MaxTime={} GraceTime={} PreemptMode={}'
    rows = [
        (conf.format('preempt/qos', 1, 5), part.format('UNLIMITED', 0, 'REQUEUE')),
        (conf.format('preempt/none', 1, ''), part.format('1-0', 10, 'CANCEL')),
        ('', part.format('2:00:00', 7, 'GANG,SUSPEND')),
        (conf.format('a', 0, 60), part.format('30', 7, 'CANCEL')),
    ]
    for i, (settings, partition) in enumerate(rows):
        said = Program(
            monkeypatch,
            config=settings,
            partition=partition,
            sinfo='2 16 64000+ gpu:a100:8(S:0-1)\n1 8+ 32000 (null)\n',
        )
        found[f'cluster {i}'] = [
            place.doctor().rows,
            answer(lambda: slurm_answers.limits_of(place).to_dict()),
            said.asked[:2],
            slurm.Slurm().doctor().rows[-1],
            said.asked[-1],
        ]
    found['verdicts'] = {
        f'{m} {g}': slurm_answers._verdict(m, g) for m in ('OFF', 'SUSPEND', 'GANG', 'CANCEL', 'REQUEUE') for g in '05'
    }
    same_answers(request, 'slurm', found)


def test_what_containers_are_asked(request, monkeypatch):
    found, states = {}, ['running', 'exited', 'stopped', 'created', 'paused']
    for place in (containers.Container(mounts=('/',)), containers.Docker(mounts=('/',))):
        name, handle = type(place).__name__, Handle('container', 'tiny-gpt', 'tok')
        monkeypatch.setattr(containers, '_both', lambda args: ' '.join(args) + '\n')
        for a, b, codes in itertools.product(states, states, ((0, 0), (0, 2))):
            Program(
                monkeypatch,
                ps='tiny-gpt-node-1\ntiny-gpt-node-0\nother\n',
                inspect=[json.dumps(dict(Status=s, ExitCode=c)) for s, c in zip((a, b), codes)],
            )
            if a <= b:
                found[f'{name} {a} {b} {codes}'] = answer(place.status, handle)
        said = Program(
            monkeypatch,
            ps=['tiny-gpt-node-0', 'tiny-gpt-node-0', 'tiny-gpt-node-1', ''],
            inspect='{"Status": "running"}',
            version=' 5 \n',
        )
        found[f'{name} asked'] = [
            answer(place.logs, handle),
            answer(place.cancel, handle),
            place.doctor().rows,
            answer(place.status, handle),
            said.asked,
        ]
        for there in ('', 'tiny-gpt\n', 'tiny-gpt-node-0', 'tiny-gpt2'):
            said = Program(monkeypatch, ps=there)
            found[f'{name} submit {there.strip()}'] = [
                answer(lambda p=place: alike(p._submit(full, 'tok'))),
                said.asked,
            ]
        for job in (small, full, wide, dense):
            said = Program(monkeypatch)
            found[f'{name} {job.name}'] = [place._start(place.render(job)), said.asked]
        said = Program(monkeypatch, play=TargetError('no'), run=TargetError('no'), rm=TargetError('half'))
        found[f'{name} fails'] = [answer(place._submit, full, 'tok'), said.asked[-1]]
        for kw in (dict(), dict(base='python:3'), dict(base='Bad Image', context='/x')):
            said = Program(monkeypatch)
            found[f'{name} build {kw}'] = [
                answer(lambda p=place, kw=kw: p.build(full.replace(folder='/a'), **kw)),
                said.asked,
            ]
    texts = [
        '',
        'RUN x',
        'FROM a\nRUN x',
        'FROM a\nRUN ["x"]',
        'FROM a\nRUN []',
        'FROM a\nCMD ["x", 1]',
        'FROM a\nCOPY {"a": 1}',
        'FROM A',
        'FROM scratch',
        'ARG X\nFROM a',
        '# c\n\nFROM a\nWORKDIR x',
        'FROM a\nWORKDIR /x',
        'FROM a\nRUNN ["x"]',
        'FROM a\nXYZZY y',
        '# only',
        '  \nFROM a',
        'FROM a\nENV X=1\nUSER x\nENTRYPOINT x',
    ]
    found |= {f'check {t}': containers.check_containerfile(t) for t in texts}
    found |= {
        f'file {i}': containers.containerfile(j, *more)
        for i, (j, *more) in enumerate([(full,), (small, 'scratch'), (dense, 'a:1', 'l.txt', 'pkg')])
    }
    found['ports'] = [containers._docker_port(n) for n in ('a', 'tiny-gpt', 'x' * 40)]
    same_answers(request, 'containers', found)


def test_what_kubernetes_and_clouds_are_asked(request, monkeypatch):
    found, handle = {}, Handle('kubernetes', 'one', 'tok')
    kinds = [
        [],
        ['Complete'],
        ['Failed'],
        ['Running'],
        ['Suspended'],
        ['Created', 'Running'],
        ['Running', 'Failed'],
        ['Odd'],
        ['Restarting'],
        ['Succeeded', 'Failed'],
    ]
    for place in (kubernetes.Kubernetes(namespace='ml'), kubeflow.PyTorchJob(), kubeflow.TrainJob()):
        name = type(place).__name__
        for conditions, ok, more in [
            *((k, 'True', {}) for k in kinds),
            (['Complete'], 'False', {}),
            ([], '', dict(active=1)),
            ([], '', dict(ready=2)),
            ([], '', dict(active=0, ready=0)),
            (['Failed'], 'True', dict(reason='DeadlineExceeded')),
        ]:
            status = (
                dict(
                    conditions=[
                        dict(type=c, status=ok, **({'reason': more['reason']} if 'reason' in more else {}))
                        for c in conditions
                    ]
                )
                | more
            )
            Program(monkeypatch, get=json.dumps(dict(status=status)))
            found[f'{name} {conditions} {ok} {more}'] = answer(place.status, handle)
        said = Program(
            monkeypatch, get='{}', version='{"serverVersion": {"gitVersion": "v1"}}', explain='e' * 300, logs='l'
        )
        found[f'{name} asked'] = [
            answer(place.status, handle),
            place.logs(handle),
            place.cancel(handle),
            [list(map(str, r.values())) for r in place.doctor().rows],
            alike(place.submit(small, 'tok')),
            said.asked,
        ]
        Program(monkeypatch, version='{}')
        found[f'{name} no server'] = place.doctor().rows
    for place in (clouds.Anyscale(), clouds.Determined(), clouds.SkyPilot(), targets.target('sagemaker')):
        name, job = type(place).__name__, full.replace(name='tiny', secrets=(), folder='', nodes=1)
        if name == 'SageMaker':
            continue
        for said in (
            'id prodjob_1\nid prodjob_22',
            'Created experiment 41',
            'Job ID: 7',
            'nothing',
            *place.words,
            'RUNNINGS',
            'a ' * 80,
        ):
            Program(monkeypatch, submit=said, create=said, launch=said, status=said, describe=said, queue=said)
            found[f'{name} {said[:20]}'] = [
                answer(lambda: alike(place._submit(job, 'tok'))),
                answer(place.status, handle),
            ]
        said = Program(monkeypatch, **{'--version': ' 1 \n'})
        found[f'{name} asked'] = [place.logs(handle), place.cancel(handle), place.doctor().rows, said.asked]
    for text in ('', '$$', '$(A)', '$$(A)', '$(B)', '$A', '$$$(A)', '$()', 'a$(A', '$(A)$(A)'):
        found[f'expand {text}'] = [manifests.expand(text, dict(A='x')), manifests.carries(text)]
    for text in ('a', 'a\tb', 'é', '\u2028', 'a\n', ' '):
        found[f'carries {text}'] = manifests.carries(text)
    for n in ('a', 'A', '', '-a', 'a-', '1a', 'a.b', 'a' * 63, 'a' * 64, 'é'):
        found[f'name {n}'] = [
            manifests.bad_name(n),
            manifests.bad_name(n, 'secret', 1, True),
            manifests.bad_name(n[:61], room=2),
        ]
    for q in (0, 2, '500m', '2Gi', '1.5k', '3E', '1Pi', '', 'x', '-1', '1gi', 1.5, '7Ki', '2M', '1T'):
        found[f'quantity {q}'] = answer(manifests.quantity, q)
    for n in (
        '',
        'a',
        'a:b',
        'A',
        'ghcr.io/me/x:1',
        'localhost:5000/x',
        'a//b',
        'a_b',
        'a___b',
        'a:' + 'x' * 128,
        'a:' + 'x' * 129,
        'a@sha256:' + '0' * 64,
        'a@sha256:' + '0' * 63,
        'Host/a',
        'a/B',
        'a.-b',
        'a--b',
    ):
        found[f'image {n[:20]} {len(n)}'] = len(manifests.bad_image(n))
    schema = dict(alpha=None, beta=[dict(gamma=None)], delta=dict(eps=[None]))
    for i, d in enumerate(
        [
            {},
            dict(alpha=1),
            dict(alhpa=1),
            dict(beta={}),
            dict(beta=[dict(gamma=1), dict(gama=2), 3]),
            dict(delta=[]),
            dict(delta=dict(eps=3, zzz=1)),
            [],
            dict(xyzzy=1),
        ]
    ):
        found[f'keys {i}'] = manifests.keys_beyond(d, schema)
    words = [
        'a',
        'no',
        'No',
        'true',
        '1',
        'a b',
        '/x',
        '',
        '~',
        'inf',
        'y',
        'é',
        'a-b',
        "it's",
        'x\n',
        1,
        1.5,
        True,
        None,
        [],
        {},
        ['a', 1],
    ]
    found['yaml'] = manifests.to_yaml({f'k{i}': w for i, w in enumerate(words)}, dict(a=words[-1]))
    env = [
        dict(name='A', value='1'),
        dict(name='B', valueFrom=dict(secretKeyRef=dict(name='s', key='k'))),
        dict(name='C', value='x'),
    ]
    found['read env'] = [
        answer(kubernetes._read_env, e, ours)
        for e in (env, None, [dict(name='A', value=1)], [dict(name='A')], [dict(name='A', valueFrom=dict(fieldRef=1))])
        for ours in ((), ('A',))
    ]
    for limits in (
        {},
        dict(cpu=3),
        dict(cpu='500m'),
        dict(memory='1Gi'),
        dict(cpu=8),
        {'nvidia.com/gpu': '2'},
        dict(cpus=1),
    ):
        found[f'limits {limits}'] = [answer(kubernetes._read_resources, limits, n) for n in (1, 2, 3)]
    for j in (full, small, wide, dense):
        found[f'ranks of {j.name} {j.processes}'] = [
            kubernetes._rank_env(j, 'host', dict(value='1')),
            kubernetes._resources(j),
            kubernetes.start(j, ['a'], 'py'),
        ]
    for key in ('k', 'a/b', '', 'x' * 253, 'x' * 254, 'é', 'a b'):
        found[f'key {key[:9]} {len(key)}'] = answer(
            lambda key=key: kubernetes._key_rules(
                SimpleNamespace(secrets=[SimpleNamespace(kind='kubernetes', ref=f'box/{key}'), hidden[0]])
            )
        )
    for place, size in ((kubernetes.Kubernetes(), 10**6), (slurm.Slurm(), 4 * 10**6)):
        for n in (size, size + 1):
            monkeypatch.setattr(type(place), 'render', lambda self, job: 'x' * n)
            found[f'text of {n}'] = place.check(small.replace(image='') if size > 10**6 else small)
    monkeypatch.undo()
    found['sage'] = [
        clouds.SageMaker().check(small.replace(**m))[:3]
        for m in (
            dict(command=('a', 'x' * 256)),
            dict(command=('a', 'x' * 257)),
            dict(command=('a', *'b' * 100)),
            dict(command=('a', *'b' * 101)),
            dict(retries=30),
            dict(retries=31),
            dict(name='a' * 63),
            dict(name='a' * 64),
            dict(name='a-'),
            dict(env={f'V{i}': 'x' for i in range(100)}),
            dict(env={f'V{i}': 'x' for i in range(101)}),
            dict(env=dict(A='x' * 512)),
            dict(env=dict(A='x' * 513)),
        )
    ]
    found['carried'] = [
        [f('x' * n + t) for n in (250, 256, 257, 511, 512, 513) for t in ('', '\n', '$')]
        for f in (clouds._aws_carries, clouds._aws_env)
    ]
    found['sky size'] = [
        clouds.SkyPilot().check(small.replace(command=('a', 'x' * (n // 2), 'y' * (n - n // 2))))
        for n in (131_072 - 13 - 14, 131_072 - 13 - 13)
    ]
    long = lambda n: small.replace(image='', command=('a', 'x' * 60_000, 'y' * n))
    short = 128 * KiB - len(json.loads(ray_jobs.Ray().render(long(1)))['entrypoint'])
    found['ray size'] = [ray_jobs.Ray().check(long(short + d)) for d in (0, 1)]
    same_answers(request, 'asked', found)


def test_what_aws_is_asked(request, monkeypatch):
    class Sage:
        def __init__(self, answers):
            self.answers, self.asked = answers, []

        def __getattr__(self, operation):
            def call(**values):
                self.asked.append([operation, values])
                said = self.answers[operation]
                if isinstance(said, Exception):
                    raise said
                return said.pop(0) if isinstance(said, list) else said

            return call

    place, handle, found = clouds.SageMaker(), Handle('sagemaker', 'one', 'tok'), {}

    def ask(method, *args, **answers):
        client = Sage(answers)
        monkeypatch.setattr(clouds, '_aws', lambda service, target: (client, (KeyError, OSError)))
        return [answer(method, *args), [[o, v if o != 'create_training_job' else len(v)] for o, v in client.asked]]

    for word in (*clouds._aws_words, 'Odd'):
        for more in (
            {},
            dict(SecondaryStatus='MaxRuntimeExceeded', FailureReason='why'),
            dict(SecondaryStatus='Training'),
        ):
            found[f'{word} {more}'] = ask(
                place.status, handle, describe_training_job=dict(TrainingJobStatus=word) | more
            )
    found['logs'] = ask(
        place.logs,
        handle,
        describe_log_streams=dict(logStreams=[dict(logStreamName='a'), dict(logStreamName='b')]),
        get_log_events=[dict(events=[dict(message='x'), dict(message='y')]), dict(events=[])],
    )
    found['cancel'], found['fails'] = (
        ask(place.cancel, handle, stop_training_job=None),
        ask(place.cancel, handle, stop_training_job=OSError('no')),
    )
    found['submit'] = ask(lambda: alike(place._submit(small, 'tok')), create_training_job={})
    monkeypatch.undo()
    made, boto = (
        [],
        SimpleNamespace(
            session=SimpleNamespace(
                botocore=SimpleNamespace(
                    config=SimpleNamespace(Config=lambda **kw: kw),
                    exceptions=SimpleNamespace(BotoCoreError=1, ClientError=2),
                )
            )
        ),
    )
    boto.client = lambda *a, **kw: made.append([a, kw])
    monkeypatch.setattr(clouds.importlib, 'import_module', lambda name: boto)
    found['client'] = [
        clouds._aws('logs', place)[1],
        clouds._aws('x', clouds.SageMaker(endpoint='http://e', region='r', patience=9))[1],
        made,
    ]

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(clouds.importlib, 'import_module', missing)
    found['no client'] = answer(clouds._aws, 'logs', place)
    for there in (None, 1):
        monkeypatch.setattr(clouds.importlib.util, 'find_spec', lambda name: there)
        found[f'doctor {there}'] = place.doctor().rows
    same_answers(request, 'aws', found)


class Clock:
    "Time that passes only when somebody sleeps or looks"

    def __init__(self, monkeypatch, module, look=0.0):
        self.now, self.slept, self.look = 1000.0, [], look
        monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=self.tell, time=self.tell, sleep=self.sleep))

    def tell(self):
        self.now += self.look
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Fake(Target):
    "A target that does what the test says"

    title, script, text = 'fake', [], 'x'

    def _render(self, job, token):
        return f'{job.name} {token}'

    def _parse(self, text):
        return small.replace(name=text) if text != 'bad' else [][0:1] and None or small.replace(nodes=text)

    def _rules(self, job):
        return [f'no {job.name}'] if job.name == 'odd' else []

    def _submit(self, job, token):
        return self._handle(job.name, token)

    def _status(self, handle):
        return Status(self.script[0] if len(self.script) == 1 else self.script.pop(0), 'word')

    def _logs(self, handle):
        return 'abcdef'[: 6 - len(self.script)]

    def _cancel(self, handle):
        return 'ignored'

    def _facts(self):
        if self.text == 'x':
            return [dict(what='a', value='b')]
        raise self.text


def test_what_all_targets_do(request, monkeypatch):
    place, found, handle = Fake(limits=Limits(nodes=1)), {}, Handle('fake', 'a')
    found['check'] = [
        place.check(x) for x in (small, small.replace(name='odd'), small.replace(nodes=2), 'one', 'odd', 'bad')
    ]
    found['refuse'] = (
        [answer(place.refuse, j) for j in (small, small.replace(name='odd', nodes=2))]
        + [answer(lambda: alike(place.submit(j, 't'))) for j in (small, small.replace(name='odd'))]
        + [place.cancel(handle)]
    )
    for script in (['succeeded'], ['queued', 'running', 'failed'], ['running'], ['unknown', 'preempted', 'lost']):
        for timeout, every in ((600, 0.5), (1, 0.5), (0, 0.5)):
            clock, Fake.script = Clock(monkeypatch, targets), list(script)
            found[f'wait {script} {timeout}'] = [
                answer(lambda: place.wait(handle, timeout, every).state),
                len(clock.slept),
            ]
        if script == ['running']:
            continue
        clock, Fake.script = Clock(monkeypatch, targets), list(script)
        found[f'follow {script}'] = [list(place.follow(handle)), clock.slept]
    for text in ('x', TargetError('y' * 400), TimeoutError('late')):
        Fake.text = text
        found[f'doctor {str(text)[:3]}'] = [place.doctor().rows, place.doctor().caption]
    Fake.accepted, Fake.program = False, 'prog'
    found['doctor'] = place.doctor().rows
    Fake.accepted, Fake.program, Fake.text = True, '', 'x'
    monkeypatch.undo()
    found['commands'] = [
        answer(targets.run_command, a, 9, t)
        for a, t in (
            (['cat'], 'in'),
            (['sh', '-c', 'echo out; echo err >&2; exit 3'], ''),
            (['sh', '-c', 'echo out; exit 4'], ''),
            (['fsdl-no-such'], ''),
            (['sh', '-c', 'echo ' + 'x' * 600 + ' >&2; false'], ''),
            (['sh', '-c', 'echo $A'], ''),
        )
    ]
    found['variables'] = [
        targets.run_command(['sh', '-c', 'echo $A'], env=dict(A='b', PATH='/usr/bin:/bin')),
        answer(targets.run_command, ['sh', '-c', 'sleep 9'], 0.02),
    ]
    same_answers(request, 'common', found)


def test_local_jobs_without_processes(request, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    place, handle, found = local.Local(python='py'), Handle('local', 'tok', 'tok'), {}
    found['state'] = local.state_folder().relative_to(tmp_path).as_posix()
    found['tokens'] = [answer(local._check_token, t) for t in ('a', '', 'a b', 'é', 'x' * 60, 'x' * 61, '../a', 'a_-')]
    found['threads'] = [
        local.with_threads({}, 3),
        local.with_threads(dict(OMP_NUM_THREADS='1'), 3),
        local.without_threads(dict(OMP_NUM_THREADS='3', A='3'), 3),
        local.without_threads(dict(OMP_NUM_THREADS='1', B='3'), 3),
    ]
    found['nothing'] = [answer(f, handle) for f in (place.status, place.logs, place.cancel)]
    folder = local.state_folder() / 'tok'
    found['record'] = [
        local._put_on_record(folder, 'a'),
        local._put_on_record(folder, 'b'),
        (folder / 'job.json').read_text(),
        sorted(p.name for p in folder.parent.iterdir()),
    ]
    found['no place'] = answer(local._put_on_record, tmp_path / 'no' / 'x', 'a').replace(str(tmp_path), '')
    alive = []
    monkeypatch.setattr(local, '_alive', lambda pid, where: bool(alive))
    age = (folder / 'job.json').stat().st_mtime
    for late in (0, 29, 31):
        monkeypatch.setattr(local.time, 'time', lambda: age + late)
        found[f'late {late}'] = place.status(handle)
    found['log'], killed = [place.logs(handle)], []
    monkeypatch.setattr(local.os, 'kill', lambda *a: killed.append(a))
    place.cancel(handle)
    (folder / 'pid').write_text('123')
    found['dead'] = [
        place.status(handle),
        place.cancel(handle),
        killed[:],
        (folder / 'cancel').exists(),
        local._pid(folder),
        local._pid(tmp_path),
    ]
    alive.append(1)
    found['alive'] = [place.status(handle), place.cancel(handle), [[p, int(s)] for p, s in killed]]
    Status('failed', 'exit 3').to_json(folder / 'end.json')
    found['end'] = [place.status(handle), answer(place.logs, handle).replace(str(tmp_path), '')]
    (folder / 'log').write_bytes(b'a\xff')
    found['log'] += [place.logs(handle)]
    job = small.replace(retries=2, grace=7, time=61)
    found['settled'] = [
        local._settled(job, c, late, asked) for c in (0, 1, -9) for late in (True, False) for asked in ([], [True])
    ]
    for retries, processes, codes in (
        (0, 1, [1]),
        (2, 1, [1, 2, 3]),
        (2, 1, [1, 0]),
        (2, 2, [5, 0]),
        (1, 1, [-9, -15]),
        (1, 1, [OSError('no')]),
        (1, 1, [3, ValueError('odd')]),
    ):
        run = iter(codes)

        def once(*a):
            code = next(run)
            if isinstance(code, Exception):
                raise code
            return code, False

        monkeypatch.setattr(local, '_once', once)
        found[f'attempts {retries} {processes} {codes}'] = [
            local._attempts({}, small.replace(retries=retries, processes=processes), folder / 'log', []),
            len(list(run)),
            (folder / 'log').read_text(errors='replace'),
        ]
    found['asked'] = local._attempts({}, small, folder / 'log', [True])
    monkeypatch.undo()
    for polls, asked, grace in (([None, None, 0], [], 7), ([None] * 9, [], 7), ([None] * 9, [True], 7), ([4], [], 7)):
        left, clock, ended = list(polls), Clock(monkeypatch, local, 0.3), []
        p = SimpleNamespace(poll=lambda: left.pop(0) if len(left) > 1 else left[0], returncode=polls[-1])
        monkeypatch.setattr(local, '_begin', lambda d, log: p)
        monkeypatch.setattr(local, '_end_group', lambda p, grace: ended.append(grace) or -15)
        found[f'once {len(polls)} {asked}'] = [
            local._once({}, SimpleNamespace(time=2, grace=grace), tmp_path / "log", asked),
            ended,
            clock.slept,
        ]
    monkeypatch.undo()
    monkeypatch.setenv('FSDL_SECRET', 's')
    (tmp_path / 'secret').write_text(' hush \n')
    env = local._with_secrets(
        dict(A='b'),
        [dict(name='X', kind='env', ref='FSDL_SECRET'), dict(name='Y', kind='file', ref=str(tmp_path / 'secret'))],
    )
    found['secrets'] = [
        env['A'],
        env['X'],
        env['Y'],
        answer(local._with_secrets, {}, [dict(name='X', kind='env', ref='FSDL_UNSET')]),
    ]
    monkeypatch.setattr(local.os, 'sched_getaffinity', lambda pid: {0, 1, 5})
    found['facts'] = [
        place._facts(),
        monkeypatch.setattr(local.importlib.util, 'find_spec', lambda n: None),
        place._facts(),
    ]
    found['rules'] = [place._rules(j) for j in (full, small, full.replace(folder='/no where', secrets=hidden))]
    same_answers(request, 'local', found)


def test_ray_without_a_cluster(request, monkeypatch):
    place, handle, found, asked = ray_jobs.Ray(), Handle('ray', 'id', 'tok'), {}, []

    def ask(self, path, body=None):
        asked.append([path, body is None])
        said = answers[path.split('/')[0] if body is None else 'post']
        if isinstance(said, list) and body is not None:
            said = said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(ray_jobs.Ray, 'ask', ask)
    answers = dict(jobs=[dict(submission_id='tok'), {}], version=dict(ray_version='2'), post=[{}])
    found['submit'] = [
        alike(place._submit(small, 'tok')),
        alike(place._submit(small, 'new')),
        asked[:],
        place.doctor().rows,
    ]
    for script in (
        [TargetError('try again later'), TargetError('try again later'), {}],
        [TargetError('no')],
        [TargetError('try again later')] * 30,
    ):
        answers['post'], clock = list(script), Clock(monkeypatch, ray_jobs)
        found[f'again {len(script)}'] = [answer(place._ask_again, 'jobs/', '{}'), len(answers['post']), clock.slept[:3]]
    for status in (*ray_jobs._words, 'ODD'):
        for message in (None, 'm' * 400):
            answers['jobs'] = dict(status=status, message=message, logs='text')
            found[f'{status} {message is None}'] = place.status(handle)
    asked.clear()
    answers['post'] = {}
    found['others'] = [place.logs(handle), place.cancel(handle), asked]
    found['variables'] = [ray_jobs.rank_variables(dict(nodes=3, processes=2), n, ('h', 5)) for n in (0, 2)]
    found['carries'] = [[ray_jobs._carries(t), ray_jobs._in_variables(t)] for t in ('a', '$', *surrogates)]
    trainer = Job.from_plan(None, __import__('fsdl_tools.training.config', fromlist=['x']).TrainConfig(folder='/x'))
    for i, job in enumerate(
        [
            trainer,
            trainer.replace(command=trainer.command[:3]),
            trainer.replace(command=(*trainer.command[:3], '{')),
            trainer.replace(command=('a', 'b', 'c', '{}')),
            trainer.replace(command=(*trainer.command[:3], '{}')),
            small,
        ]
    ):
        found[f'train {i}'] = [bool(ray_jobs._config_of(job)), ray_jobs.RayTrain().check(job)]
    found['entries'] = [
        answer(p._command, w)
        for p in (place, ray_jobs.RayTrain())
        for w in (
            ['a'],
            ['a', '-c', 'b', '{}'],
            ['a', '-c', p.driver, '{"nodes": 2}', 'x'],
            ['a', '-d', p.driver, '{}'],
        )
    ]
    shape = dict(nodes=2, processes=2, cpus=3, gpus=2, time=9, retries=2, grace=4)
    for codes in ([1, 2, 3], [0], [143], [1, 0, 5], [-9, 143]):
        left = list(codes)
        monkeypatch.setattr(ray_jobs, '_attempt', lambda s, g, c, end: left.pop(0))
        found[f'attempts {codes}'] = [ray_jobs._attempts(shape, [], []), left]
    same_answers(request, 'ray', found)


def test_platforms(request):
    import datetime

    found = {f'months {d}': platforms._months(d) for d in ('2020', '2020-01', '2020-12', '2021-01-15'[:7])}
    events = (
        [dict(name='A', date='2020-03', ends='', event='born'), dict(name='A', date='2021', ends='x', event='died')],
        [dict(name='B', date='2024-05', ends='', event='e')],
    )
    found['fates'] = [
        platforms._fate('A', e, now, 12)
        for e in events
        for now in (2021 * 12 + 6, 2025 * 12 + 4, 2025 * 12 + 5, 2025 * 12 + 6)
    ]
    day = datetime.date(2026, 11, 27)
    found['all'] = [
        [r['platform'], r['last'], r['months'], r['alive']]
        for silent in (12, 60)
        for r in platforms.platform_fates(day, silent).rows
    ]
    found['caption'] = platforms.platform_fates(day).caption
    names = sorted({r['name'] for r in platforms.platform_history().rows})
    found['history'] = [[n, len(platforms.platform_history(n).rows)] for n in names] + [
        answer(platforms.platform_history, 'Gradeint'),
        [r['date'] for r in platforms.platform_history().rows],
    ]
    found['exit'] = [
        platforms.exit_cost(n).rows for n in names if n in ('SageMaker', 'Anyscale', 'Gradient', 'Determined.ai')
    ] + [answer(platforms.exit_cost, 'Nobody')]
    text = slurm.Slurm().render(small.replace(image=''))
    found['leave'] = [answer(platforms.leave, text, 'slurm', to) for to in ('ray', 'kubernetes')] + [
        platforms.leave(text, 'slurm', 'kubernetes', namespace='x')[1]
    ]
    table = platforms.platform_features()
    found['features'] = [
        len(table.rows),
        sorted(table.rows[0]),
        [len(platforms.platform_features(r['platform']).rows) for r in table.rows],
        answer(platforms.platform_features, 'x'),
    ]
    same_answers(request, 'platforms', found)


# ---- sweeps ----

axes = dict(
    value=dict(value=3),
    values=dict(values=['a', 'b', 'c']),
    weighted=dict(values=[1, 2, 3], probabilities=[0.5, 0.3, 0.2]),
    whole=dict(min=2, max=5),
    even=dict(min=0.5, max=2.0),
    named=dict(distribution='uniform', min=1, max=4),
    steps=dict(distribution='q_uniform', min=1, max=9, q=2),
    fine=dict(distribution='q_uniform', min=0.0, max=1.0, q=0.25),
    log=dict(distribution='log_uniform', min=-3, max=2),
    logs=dict(distribution='log_uniform_values', min=1e-4, max=1e-1),
    qlog=dict(distribution='q_log_uniform', min=0, max=5, q=10),
    qlogs=dict(distribution='q_log_uniform_values', min=1, max=500, q=0.5),
    inv=dict(distribution='inv_log_uniform', min=1, max=8),
    invs=dict(distribution='inv_log_uniform_values', min=0.1, max=0.9),
    bell=dict(distribution='normal'),
    bells=dict(distribution='normal', mu=3, sigma=2),
    qbell=dict(distribution='q_normal', mu=10, sigma=5, q=4),
    logbell=dict(distribution='log_normal', mu=1, sigma=0.5),
    huge=dict(distribution='log_normal', mu=800, sigma=1),
    qlogbell=dict(distribution='q_log_normal', q=1),
    beta=dict(distribution='beta', a=2, b=3),
    qbeta=dict(distribution='q_beta', a=2, b=3, q=0.1),
)
odd_axes = [
    3,
    {},
    dict(vlaue=1),
    dict(values=[]),
    dict(values='a'),
    dict(values=[1, 2], probabilities=[0.5, 0.6]),
    dict(values=[1, 2], probabilities=[1.5, -0.5]),
    dict(values=[1, 2], probabilities=[1]),
    dict(values=[1, 2], probabilities='x'),
    dict(values=[1, 2], probabilities=['a', 'b']),
    dict(values=[1, 2], probabilities=[0.5, 0.5 + 9e-7]),
    dict(values=[1, 2], probabilities=[0.5, 0.5 + 2e-6]),
    dict(values=[1, 2], probabilities=[0, 1]),
    dict(min=1),
    dict(max=1),
    dict(min=2, max=1),
    dict(min=1, max=1),
    dict(min='1', max='2.5'),
    dict(min='a', max=2),
    dict(min=True, max=2),
    dict(min=0, max=float('inf')),
    dict(min=0, max=10**400),
    dict(distribution='q_uniform', min=0, max=1, q=0),
    dict(distribution='q_uniform', min=0, max=1, q=-1),
    dict(distribution='log_uniform_values', min=0, max=1),
    dict(distribution='inv_log_uniform', min=0, max=1),
    dict(distribution='log_uniform', min=0, max=700),
    dict(distribution='log_uniform', min=0, max=701),
    dict(distribution='q_log_uniform', min=0, max=701),
    dict(distribution='log_uniform', min=-1, max=1),
    dict(distribution='int_uniform', min=1.5, max=3),
    dict(distribution='int_uniform', min=1, max=3.5),
    dict(distribution='int_uniform', min=1.0, max=3.0),
    dict(distribution='normal', sigma=0),
    dict(distribution='normal', mu=-1, sigma=1),
    dict(distribution='beta', a=0, b=1),
    dict(distribution='beta', a=1, b=0),
    dict(distribution='beta', b=1),
    dict(distribution='beta', a=1),
    dict(distribution='uniform'),
    dict(distribution='constant'),
    dict(distribution='categorical'),
    dict(distribution='unifrom', min=0, max=1),
    dict(mu=1),
    dict(q=1),
    dict(value=1, values=[2]),
    dict(parameters=3),
    dict(parameters={}),
    dict(parameters=dict(x=dict(value=1), y=dict(parameters=dict(z=dict(min=0, max=1))))),
]


def parsed(d):
    return sweep_space.parse_sweep(d).to_dict()


def test_spaces(request, tmp_path, monkeypatch):
    found = {
        f'axis {k}': answer(lambda: sweep_space.parse_sweep(dict(parameters=dict(x=d))).parameters[0].to_dict())
        for k, d in axes.items()
    }
    found |= {
        f'odd {str(d)[:90]}': answer(
            lambda: [p.to_dict() for p in sweep_space.parse_sweep(dict(parameters=dict(x=d))).parameters]
        )
        for d in odd_axes
    }
    space = sweep_space.parse_sweep(dict(parameters=axes))
    for p in space.parameters:
        found[f'values of {p.name}'] = [
            answer(p.value, u) for u in (0.0, 1e-9, 0.1, 0.25, 0.5, 0.77, 0.999, 1.0 - 1e-12, 1.0)
        ] + [answer(p.discrete), sweep_space._extent(p), answer(sweep_space._axis_values, p)]
    found['choices'] = [
        sweep_space._choice(u, w)
        for w in ([0.5, 0.3, 0.2], [0.0, 1.0], [0.1] * 10)
        for u in (0.0, 0.1, 0.5, 0.5 - 1e-12, 0.8, 0.95, 1.0)
    ]
    found['table'] = [space.table().rows, space.table().caption, sweep_space.Space.from_dict(space.to_dict()) == space]
    base = dict(parameters=dict(x=dict(values=[1, 2]), y=dict(min=0, max=2)))
    sweeps_of = [
        base,
        base | dict(method='grid'),
        base | dict(method='gird'),
        base | dict(metric=dict(name='acc', goal='maximize')),
        base | dict(metric='acc'),
        base | dict(metric=dict(goal='max')),
        base | dict(metric={}),
        base | dict(program='train.py'),
        base | dict(command=['a', 1, 2.5]),
        base | dict(command='a'),
        base | dict(command=['a', None]),
        base | dict(run_cap=5),
        base | dict(run_cap=-1),
        base | dict(run_cap=0),
        base | dict(run_cap=True),
        base | dict(run_cap=1.5),
        base | dict(name='n', description='d', entity=1),
        base | dict(programm='x'),
        {},
        [],
        None,
        dict(parameters={}),
        dict(parameters=3),
        dict(parameters=dict(x=dict(min=0.0, max=1)), method='grid'),
    ]
    for early in (
        {},
        dict(type='hyperband', min_iter=2),
        dict(type='hyperband', max_iter=27, s=2, eta=2, strict=1),
        dict(type='hyperband'),
        dict(type='hyperband', min_iter=1, max_iter=3),
        dict(type='asha', min_iter=2),
        dict(min_iter=2),
        'x',
        dict(type='hyperband', min_iter=0),
        dict(type='hyperband', min_iter=1, eta=1),
        dict(type='hyperband', min_iter=1, eta=1.01),
        dict(type='hyperband', min_iter='3', strict=False),
        dict(type='hyperband', max_iter=9, s=0),
    ):
        sweeps_of.append(base | dict(early_terminate=early))
    found |= {
        f'sweep {i} {str(d)[:60]}': {k: v for k, v in got.items() if v != usual[k]}
        if isinstance(got := answer(parsed, d), dict)
        else got
        for usual in [parsed(base)]
        for i, d in enumerate(sweeps_of)
    }
    deep = lambda n: dict(value=1) if not n else dict(parameters=dict(a=deep(n - 1)))
    found['deep'] = [
        answer(lambda: sweep_space.parse_sweep(dict(parameters=dict(x=deep(n)))).parameters[0].name.count('.'))
        for n in (1, 19, 20, 21, 22)
    ]
    grid = sweep_space.parse_sweep(
        dict(
            method='grid',
            parameters=dict(
                a=dict(values=['x', 'y']),
                b=dict(min=1, max=3),
                c=dict(distribution='q_uniform', min=0, max=1, q=0.5),
                d=dict(value=0),
            ),
        )
    )
    found['grid'] = [len(grid.grid()), grid.grid()[:4], grid.grid()[-1]]
    monkeypatch.setattr(sweep_space.itertools, 'product', lambda *axes: [])
    found['large grids'] = [
        answer(lambda: len(sweep_space.parse_sweep(d).parameters))
        for d in (
            dict(parameters=dict(x=dict(min=10**7, max=10**7 + 3)), method='grid'),
            dict(parameters=dict(x=dict(min=-(10**7), max=10**7)), method='grid'),
            dict(parameters=dict(x=dict(min=0, max=10**6)), method='grid'),
            dict(parameters=dict(x=dict(min=0, max=10**6 - 1)), method='grid'),
            dict(parameters=dict(x=dict(min=0, max=10**6 + 1)), method='grid'),
            dict(parameters=dict(x=dict(min=0, max=999), y=dict(min=0, max=1000)), method='grid'),
        )
    ]
    monkeypatch.undo()
    files = dict(
        good='method: random\nparameters:\n  x: {min: 0, max: 1}\n',
        bad='a: [',
        empty='',
        refers='a: &x [1]\nb: ' + '[' + '*x, ' * 51 + ']',
        few='parameters: {x: &a {value: 1}, y: *a}',
        stars='parameters: {x: {value: "' + '*' * 60 + '"}}',
        large='#' + 'x' * 1_000_000,
        deep='[' * 2000,
    )
    for name, content in files.items():
        (tmp_path / 's.yaml').write_text(content)
        got = answer(lambda: sweep_space.read_sweep(tmp_path / 's.yaml').to_dict()['parameters'])
        found[f'file {name}'] = got.replace(str(tmp_path), '')[:40] if isinstance(got, str) else got
    import yaml

    monkeypatch.setattr(yaml, 'safe_load', lambda text: dict(parameters=dict(x=dict(value=len(text)))))
    for size in (1_000_000, 1_000_001):
        (tmp_path / 's.yaml').write_text('x' * size)
        found[f'file of {size}'] = (
            answer(lambda: sweep_space.read_sweep(tmp_path / 's.yaml').parameters[0].values)
            .__repr__()
            .replace(str(tmp_path), '')
        )
    same_answers(request, 'spaces', found)


def test_commands_of_trials(request, tmp_path, monkeypatch):
    found, params = {}, {'lr': 0.1, 'name': 'a b', 'on': True, 'off': False, 'none': None, 'list': [1]}
    monkeypatch.setenv('FSDL_X', 'value')
    for macro in (
        *sweep_space._macros,
        '${envvar:FSDL_X}',
        'a${envvar:FSDL_X}b',
        '${envvar:FSDL_Y}',
        '${odd}',
        'plain',
        '${',
    ):
        space = sweep_space.parse_sweep(
            dict(program='train.py', command=['x', macro], parameters=dict(a=dict(value=1)))
        )
        got = answer(lambda: sweep_space.command_of(space, params, tmp_path))
        found[macro] = (
            [w.replace(str(tmp_path), '').replace(sys.executable, 'PY') for w in got] if isinstance(got, list) else got
        )
    found['json'] = (tmp_path / 'args.json').read_text()
    space = sweep_space.parse_sweep(dict(program='train.py', parameters=dict(a=dict(value=1))))
    found['usual'] = [w.replace(sys.executable, 'PY') for w in sweep_space.command_of(space, params)]
    found['trial'] = [
        sweep_trials._command(s, f, params, tmp_path, 'py')[:1]
        + sweep_trials._command(s, f, params, tmp_path, 'py')[3:]
        for s, f in ((space, ''), (space, 'm:f'))
    ]
    found['nest'] = [sweep_trials.nest(d) for d in ({}, {'a': 1}, {'a.b': 1, 'a.c.d': 2, 'e': 3})] + [
        answer(sweep_trials.nest, {'a': 1, 'a.b': 2})
    ]
    same_answers(request, 'commands', found)


def rows_of(*rows):
    return [
        dict(number=i, state=s, value=v, params=p, note=n, seconds=None, attempt=1, engine='', owner='')
        for i, (s, v, p, n) in enumerate(rows)
    ]


def test_engines(request, monkeypatch):
    found, early = (
        {},
        [
            dict(min_iter=2),
            dict(min_iter=1.5, eta=2),
            dict(max_iter=27),
            dict(max_iter=27, s=2, eta=3),
            dict(max_iter=3, s=5, eta=2),
            dict(max_iter=10, s=1.9, eta=4),
        ],
    )
    found |= {f'bands {e}': sweep_engines.bands(e) for e in early}
    settings = [dict(min_iter=2), dict(min_iter=2, strict=True), dict(min_iter=1, eta=2), {}, dict(max_iter=9, s=2)]
    r = random.Random(9)
    runs = [[round(r.random(), 2) for _ in range(n)] for n in (1, 2, 3, 4, 6, 8, 9, 18)]
    for i, e in enumerate(settings):
        for goal in ('minimize', 'maximize'):
            found[f'stop {i} {goal}'] = [
                [
                    sweep_engines.should_stop(mine[:n], [o for o in runs if o is not mine], e, goal)
                    for n in range(len(mine) + 1)
                ]
                for mine in runs
            ] + [
                sweep_engines.should_stop([1.0, 1.0], [], e, goal),
                [sweep_engines.should_stop([x] * 9, [[1.0] * 9], e, goal) for x in (0.0, 1.0, 2.0)],
                sweep_engines.should_stop([1.0, 1.0], [[1.0, 1.0]] * 5, e, goal),
            ]
    found['score'] = [sweep_engines._score([3.0, 1.0, 2.0], n, g) for n in (1, 2, 3) for g in ('minimize', 'maximize')]
    random_space = sweep_space.parse_sweep(dict(parameters=axes))
    found['random'] = [
        answer(lambda: sweep_engines.suggest(random_space, [], n, s)[0]) for n, s in ((0, 0), (1, 0), (0, 1))
    ]
    grid = sweep_space.parse_sweep(dict(method='grid', parameters=dict(x=dict(values=[1, 2]))))
    for n in (0, 1, 2, 3):
        found[f'grid {n}'] = answer(sweep_engines.suggest, grid, [], n)
    some = {k: axes[k] for k in ('value', 'values', 'whole', 'even', 'logs', 'bell', 'steps')}
    bayes = sweep_space.parse_sweep(dict(method='bayes', parameters=some))
    found['engine'] = answer(sweep_engines.suggest, bayes, [], 0, 0, 'optunna')
    found['optuna space'] = {
        p.name: [type(d).__name__, {k: v for k, v in vars(d).items() if k in ('low', 'high', 'log', 'choices')}]
        for p in random_space.parameters
        for d in [sweep_engines._optuna_space(p)]
    }
    for p in random_space.parameters:
        x = 1 if p.kind in ('categorical',) else 0 if p.kind == 'constant' else 0.5
        found[f'optuna {p.name}'] = [answer(sweep_engines._from_optuna, p, x)] + [
            answer(sweep_engines._to_optuna, p, v, {p.name: 0.3})
            for v in (3, 'b', 2, 5, 6, 1e-4, 0.1, 0.11, 9e-5, 0.5, 2.0, 2.1, None)
        ]
    whole = dict(value=3, values='b', whole=3, even=1.0, logs=0.01, bell=0.4, steps=3)
    history = rows_of(
        ('finished', 1.5, whole, '{"bell": 0.6, "steps": 0.2}'),
        ('failed', None, whole, 'why'),
        ('finished', None, whole, None),
        ('running', None, whole, '{"bell": 0.6, "steps": 0.2}'),
        ('stopped', 2.0, whole | dict(whole=9), None),
        ('stopped', 2.5, whole, '{"bell": 0.6, "steps": 0.3}'),
        ('finished', 3.0, whole, '{}'),
    )
    told = []

    class Trial:
        create_trial = staticmethod(lambda **kw: kw | dict(distributions=sorted(kw['distributions'])))

    Trial.TrialState = SimpleNamespace(RUNNING='R', COMPLETE='C')
    fake = SimpleNamespace(trial=Trial)
    named = {p.name: 1 for p in bayes.parameters}
    for row in history:
        sweep_engines._tell(
            SimpleNamespace(add_trial=lambda t, n=row['number']: told.append([n, t])), fake, bayes, named, row
        )
    found['told'] = told
    made = []

    def study(**kw):
        made.append(kw)
        return SimpleNamespace(
            add_trial=lambda t: made.append('trial'),
            ask=lambda axes: SimpleNamespace(
                params={'value': 0, 'values': 2, 'whole': 4, 'even': 0.7, 'logs': 0.02, 'bell': 0.5, 'steps': 0.5}
            ),
        )

    fake = SimpleNamespace(
        trial=Trial,
        create_study=study,
        logging=SimpleNamespace(ERROR=1, set_verbosity=lambda n: None),
        samplers=SimpleNamespace(TPESampler=lambda **kw: ['tpe', kw], GPSampler=lambda **kw: ['gp', kw]),
        distributions=__import__('optuna').distributions,
    )
    monkeypatch.setitem(sys.modules, 'optuna', fake)
    found['asked'] = [
        sweep_engines.suggest(bayes, history, 5, 7),
        sweep_engines.engines['optuna-gp'](bayes, [], 1, 2),
        sweep_engines.suggest(
            random_space.replace(parameters=bayes.parameters, goal='maximize', method='bayes'), [], 0
        ),
        made,
    ]
    monkeypatch.undo()
    found['wandb'] = sweep_engines._as_wandb(random_space)
    found['wandb runs'] = sweep_engines._wandb_runs(
        rows_of(
            ('finished', 1.0, {'a': 1}, ''),
            ('waiting', None, {}, ''),
            ('stopped', 2.0, {}, ''),
            ('failed', None, {}, ''),
            ('running', None, {}, ''),
        )
    )
    calls = []
    for got in ({'x': 1}, None):
        monkeypatch.setattr(
            sweep_engines, 'run_in', lambda *a: calls.append([a[0], a[2]['seed'] if 'seed' in a[2] else 0]) or got
        )
        found[f'side {got}'] = [
            answer(
                sweep_engines.suggest, sweep_space.parse_sweep(dict(parameters=dict(x=dict(min=0, max=1)))), [], 4, 3, e
            )
            for e in ('wandb', 'ray')
        ]
    found['side'] = calls
    for method in ('random', 'bayes'):
        for name, d in axes.items():
            found[f'ray {method} {name}'] = answer(
                sweep_engines._ray_has, sweep_space.parse_sweep(dict(method=method, parameters=dict(x=d))), ('normal',)
            )
    monkeypatch.undo()

    class Tune:
        def __getattr__(self, k):
            return lambda *a: [k, *a]

    can = sweep_space.parse_sweep(
        dict(parameters={k: axes[k] for k in ('value', 'values', 'whole', 'even', 'steps', 'logs', 'bells')})
    )
    found['ray axes'] = [sweep_engines._ray_axes(Tune(), can), answer(sweep_engines._ray_axes, Tune(), random_space)]
    same_answers(request, 'engines', found)


# ---- what trials leave behind, and the books ----


def a_trial(place, log=None, output=None, **files):
    "A folder of a trial with a log, what it printed, and other files"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if log is not None:
        (place / 'log.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in log))
    if output is not None:
        (place / 'output.txt').write_text(output)
    for name, content in files.items():
        (place / name.replace('_', '.')).write_text(content if isinstance(content, str) else json.dumps(content))
    return place


def test_how_trials_end(request, tmp_path, monkeypatch):
    found, place = {}, tmp_path / 'trials' / '0-1'
    values = [
        dict(started=5.0),
        dict(t=6.0, m=dict(loss=1.5)),
        dict(t=7.0, m=dict(acc=2)),
        dict(t=8.5, m=dict(loss=0.5)),
    ]
    logs = dict(
        none=None,
        empty=[],
        some=values,
        ended=[*values, dict(t=9.0, end='finished')],
        failed=[*values, dict(t=9.0, end='failed')],
        nan=[*values, dict(t=9.0, m=dict(loss='NaN'))],
        texts=[dict(t='x'), dict(t=3.0, m={})],
        other=[dict(t=1.0, m=dict(acc=1)), dict(t=2.0, end='finished')],
    )
    exits = dict(
        none={},
        good=dict(exit_json=dict(code=0, seconds=3.0)),
        bad=dict(exit_json=dict(code=2, seconds=3.0)),
        killed=dict(exit_json=dict(code=-9, seconds=3.0)),
        why=dict(exit_json=dict(code=1, seconds=4.0, reason='because')),
    )
    outputs = dict(
        none=None,
        json='a\n{"loss": 7}\nlast',
        other='{"acc": 1}\n[1]\n{"loss": "x"}',
        many='{"loss": 1}\n' + 'x' * 65_536,
        some='{"loss": 2}\n' + 'x' * 65_524,
        two='{"loss": 1}\n{"loss": 3}\n',
    )
    for l, e, o in itertools.product(logs, exits, outputs):
        if o not in ('none', 'json') and (l, e) not in (('none', 'good'), ('other', 'good')):
            continue
        a_trial(place, logs[l], outputs[o], **exits[e])
        found[f'{l} {e} {o}'] = [sweep_trials.verdict(place, 'loss', a, n) for a, n in ((1, 0), (1, 1), (2, 1))]
    for e in ('none', 'killed', 'good'):
        a_trial(place, logs['some'], None, stop='', **exits[e])
        found[f'stopped {e}'] = sweep_trials.verdict(place, 'loss', 1, 2)
    a_trial(place, logs['nan'])
    found['history'] = [
        sweep_trials.history_of(place, 'loss'),
        sweep_trials.history_of(place, 'x'),
        sweep_trials.history_of(tmp_path, 'loss'),
        sweep_trials._end_of(place),
        sweep_trials._logged_seconds(place),
    ]
    found['paths'] = [sweep_trials.trial_folder('f', 3, 2).as_posix()]
    first = sweep_trials.lock_trial(tmp_path, 5, 2)
    found['locks'] = [
        first is not None,
        sweep_trials.lock_trial(tmp_path, 5, 2),
        sorted(p.name for p in (tmp_path / 'trials').iterdir()),
    ]
    os.close(first)
    monkeypatch.setattr(sweep_trials.sys, 'path', ['', '/usr', '/no/where', '/usr/lib/site-packages', str(tmp_path)])
    found['library'] = sweep_trials.library_paths().replace(str(tmp_path), 'TMP').split(os.pathsep)
    found['reasons'] = [
        sweep_trials._why_ended(d, died)
        for d in (None, dict(code=0), dict(code=3), dict(code=0, reason='r'), dict(code=-9, reason='r'))
        for died in (True, False)
    ] + [sweep_trials._why_no_result(v, 'm') for v in (None, 0.0, float('nan'), float('inf'))]
    monkeypatch.undo()
    started = []
    monkeypatch.setattr(
        sweep_trials,
        '_Process',
        lambda command, **kw: (
            started.append(
                [
                    command[:3],
                    {k: v for k, v in kw.items() if k in ('pass_fds', 'start_new_session')},
                    json.loads(command[4])['lock'],
                    kw['env']['PYTHONPATH'],
                    Path(kw['env']['FSDL_RUN_FOLDER']).name,
                    kw['stdin'],
                ]
            )
            or SimpleNamespace()
        ),
    )
    monkeypatch.setenv('PYTHONPATH', 'own')
    space = sweep_space.parse_sweep(dict(program='t.py', parameters=dict(a=dict(value=1))))
    found['started'] = [
        sweep_trials.start_process(space, tmp_path, f, 4, 2, {'a': 1}, 7, 'py', paths).trial
        for f, paths in (('', 'p'), ('m:f', 'p'))
    ] + [[[*s[0][:1], s[0][1], *s[1:]] for s in started]]
    same_answers(request, 'trials', cleaned(found, tmp_path))


def cleaned(value, place):
    "Without the names of temporary folders"
    return json.loads(json.dumps(plain(value)).replace(str(place), 'TMP'))


class Place(Fake):
    "A target of which the test says how its jobs are"

    state, submitted = 'running', []

    def _submit(self, job, token):
        if isinstance(self.state, Exception):
            raise self.state
        self.submitted.append([job.name, job.command[:2], sorted(job.env), job.retries, job.on_preempt])
        return Handle('local', 'h1', token)

    def _status(self, handle):
        if isinstance(self.state, Exception):
            raise self.state
        return Status(self.state, 'w', 'detail')

    def _logs(self, handle):
        return 'printed'

    def _cancel(self, handle):
        self.submitted.append('cancelled')


def test_trials_as_jobs(request, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(sweep_trials, 'target', lambda name: Place())
    monkeypatch.setattr(sweep_trials, 'places', dict(other='x:Other', place='x:Place'))
    clock = Clock(monkeypatch, sweep_trials)
    space = sweep_space.parse_sweep(dict(parameters=dict(a=dict(value=1))))
    job = small.replace(env={'A': 'b'}, image='', retries=3)
    for i, (s, f, j) in enumerate(
        [
            (space, '', job),
            (space.replace(program='t.py'), '', job),
            (space, 'm:f', job),
            (space, 'm:f', job.replace(image='i')),
            (space.replace(command=['c', '${args}']), '', job),
        ]
    ):
        Place.state, Place.submitted = 'running', []
        trial = sweep_trials.start_job(j, Place(python='py'), s, tmp_path, f, i, 1, {'a': 1})
        record = json.loads((trial.place / 'job.json').read_text())
        found[f'start {i}'] = [
            trial.trial,
            Place.submitted,
            record['target'],
            record['id'],
            record['since'],
            record['token'][:6],
            len(record['token']),
            trial.poll(),
            trial.stop(),
            Place.submitted[-1],
        ]
    Place.state, Place.submitted = TargetError('away'), []
    trial = sweep_trials.start_job(job, Place(), space, tmp_path, '', 9, 1, {'a': 1})
    found['away'] = [json.loads((trial.place / 'job.json').read_text())['id'], list(Place.submitted), trial.stop()]
    for state in (*targets.states, TargetError('away'), TimeoutError('late')):
        for log in (
            None,
            [dict(started=5.0), dict(t=7.0, end='finished')],
            [dict(started=5.0), dict(t=7.0, end='failed')],
            [dict(started=5.0, t=6.0)],
        ):
            for silent in (0, 600, 601):
                if silent and not isinstance(state, TargetError):
                    continue
                for known in ('h1', ''):
                    Place.state = state
                    place = a_trial(
                        tmp_path / 'trials' / '1-1',
                        log,
                        None,
                        job_json=dict(
                            target='place',
                            options=Place().to_dict(),
                            job=job.to_dict(),
                            token='t',
                            id=known,
                            since=1000.0,
                        ),
                    )
                    if log:
                        os.utime(place / 'log.jsonl', (1000, 1000))
                    clock.now = 1000.0 + silent
                    with warnings.catch_warnings(record=True) as said:
                        warnings.simplefilter('always')
                        over = sweep_trials.job_ended(place)
                    if known or isinstance(state, Exception):
                        found[f'{state} {log and log[-1]} {silent} {known}'] = [
                            over,
                            json.loads((place / 'exit.json').read_text()) if (place / 'exit.json').exists() else None,
                            (place / 'output.txt').exists(),
                            [str(w.message) for w in said],
                            sweep_trials.job_ended(place) if over else None,
                        ]
    found['environment'] = [
        sorted(sweep_trials._job_environment(j, f, 'p'))
        for j in (job, job.replace(image='i'), job.replace(env={'PYTHONPATH': 'x'}))
        for f in ('', 'm:f')
    ] + [sweep_trials._job_environment(job.replace(env={'PYTHONPATH': 'x'}), 'm:f', 'p')['PYTHONPATH']]
    same_answers(request, 'jobs', cleaned(found, tmp_path))


def test_budgets(request):
    found, Budget = {}, sweeps.Budget
    for text in (
        '50',
        '50 trials',
        '1 run',
        '0',
        '20usd',
        '$20',
        '2h',
        '90',
        '1.5h',
        '-1',
        'x',
        '3 dollars',
        '€5',
        '0usd',
        '0s',
        7,
    ):
        found[f'parse {text}'] = answer(lambda: Budget.parse(text, '$2.50').to_dict())
    found['price'] = [
        answer(lambda: Budget(dollars=3).to_dict()),
        answer(lambda: Budget.parse('3usd').to_dict()),
        Budget(dollars=1, price=2).to_dict(),
    ]
    rows = lambda *pairs: [dict(state=s, seconds=t) for s, t in pairs]
    books = [
        [],
        rows(('finished', 10.0)),
        rows(('finished', 10.0), ('failed', 30.0), ('stopped', 20.0), ('running', None)),
        rows(('running', None)),
        rows(('waiting', 50.0), ('finished', 5.0)),
        rows(('finished', 0.0)),
    ]
    for i, b in enumerate(books):
        for running in (0, 1, 2):
            found[f'left {i} {running}'] = [
                Budget(**kw).left(b, running)
                for kw in (
                    dict(),
                    dict(seconds=10.0),
                    dict(seconds=20.0),
                    dict(seconds=30.0),
                    dict(seconds=80.0),
                    dict(seconds=120.0),
                    dict(dollars=0.01, price=3.6),
                    dict(dollars=0.02, price=3.6),
                    dict(dollars=0.08, price=3.6),
                    dict(dollars=0.1, price=3.6),
                    dict(trials=1),
                )
            ]
    found['limit'] = [Budget(trials=t).limit(SimpleNamespace(cap=c)) for t in (0, 3, 9) for c in (0, 5)]
    same_answers(request, 'budgets', found)


def a_sweep(folder, space, *rows):
    "Books with some rows"
    shutil.rmtree(folder, ignore_errors=True)
    sweeps._open_books(folder, space)
    with sweeps._transaction(folder) as db:
        for i, (state, value, params, *more) in enumerate(rows):
            given = dict(zip(('seconds', 'attempt', 'owner', 'note'), more))
            db.execute(
                'insert into trials values (?, ?, ?, ?, ?, ?, ?, ?, ?)',
                (
                    i,
                    json.dumps(params),
                    state,
                    value,
                    given.get('seconds'),
                    given.get('attempt', 1),
                    'e',
                    given.get('note'),
                    given.get('owner'),
                ),
            )
    return folder


def entered(folder):
    return [
        [r[k] for k in ('number', 'state', 'value', 'seconds', 'attempt', 'engine', 'note', 'params')]
        for r in sweeps.books(folder)
    ]


def test_books(request, tmp_path, monkeypatch, books_in_memory):
    found, folder = {}, tmp_path / 's'
    space = sweep_space.parse_sweep(
        dict(
            metric=dict(name='loss'),
            parameters=dict(a=dict(min=0.0, max=1), b=dict(values=['x', 'y']), c=dict(value=1)),
            early_terminate=dict(type='hyperband', min_iter=1),
        )
    )
    r, better = random.Random(10), space.replace(goal='maximize')
    finished = [
        ('finished', round(r.random(), 3), dict(a=10 ** r.uniform(-3, 0), b=r.choice('xy'), c=1), float(i))
        for i in range(12)
    ]
    finished += [
        ('failed', None, dict(a=1.0, b='x', c=1), 3.0, 1, None, 'why'),
        ('waiting', None, None, None, 2),
        ('running', None, dict(a=0.5, b='y', c=1)),
        ('finished', None, dict(a=0.1, b='x', c=1)),
    ]
    for name, s in (('min', space), ('max', better)):
        a_sweep(folder, s, *finished)
        found[f'best {name}'] = [
            sweep_results.best(folder, 200),
            sweep_results.best(folder, 400, 3),
            [len(sweep_results._scored(folder)[0]), *sweep_results._scored(folder)[1:]],
        ]
    found['connections'] = [json.loads(c) for c in sorted({json.dumps(c) for c in books_in_memory})]
    found['trials'] = [sweeps.trials(folder).rows[i] for i in (0, 12, 13, 14)] + [sweeps.trials(folder).caption]
    found['other'] = [
        answer(sweeps._open_books, folder, s).replace(str(tmp_path), '')
        if isinstance(answer(sweeps._open_books, folder, s), str)
        else None
        for s in (better, space, better.replace(cap=5), better.replace(parameters=better.parameters[:1]))
    ]
    found['nothing'] = [
        answer(f, a_sweep(tmp_path / 'e', space)).replace(str(tmp_path), '')
        for f in (sweep_results.best, sweep_results.importance)
    ] + [answer(sweeps.books, tmp_path / 'no').replace(str(tmp_path), '')]
    found['importance'] = [
        sorted(r['parameter'] for r in sweep_results.importance(folder).rows),
        round(sum(r['importance'] for r in sweep_results.importance(folder).rows), 6),
        answer(sweep_results.importance, a_sweep(tmp_path / 'e', space, *finished[:7])),
        len(sweep_results.importance(a_sweep(tmp_path / 'e', space, *finished[:8])).rows),
    ]
    asked = []
    fake = SimpleNamespace(
        create_study=lambda: SimpleNamespace(add_trial=asked.append),
        trial=SimpleNamespace(
            create_trial=lambda **kw: {k: v if k != 'distributions' else sorted(v) for k, v in kw.items()}
        ),
    )
    sweep_results._study_of(fake, sweep_results._scored(folder)[0][:2], -1, ['a', 'b'])
    found['study'] = asked
    for values in (
        [1, 2, 5],
        [1.0, 50.0],
        [1.0, 100.0],
        [1.0, 101.0],
        [0.0, 500.0],
        ['b', 'a', 'b'],
        [True, False],
        [[1], [2]] and ['x', 3],
        [-1.0, 5.0],
    ):
        d = sweep_results._axis_of(values)
        found[f'axis {values}'] = [
            type(d).__name__,
            {k: v for k, v in vars(d).items() if k in ('low', 'high', 'log', 'choices')},
            sweep_results._unit(values),
            sweep_results._are_numbers(values),
            sweep_results._ranks(values) if sweep_results._are_numbers(values) else None,
        ]
    found['units'] = [
        sweep_results._unit([3.0, 3.0]),
        sweep_results._ranks([5.0]),
        sweep_results._ranks([3.0, 1.0, 2.0]),
        sweep_results._unit(['a']),
        sweep_results._unit(['c', 'a', 'b', 'a']),
        sweep_results._varied([]),
        sweep_results._varied(sweep_results._scored(folder)[0]),
    ]
    found['interval'] = [
        sweep_results._interval([float(i) for i in range(n)], draws, random.Random(1))
        for n, draws in ((1, 40), (10, 40), (10, 1000))
    ]
    # claims, entries, orphans
    a_sweep(folder, space, *finished[:2], ('waiting', None, dict(a=1), 5.0, 2), ('waiting', None, None, None, 1))
    found['claims'] = [(c := sweeps._claim(folder, total, 'me')) and [*c[:2], c[3]] for total in (4, 4, 4, 5, 5, 0)] + [
        entered(folder),
        [r['owner'] for r in sweeps.books(folder)],
    ]
    for before, state in itertools.product(
        ('running', 'asking'),
        (('finished', 1.5, 3.0, None), ('waiting', None, 2.0, None), ('failed', None, None, 'why')),
    ):
        a_sweep(folder, space, (before, None, dict(a=1), 10.0, 1, 'me', 'old'))
        monkeypatch.setattr(sweeps, 'verdict', lambda place, metric, attempt, retries: state)
        row = sweeps.books(folder)[0]
        sweeps._enter(space, folder, row, 2)
        sweeps._enter(space, folder, row, 2)
        found[f'enter {before} {state}'] = entered(folder)
        for ended in (True, False):
            for job in (True, False)[before == 'asking' :]:
                a_sweep(
                    folder,
                    space,
                    (before, None, dict(a=1), 10.0),
                    ('finished', 1.0, dict(a=1)),
                    ('waiting', None, None),
                    (before, None, dict(a=2), None, 2),
                )
                held = sweeps.lock_trial(folder, 3, 2)
                if job:
                    a_trial(folder / 'trials' / '0-1', job_json='{}')
                monkeypatch.setattr(sweeps, 'job_ended', lambda place: ended)
                sweeps._settle(space, folder, 2)
                os.close(held)
                found[f'settle {before} {state[0]} {ended} {job}'] = [e[1] for e in entered(folder)]
    monkeypatch.undo()
    running = [
        dict(state=s, owner=o)
        for s, o in (
            ('running', 'gone'),
            ('running', 'gone'),
            ('running', 'me'),
            ('running', None),
            ('finished', 'gone'),
            ('running', 'there'),
            ('running', '../x'),
        )
    ]
    a_sweep(folder, space)
    held = sweeps.lock_file(folder / 'controllers' / 'there.lock')
    found['orphans'] = [
        sweeps._orphans(folder, running, 'me'),
        sweeps._orphans(folder, running, 'other'),
        sweeps._orphans(folder, [], 'me'),
        sweeps._is_gone(folder, 'there'),
        sweeps._is_gone(folder, 'gone'),
    ]
    os.close(held)
    with pytest.raises(KeyError), sweeps._transaction(folder) as db:
        db.execute("insert into trials(number, params, state) values (0, 'null', 'asking')")
        raise KeyError('x')
    found['rolled back'] = entered(folder)
    # what comes next
    started = []
    begin = lambda *trial: started.append([*trial[:3], trial[3] is not None]) or 'process'
    for method, total in (('random', 2), ('grid', 0)):
        s = (
            space.replace(method=method, parameters=[p for p in space.parameters if p.name == 'b'])
            if method == 'grid'
            else space
        )
        a_sweep(folder, s)
        found[f'next {method}'] = [sweeps._start_next(s, folder, begin, total, 0, 'optuna', 'me') for _ in range(4)] + [
            [len(e) for e in entered(folder)],
            [e[1:2] + e[5:7] for e in entered(folder)],
            [s[:2] for s in started],
        ]
        started.clear()
    a_sweep(
        folder,
        space,
        ('finished', 1.0, dict(a=1)),
        ('asking', None, None),
        ('running', None, dict(a=2)),
        ('finished', 1.0, dict(a=3)),
    )
    found['earlier'] = [[r['number'] for r in sweeps._earlier(folder, n)] for n in (0, 2, 3, 9)]
    # early stops
    for early in (True, False):
        s = space if early else space.replace(early={})
        a_sweep(folder, s, *[('running', None, dict(a=1))] * 4, ('waiting', None, None))
        for i in range(4):
            a_trial(folder / 'trials' / f'{i}-1', [dict(m=dict(loss=i))])
        mine = [
            SimpleNamespace(
                trial=(i, 1), stop=lambda i=i: started.append(i), poll=lambda: None, end=lambda i=i: started.append(-i)
            )
            for i in (1, 3)
        ]
        sweeps._stop_hopeless(s, folder, mine)
        sweeps._stop_hopeless(s, folder, mine)
        found[f'hopeless {early}'] = [
            started[:],
            sorted(p.parent.name for p in (folder / 'trials').glob('*/stop')),
            sorted(map(list, sweeps._histories(s, folder))),
        ]
        sweeps._end_all(mine)
    found['ended'], reported = started, []
    for seen, rows in (
        (None, []),
        (1, [dict(state='finished')]),
        (0, [dict(state='finished'), dict(state='running'), dict(state='failed')]),
    ):
        reported.append(
            [sweeps._tell_ended(rows, seen, lambda r: reported.append(len(r))), sweeps._tell_ended(rows, seen, None)]
        )
    found['reported'] = reported
    given = [None, 0, '5', '2h', 7, sweeps.Budget(seconds=3.0)]
    found['budgets'] = [answer(lambda: sweeps._budget_of(g, space.replace(cap=4)).to_dict()) for g in given]
    found['refused'] = [
        answer(sweeps.sweep, s, folder, f, budget=b, engine=e, job=j, where=w).replace(str(tmp_path), '')
        for s, f, b, e, j, w in (
            (space, '', 3, 'optuna', None, 'local'),
            (space, 'm:f', None, 'optuna', None, 'local'),
            (space, 'm:f', 3, 'optunna', None, 'local'),
            (space, 'm:f', 3, 'optuna', small.replace(secrets=hidden[2:3], image=''), 'local'),
            (space, 'm:f', 3, 'optuna', small, 'lcoal'),
        )
    ]
    same_answers(request, 'books', cleaned(found, tmp_path))


def test_controllers(request, tmp_path, monkeypatch):
    found = {}
    space = sweep_space.parse_sweep(
        dict(program='t.py', metric=dict(name='loss'), parameters=dict(a=dict(min=0.0, max=1)))
    )
    for workers, budget, fails, job in (
        (1, 3, 0, None),
        (2, 5, 0, None),
        (2, 3, 1, None),
        (3, sweeps.Budget(seconds=2.5), 0, None),
        (2, 2, 0, small.replace(image='')),
    ):
        slept, log, left = [], [], [fails]

        def start(*trial, space=None):
            number, attempt = trial[:2]
            log.append([number, attempt])
            place = tmp_path / 'c' / 'trials' / f'{number}-{attempt}'
            if left[0] and number == 1:
                left[0] -= 1
                a_trial(place, exit_json=dict(code=-9, seconds=1.0))
            else:
                a_trial(place, [dict(m=dict(loss=number))], exit_json=dict(code=0, seconds=1.0))
            polls = [None, 0]
            return SimpleNamespace(
                trial=(number, attempt),
                poll=lambda: polls.pop(0) if len(polls) > 1 else 0,
                stop=lambda: None,
                end=lambda: log.append('end'),
            )

        monkeypatch.setattr(sweeps, 'start_process', lambda space, folder, function, *trial: start(*trial))
        monkeypatch.setattr(sweeps, 'start_job', lambda job, where, space, folder, function, *trial: start(*trial))
        monkeypatch.setattr(sweeps, 'time', SimpleNamespace(sleep=slept.append))
        shutil.rmtree(tmp_path / 'c', ignore_errors=True)
        reports = []
        table = sweeps.sweep(
            space,
            tmp_path / 'c',
            workers=workers,
            budget=budget,
            report=lambda rows: reports.append(len(rows)),
            job=job,
        )
        found[f'{workers} {budget} {fails} {job is None}'] = [
            log,
            slept,
            reports,
            [r['state'] for r in table.rows],
            [r['attempt'] for r in table.rows],
        ]

    def broken(*a):
        raise KeyError('stop')

    monkeypatch.setattr(
        sweeps,
        '_Controller',
        lambda *a: SimpleNamespace(
            me='m', mine=[SimpleNamespace(end=lambda: found.setdefault('ends', True))], run=broken
        ),
    )
    found['broken'] = answer(sweeps.sweep, space, tmp_path / 'c', budget=3)
    waited = []
    monkeypatch.setattr(sweeps, '_Controller', lambda *a: SimpleNamespace(me='m', mine=[], run=waited.append))
    for poll, job in ((None, None), (0, None), (3.0, None), (None, small.replace(image=''))):
        sweeps.sweep(space, tmp_path / 'c', budget=3, poll=poll, job=job)
    found['polls'] = waited
    same_answers(request, 'controllers', cleaned(found, tmp_path))


def test_sweeps_under_ray(request, tmp_path, monkeypatch):
    found, folder = {}, tmp_path / 's'
    space = sweep_space.parse_sweep(
        dict(metric=dict(name='loss'), parameters=dict(a=dict(min=0.0, max=1), c=dict(value=7)))
    )
    grid = sweep_space.parse_sweep(dict(method='grid', parameters=dict(a=dict(values=[1, 2, 3]), c=dict(value=7))))
    taken = [dict(number=n) for n in (0, 2)]
    found['open'] = [
        sweep_ray.open_points(s, rows, total) for s in (space, grid) for rows in ([], taken) for total in (0, 2, 5)
    ]
    found['plain'] = [sweep_ray._plain(v) for v in (1, 'x', __import__('numpy').float64(2.5))]
    found['goal'] = [sweep_ray._goal(s) for s in (space, space.replace(goal='maximize'))]
    found['look'] = [
        sweep_ray._first_look(e, eta)
        for e in (dict(min_iter=2.9), dict(min_iter=0.5), dict(max_iter=27), dict(max_iter=27, s=2), dict(max_iter=2))
        for eta in (2, 3)
    ]
    found['total'] = [
        answer(sweep_ray._checked_total, s, sweeps.Budget(trials=t))
        for s in (
            space,
            grid,
            space.replace(method='bayes'),
            space.replace(parameters=[sweep_space.Parameter('n', 'normal')]),
            space.replace(method='bayes', parameters=[sweep_space.Parameter('n', 'normal')]),
        )
        for t in (0, 4)
    ]
    made = []

    class Made:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, k):
            if k.startswith('__'):
                raise AttributeError(k)
            return Made(k)

        def __call__(self, *a, **kw):
            made.append([self.name, *map(plain_of, a), {k: plain_of(v) for k, v in kw.items()}])
            return Made(f'{self.name}()')

    plain_of = lambda v: (
        v.name
        if isinstance(v, Made)
        else {k: plain_of(x) for k, x in v.items()}
        if isinstance(v, dict)
        else v
        if isinstance(v, (int, float, str, bool, list, type(None)))
        else type(v).__name__
    )
    tune = Made('tune')
    tune.Trainable = object
    for name in ('ray', 'ray.tune', 'ray.tune.schedulers', 'ray.tune.search', 'ray.tune.search.optuna'):
        monkeypatch.setitem(sys.modules, name, Made(name))
    rows = [
        dict(state=s, value=v, params=dict(a=1))
        for s, v in (('finished', 1.0), ('failed', None), ('finished', None), ('stopped', 2.0))
    ]
    call = dict(
        numbers=[0, 1, 5],
        rows=rows,
        seed=3,
        workers=2,
        temporary='T',
        owner='o',
        folder=str(folder),
        space=space.to_dict(),
        cwd=os.getcwd(),
        budget={},
        python='py',
        paths='p',
        function='m:f',
        retries=1,
    )
    for i, s in enumerate([space, grid, space.replace(method='bayes'), space.replace(early=dict(min_iter=4, eta=2))]):
        made.clear()
        axes, how = sweep_ray._searcher(tune, s, call)
        found[f'search {i}'] = [
            plain_of(axes) if not isinstance(axes, dict) else {k: plain_of(v) for k, v in axes.items()},
            {k: plain_of(v) for k, v in how.items()},
            plain_of(sweep_ray._asha(tune, s)),
            list(made),
        ]
    made.clear()
    sweep_ray._optuna_search(space, call | dict(rows=[]))
    sweep_ray._tuner(tune, space, call)
    found['tuner'] = list(made)
    watched = SimpleNamespace(next_value=lambda: values.pop(0), close=lambda: values.append('closed'))
    values, told = [1.5, None], []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sweep_ray, '_WatchedTrial', lambda call, params: told.append(params) or watched)
        trial = sweep_ray._trainable(tune, call)()
        trial.setup(dict(a=__import__('numpy').float64(0.5), b='x'))
        found['trainable'] = [trial.step(), trial.step(), trial.cleanup(), values, told]
    sweeps._open_books(folder, space)
    for errors in ([], ['e' * 2100]):
        made.clear()
        monkeypatch.setattr(sweep_ray, '_tuner', lambda *a: SimpleNamespace(fit=lambda: SimpleNamespace(errors=errors)))
        found[f'drive {len(errors)}'] = [
            answer(sweep_ray._drive, call),
            list(made),
            (folder / 'controllers' / 'o.lock').exists(),
        ]
    monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(tune=SimpleNamespace()))

    class Process:
        def __init__(self, number):
            self.trial, self.polls = (number, 1), [None, None, 0]

        def poll(self):
            return self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]

        def stop(self):
            seen.append('stop')

        def wait(self):
            seen.append('wait')

    seen = []
    monkeypatch.setattr(
        sweep_ray,
        'start_process',
        lambda space, where, function, number, attempt, params, lock, **kw: (
            seen.append([number, attempt, params, kw])
            or (folder / 'trials' / f'{number}-{attempt}').mkdir(exist_ok=True)
            or Process(number)
        ),
    )
    monkeypatch.setattr(sweep_ray, '_settle', lambda space, folder, retries: seen.append(['settle', retries]))
    clock = Clock(monkeypatch, sweep_ray)
    a_sweep(folder, space, ('finished', 1.0, dict(a=1)))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    watched = sweep_ray._WatchedTrial(call, dict(a=0.5))
    found['watched'] = [
        watched.place.name,
        os.environ.get('CUDA_VISIBLE_DEVICES'),
        [e[:3] + e[5:] for e in entered(folder)],
        seen[:],
        sweep_ray._running(folder),
    ]
    a_trial(watched.place, [dict(m=dict(loss=v)) for v in (3, 2)])
    found['values'] = [watched.next_value(0.2) for _ in range(4)] + [clock.slept, watched.told]
    watched.process.polls = [None]
    found['closed'] = [watched.close(), (watched.place / 'stop').exists(), seen[1:]]
    seen.clear()
    watched.process.polls = [0]
    found['closed again'] = [watched.close(), seen[:]]
    a_sweep(folder, grid, ('finished', 1.0, dict(a=1, c=7)), ('running', 1.0, dict(a=1, c=7)))
    for number in (0, 1, 2, 2):
        found[f'grid {number} {len(sweeps.books(folder))}'] = (
            w := sweep_ray._WatchedTrial(call | dict(space=grid.to_dict()), dict(_number=number))
        ).process and [w.process.trial, entered(folder)[-1][-1], w.close()]
    none = (
        sweep_ray._WatchedTrial(call | dict(budget=dict(seconds=1.0)), dict(a=1.0))
        if a_sweep(folder, space, ('finished', 1.0, dict(a=1), 5.0))
        else None
    )
    seen.clear()
    found['spent'] = [none.process, none.next_value(), none.close(), seen]
    asked = []
    monkeypatch.setattr(
        sweep_ray,
        'run_in',
        lambda *a, **kw: asked.append(
            [
                a[0],
                a[2]['numbers'],
                a[2]['workers'],
                a[2]['retries'],
                len(a[2]['owner']),
                len(a[2]['rows']),
                sorted(a[2]),
                a[3],
                sorted(kw),
            ]
        ),
    )
    monkeypatch.setattr(
        sweep_ray, 'sweep', lambda space, folder, **kw: asked.append(['sweep', kw['budget'].trials, sorted(kw)])
    )
    for states in ([], ['finished', 'failed', 'stopped'], ['finished', 'running'], ['finished'] * 4):
        asked.clear()
        a_sweep(folder, space, *[(s, 1.0, dict(a=1)) for s in states])
        found[f'tuned {states}'] = [
            len(sweep_ray.tune_on_ray(space, folder, 'm:f', budget=sweeps.Budget(trials=4), timeout=9).rows),
            list(asked),
        ]
    found['refused'] = answer(sweep_ray.tune_on_ray, space, folder)
    same_answers(request, 'ray_tune', cleaned(found, tmp_path))


# ---- a cluster of SLURM on this machine, without SLURM ----


def test_the_parts_of_a_cluster(request, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(slurm_cluster.tempfile, 'mkdtemp', lambda prefix: str(tmp_path / 'c'))
    for i, args in enumerate([(), ('off', 5), ('cancel', 3, '02:00')]):
        shutil.rmtree(tmp_path / 'c', ignore_errors=True)
        monkeypatch.setattr(slurm_cluster, 'free_ports', lambda n: [100 + i for i in range(n)])
        monkeypatch.setattr(slurm_cluster.secrets, 'randbelow', lambda n: n - 1)
        c = slurm_cluster.SlurmCluster(*args)
        found[f'cluster {i}'] = [
            (c.root / 'slurm.conf').read_text() if not i else (c.root / 'slurm.conf').read_text().splitlines()[-7:],
            sorted(p.relative_to(c.root).as_posix() for p in c.root.rglob('*')),
            oct(c.root.stat().st_mode),
            oct((c.root / 'run').stat().st_mode),
            c.ports,
        ]
    log = c.root / 'log' / 'slurmctld.log'
    found['tail'] = [c.tail(), log.write_text('\n'.join(map(str, range(30)))), c.tail(), c.tail(2)]
    found['call'] = [
        c.call('sh', '-c', 'echo $SLURM_CONF').replace(str(tmp_path), ''),
        answer(c.call, 'sh', '-c', 'echo no >&2; exit 1'),
    ]
    clock = Clock(monkeypatch, slurm_cluster)
    outcomes = [False, RuntimeError('not yet'), True]

    def true():
        said = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(said, Exception):
            raise said
        return said

    found['until'] = [c.until(true), clock.slept[:]]
    outcomes[:] = [False]
    clock.slept.clear()
    found['never'] = [answer(c.until, true, 1, 0.25)[-60:], clock.slept]
    ran = []
    monkeypatch.setattr(slurm_cluster, '_which', lambda p: f'/bin/{p}')
    monkeypatch.setattr(
        slurm_cluster.subprocess,
        'run',
        lambda args, **kw: ran.append([args, kw['timeout'], kw['check'], kw['env'] is c.env]),
    )
    monkeypatch.setattr(
        c,
        'until',
        lambda true, timeout: ran.append(
            [
                'until',
                timeout,
                [
                    monkeypatch.setattr(c, 'call', lambda *a: said) or true()
                    for said in ('idle\nidle\n', 'idle\n', 'idle down')
                ],
            ]
        ),
    )
    (c.root / 'run' / 'slurmd.127.0.0.2.pid').write_text('7')
    found['start'] = [
        c.start() is c,
        ran,
        (c.root / 'run' / 'slurmd.127.0.0.2.pid').exists(),
        len((c.root / 'munge.key').read_bytes()),
        oct((c.root / 'munge.key').stat().st_mode),
    ]
    (c.root / 'run' / 'slurmd.127.0.0.2.pid').write_text('7')
    killed, me = [], os.getpid()
    monkeypatch.setattr(c, 'left', lambda: [7, 8, 9, 10, me])
    monkeypatch.setattr(
        slurm_cluster, '_environ', lambda p: {8: 'SLURMD_NODENAME=127.0.0.2', 9: 'SLURMD_NODENAME=127.0.0.3'}.get(p, '')
    )
    monkeypatch.setattr(slurm_cluster, '_parent', lambda p: p + 100)
    monkeypatch.setattr(slurm_cluster, '_words', lambda p: 'slurmstepd' if p == 108 else '')
    monkeypatch.setattr(slurm_cluster.os, 'kill', lambda p, s: killed.append([p, int(s)]))
    found['kill'] = [c.kill_node('127.0.0.2'), killed[:]]
    killed.clear()
    alive = [[7, me, os.getppid()], [7], [7], [7, me], [7]]
    monkeypatch.setattr(c, 'left', lambda: alive.pop(0) if len(alive) > 1 else alive[0])
    clock.slept.clear()
    remove, removed = shutil.rmtree, []
    monkeypatch.setattr(slurm_cluster.shutil, 'rmtree', lambda place, **kw: removed.append(kw) or remove(place))
    found['stop'] = [c.stop(), killed[:], clock.slept[:2], len(clock.slept), c.root.exists(), removed]
    monkeypatch.undo()
    found['missing'] = []
    for lacking, root in (((), 0), ((), 5), (('sinfo', 'srun'), 0)):
        monkeypatch.setattr(slurm_cluster, '_which', lambda p: p not in lacking)
        monkeypatch.setattr(slurm_cluster.os, 'geteuid', lambda: root)
        found['missing'] += [slurm_cluster.slurm_missing()]
    monkeypatch.undo()
    bound = []

    class Socket:
        def __enter__(self):
            return self

        def __exit__(self, *a):
            return None

        def bind(self, at):
            bound.append(at[1])
            if at[1] in busy:
                raise OSError('taken')

    monkeypatch.setattr(slurm_cluster.socket, 'socket', Socket)
    monkeypatch.setattr(slurm_cluster.os, 'getpid', lambda: 2003)
    busy = (16817 + 13, 16817 + 12 + 3)
    found['ports'] = [slurm_cluster.free_ports(3), bound[:8]]
    busy = range(70_000)
    bound.clear()
    found['no ports'] = [answer(slurm_cluster.free_ports, 1000), bound[-1], len(bound)]
    monkeypatch.undo()
    child = os.getpid()
    found['proc'] = [
        slurm_cluster._read(child, 'nothing'),
        slurm_cluster._parent(child) == os.getppid(),
        slurm_cluster._parent(2**22 + 5),
        child in slurm_cluster._children(),
        os.getppid() in slurm_cluster._children(),
        'py' in slurm_cluster._words(child),
        '\0' in slurm_cluster._words(child),
    ]
    same_answers(request, 'cluster', cleaned(found, tmp_path))


# ---- processes and actors, of which only a part is true ----


class Actor:
    "A call that Ray would carry out elsewhere"

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __getattr__(self, k):
        return Actor(f'{self.name}.{k}'.lstrip('.'), self.calls)

    def __call__(self, *args, **kw):
        self.calls.append(
            [
                self.name,
                *[a if isinstance(a, (int, float, str, list, dict, tuple)) else type(a).__name__ for a in args],
                {k: v if isinstance(v, (int, float, str, bool, dict)) else type(v).__name__ for k, v in kw.items()},
            ]
        )
        return Actor(f'{self.name}()', self.calls)


def test_ranks_as_actors(request, monkeypatch):
    found, shape = {}, dict(nodes=2, processes=2, cpus=3, gpus=2, time=9, retries=1, grace=4)
    for name, script in dict(
        good=[([1], [2], [0]), ([2], [], [0])],
        bad=[([1], [2], [0]), ([2], [], [5])],
        first=[([1, 2], [], [7, 0])],
        late=[([], [1], []), ([], [1], [])],
    ).items():
        for end in (1000.0, 999.0):
            calls, steps = [], [list(map(list, s)) for s in script]
            Clock(monkeypatch, ray_jobs)
            codes = []

            def wait(todo, timeout):
                done, left, got = steps.pop(0)
                codes[:] = got
                calls.append([len(todo), timeout])
                return done, left

            def get(x):
                if isinstance(x, list) and x and not isinstance(x[0], Actor):
                    return list(codes)
                if isinstance(x, list) and not x:
                    return []
                calls.append(['get', len(x) if isinstance(x, list) else x.name])
                return ('h', 5)

            monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(wait=wait, get=get))
            groups = [Actor(f'g{i}', calls) for i in range(2)]
            found[f'attempt {name} {end}'] = [
                answer(ray_jobs._attempt, shape, groups, ['c'], end),
                calls[4 if name != 'good' else 0 :],
            ]
    calls = []
    ray = Actor('', calls)
    for name in (
        'ray',
        'ray.util',
        'ray.util.placement_group',
        'ray.util.scheduling_strategies',
        'ray.train',
        'ray.train.torch',
    ):
        monkeypatch.setitem(sys.modules, name, ray)
    for nodes in (1, 2):
        ray_jobs._groups(shape | dict(nodes=nodes))
        found[f'groups {nodes}'] = list(calls)
        calls.clear()
    for gpus in (0, 1, 2):
        ray_jobs._scaling(shape | dict(gpus=gpus))
    need = [c[-1] for c in calls]
    found['scaling'] = need
    calls.clear()
    monkeypatch.setattr(ray_jobs.sys, 'argv', ['x', json.dumps(shape), 'python', '{"folder": "/f", "a": 1}'])
    ray_jobs.train_on_ray()
    found['train'] = calls[:]
    calls.clear()
    handlers = []
    monkeypatch.setattr(ray_jobs, '_groups', lambda shape: [Actor('g', calls)])
    monkeypatch.setattr(ray_jobs.signal, 'signal', lambda n, f: handlers.append(int(n)) or f())
    Clock(monkeypatch, ray_jobs)
    for code in (0, 3, -9):
        monkeypatch.setattr(ray_jobs, '_attempts', lambda shape, groups, command: calls.append(command) or code)
        with pytest.raises(SystemExit) as e:
            ray_jobs.ranks_on_ray()
        found[f'ends {code}'] = e.value.code
    found['entry'] = [calls, handlers]
    same_answers(request, 'actors', found)


class Rank:
    "A process that ends after some looks"

    def __init__(self, pid, looks, code):
        self.pid, self.looks, self.code, self.returncode = pid, looks, code, None

    def poll(self):
        self.looks -= 1
        if self.looks < 0:
            self.returncode = self.code
        return self.returncode


def test_ranks_of_a_node(request, monkeypatch):
    found = {}
    for name, ranks in dict(
        good=[(1, 2, 0), (2, 0, 0)], bad=[(1, 90, 0), (2, 1, 3)], killed=[(1, 1, -9), (2, 0, 0)], none=[]
    ).items():
        clock, killed, started, made = Clock(monkeypatch, ray_jobs), [], [], [Rank(*r) for r in ranks]
        monkeypatch.setattr(ray_jobs.os, 'killpg', lambda pid, s: killed.append([pid, int(s)]))
        monkeypatch.setattr(
            ray_jobs.subprocess,
            'Popen',
            lambda command, env, start_new_session: (
                started.append([command, env.get('RANK'), start_new_session]) or made[len(started) - 1]
            ),
        )
        group = ray_jobs.RankGroup()
        found[f'run {name}'] = [
            group.run(['c'], [dict(RANK=str(i)) for i in range(len(ranks))]),
            killed,
            started,
            [len(clock.slept), clock.slept[:1], clock.slept[-1:]],
        ]
    bound = []

    class Socket:
        def __enter__(self):
            return self

        def __exit__(self, *a):
            return None

        def bind(self, at):
            bound.append(at)

        def getsockname(self):
            return ['x', 77]

    import socket

    monkeypatch.setattr(socket, 'socket', Socket)
    monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: 'ip')))
    found['address'] = [ray_jobs.RankGroup().address(), bound]
    monkeypatch.undo()
    place, opened = ray_jobs.Ray(), []

    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *a):
            return None

        def read(self):
            return b'{"a": 1}'

    def urlopen(r, timeout):
        opened.append([r.full_url, r.data, r.get_method(), dict(r.headers), timeout])
        if outcome:
            raise outcome
        return Answer()

    monkeypatch.setattr(ray_jobs.urllib.request, 'urlopen', urlopen)
    import io

    for outcome in (
        None,
        ray_jobs.urllib.error.HTTPError('u', 404, 'm', {}, io.BytesIO(b'begin' + b'x' * 400)),
        ray_jobs.urllib.error.URLError('refused'),
        OSError('down'),
    ):
        found[f'ask {type(outcome).__name__}'] = [answer(place.ask, 'jobs/'), answer(place.ask, 'jobs/', '{}')]
    found['requests'] = opened[:2]
    same_answers(request, 'ranks', found)


def test_supervisors_of_local_jobs(request, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    place, found, started = local.Local(python='py'), {}, []
    monkeypatch.setattr(local, '_start_supervisor', lambda folder, where: started.append([folder.name, where]))
    monkeypatch.setattr(local.secrets, 'token_hex', lambda n: 'f' * n)
    job = small.replace(image='')
    found['submitted'] = [
        alike(place.submit(j, t)) for j, t in ((job, 'one'), (job, 'one'), (job.replace(folder='/'), 'two'), (job, ''))
    ] + [started, sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*'))]
    monkeypatch.undo()
    ran = []

    def popen(words, **kw):
        ran.append(
            [
                len(words),
                words[1],
                words[3] == str(tmp_path),
                kw.pop('env', {}).get('A'),
                sorted(kw),
                kw.get('start_new_session'),
                kw.get('cwd'),
            ]
        )
        if broken:
            raise OSError(2, 'gone')
        return SimpleNamespace(pid=5)

    monkeypatch.setattr(local.subprocess, 'Popen', popen)
    (tmp_path / 'folder').mkdir()
    for broken in (False, True):
        found[f'supervisor {broken}'] = [
            answer(local._start_supervisor, tmp_path / 'folder', '/x'),
            (tmp_path / 'folder').exists(),
        ]
    found['ran'] = ran[:]
    broken = False
    ran.clear()
    found['began'] = [
        local._begin(dict(argv=['a', 'b', 'c', str(tmp_path)], env=dict(A='1'), secrets=[]), tmp_path / 'log').pid,
        ran,
        (tmp_path / 'log').exists(),
    ]
    monkeypatch.undo()
    sent = []
    monkeypatch.setattr(local.os, 'killpg', lambda pid, s: sent.append([pid, int(s)]))
    for slow in (False, True):
        waits = []

        def wait(grace=None):
            waits.append(grace)
            if slow and grace is not None:
                raise local.subprocess.TimeoutExpired('x', grace)
            return -15

        found[f'end {slow}'] = [local._end_group(SimpleNamespace(pid=4, wait=wait), 6), waits, sent[:]]
        sent.clear()

    def gone(pid, s):
        raise ProcessLookupError

    monkeypatch.setattr(local.os, 'killpg', gone)
    found['gone'] = local._signal_group(SimpleNamespace(pid=4), 9)
    monkeypatch.undo()
    me = Path('/proc/self/cmdline').read_bytes().split(b'\0')
    found['alive'] = [
        local._alive(os.getpid(), os.fsdecode(me[0])),
        local._alive(os.getpid(), tmp_path),
        local._alive(2**22 + 5, tmp_path),
    ]
    for cancel in (True, False):
        folder, seen = tmp_path / f'job{cancel}', []
        folder.mkdir()
        (folder / 'job.json').write_text(place.render(job))
        if cancel:
            (folder / 'cancel').touch()
        monkeypatch.setattr(local.sys, 'argv', ['x', str(folder)])
        monkeypatch.setattr(local.signal, 'signal', lambda n, f: seen.append(int(n)) or (f() if not cancel else None))
        monkeypatch.setattr(
            local,
            '_attempts',
            lambda d, job, log, asked: (
                seen.append([sorted(d), job.name, log.name, asked]) or Status('succeeded', 'exit 0')
            ),
        )
        local._supervise()
        found[f'supervised {cancel}'] = [
            seen,
            Status.from_json(folder / 'end.json'),
            (folder / 'pid').read_text() == str(os.getpid()),
            (folder / 'log').exists(),
        ]
    monkeypatch.undo()
    sent.clear()
    for error in (None, ProcessLookupError, PermissionError):

        def killpg(pid, s):
            sent.append([pid, int(s)])
            if error:
                raise error

        monkeypatch.setattr(sweep_trials.os, 'killpg', killpg)
        p = SimpleNamespace(pid=3, wait=lambda: sent.append('waited'))
        found[f'trial {error}'] = [answer(sweep_trials._Process.stop, p), answer(sweep_trials._Process.end, p), sent[:]]
        sent.clear()
    same_answers(request, 'supervisors', cleaned(found, tmp_path))


def test_a_cluster_in_a_with_statement(monkeypatch):
    seen = []

    class Cluster(slurm_cluster.SlurmCluster):
        def __init__(self, fails):
            self.fails = fails

        def start(self):
            if self.fails:
                raise KeyError('x')
            return seen.append('started') or self

        def stop(self):
            seen.append('stopped')

    with Cluster(False) as c:
        assert isinstance(c, Cluster)
    with pytest.raises(KeyError), Cluster(True):
        pass
    assert seen == ['started', 'stopped', 'stopped']


def test_what_is_left_of_launching_and_sweeps(request, tmp_path, monkeypatch):
    found, asked = {}, []
    monkeypatch.setattr(
        containers.subprocess, 'run', lambda args, **kw: asked.append([args, kw]) or SimpleNamespace(stdout=b'a\xff')
    )
    found['both'] = [
        containers._both(['x']),
        [
            [a, kw['timeout'], kw['stdout'] == containers.subprocess.PIPE, kw['stderr'] == containers.subprocess.STDOUT]
            for a, kw in asked
        ],
    ]
    monkeypatch.undo()
    Program(monkeypatch, ps='')
    found['no pod'] = [answer(p.status, Handle('c', 'x')) for p in (containers.Container(), containers.Docker())]
    rooms = []
    with pytest.MonkeyPatch.context() as m:
        as_json(m)
        for module in (kubernetes, kubeflow, containers):
            m.setattr(
                module,
                'bad_name',
                lambda name, what='name', room=0, service=False: rooms.append([what, room, service]) or [],
            )
        for place in (kubernetes.Kubernetes(), kubeflow.PyTorchJob(), kubeflow.TrainJob(), containers.Container()):
            for nodes in (1, 2, 9, 10, 11, 100, 101):
                place._rules(small.replace(nodes=nodes))
                found[f'room {type(place).__name__} {nodes}'] = rooms[:]
                rooms.clear()
    train = kubernetes_yaml(kubeflow.TrainJob().render(wide))[0]
    for n in ('auto', 2.5, None, 4):
        found[f'processes {n}'] = read_again(
            kubeflow.TrainJob(),
            manifests.to_yaml(
                train | dict(spec=train['spec'] | dict(trainer=train['spec']['trainer'] | dict(numProcPerNode=n)))
            ),
            wide,
        )
    for words in (['a'], ['a', 1], [True], ['py', '--no-python', 'b']):
        for ranks in (1, 2):
            found[f'words {words} {ranks}'] = [
                answer(kubernetes._words_of, dict(command=words[:1], args=words[1:]), ranks),
                answer(kubernetes._words_of, {}, ranks),
            ]
    import torch
    from fsdl_tools.training import trainer

    monkeypatch.setattr(torch, 'set_num_threads', lambda n: asked.append(n))
    monkeypatch.setattr(trainer, 'fit', lambda config: asked.append(config.folder))
    asked.clear()
    for threads in ('3', ''):
        monkeypatch.setenv('OMP_NUM_THREADS', threads) if threads else monkeypatch.delenv('OMP_NUM_THREADS')
        ray_jobs._worker(dict(folder='/x'))
    found['worker'] = asked[:]
    cluster = slurm_cluster.SlurmCluster.__new__(slurm_cluster.SlurmCluster)
    cluster.root = Path('/root-of-it')
    monkeypatch.setattr(slurm_cluster, '_children', lambda: [1, 2, 3])
    monkeypatch.setattr(slurm_cluster, '_words', lambda p: '/root-of-it' if p == 1 else '')
    monkeypatch.setattr(slurm_cluster, '_environ', lambda p: 'A=/root-of-it/x' if p == 2 else '')
    found['left'] = cluster.left()
    looked = []
    monkeypatch.setattr(
        slurm_cluster.shutil, 'which', lambda p, path: looked.append(path.endswith(':/usr/sbin:/sbin')) or p
    )
    found['which'] = [slurm_cluster._which('a'), looked]
    space = sweep_space.parse_sweep(dict(metric=dict(name='loss'), parameters=dict(a=dict(value=1))))
    drawn = [('x', dict(a=1)), ('y', dict(a=2))]
    for name, module in {
        'ray': SimpleNamespace(tune=1),
        'ray.tune': 1,
        'ray.tune.search': 1,
        'ray.tune.search.variant_generator': SimpleNamespace(generate_variants=lambda axes, random_state: drawn),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    found['point'] = [sweep_engines._ray_point(dict(seed=3, space=space.to_dict())), random.random()]
    a_sweep(tmp_path / 's', space)
    held = sweeps.lock_trial(tmp_path / 's', 0, 1)
    found['held'] = [sweeps._claim(tmp_path / 's', 3, 'me'), entered(tmp_path / 's')]
    os.close(held)

    def deep(d):
        raise RecursionError

    monkeypatch.setattr(sweep_space, 'parse_sweep', deep)
    (tmp_path / 'x.yaml').write_text('a: 1')
    found['deep'] = answer(sweep_space.read_sweep, tmp_path / 'x.yaml').replace(str(tmp_path), '')
    clock = Clock(monkeypatch, sweep_ray)
    polls = [None, None, None, 0]
    watched = SimpleNamespace(process=SimpleNamespace(poll=lambda: polls.pop(0)), place=tmp_path, space=space, told=0)
    found['waits'] = [sweep_ray._WatchedTrial.next_value(watched), clock.slept]
    same_answers(request, 'rest', found)


def test_drawings_of_sweeps_and_comparisons(tmp_path):
    import matplotlib.pyplot as plt

    space = sweep_space.parse_sweep(
        dict(metric=dict(name='loss'), parameters=dict(a=dict(min=0.0, max=1), b=dict(values=['x', 'y'])))
    )
    folder = a_sweep(
        tmp_path / 's',
        space,
        ('finished', 3.0, dict(a=0.1, b='x')),
        ('finished', 1.0, dict(a=0.7, b='y')),
        ('stopped', 2.0, dict(a=0.2, b='x')),
        ('waiting', None, None),
    )
    ax = sweep_results.parallel_coordinates(folder)
    assert [line.get_linewidth() for line in ax.lines] == [
        0.8,
        2.5,
    ] and ax.get_title() == '2 trials; the best (thick) has loss 1'
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    a_trial(folder / 'trials' / '2-1', [dict(m=dict(loss=v)) for v in (3, 2)])
    ax = sweep_results.learning_curves(folder)
    assert [line.get_linestyle() for line in ax.lines] == [
        '-',
        '-',
        '--',
        '-',
    ] and ax.get_title() == '4 trials, 1 stopped early (dashed)'
    assert list(ax.lines[2].get_ydata()) == [3.0, 2.0]
    plt.close('all')
