"Runs on a GPU, divided by their traces: made ones, and one that was recorded"

import json
import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fsdl_tools.core import data_path, read_results
from fsdl_tools.training.diagnose import cures, diagnose_trace, nothing
from fsdl_tools.training.traces import gpu_parts, profiled, read_trace, trace_parts


class Run:
    "A made trace: the host's marks and launches, and what the GPU does for them, in order"

    def __init__(self):
        self.events, self.now, self.free, self.calls = [], 0.0, 0.0, 0

    def event(self, cat, name, start, length, pid=1, tid=1, **args):
        self.events.append(dict(ph='X', cat=cat, name=name, ts=start, dur=length, pid=pid, tid=tid, args=args))

    def host(self, name, length, cat='user_annotation'):
        self.event(cat, name, self.now, length)
        self.now += length

    def launch(self, op, length, kernel='gemm', tid=1, cat='kernel', host=5.0, lag=2.0):
        "An operation of `host` microseconds whose kernel starts when the GPU is free"
        self.calls += 1
        self.event('cpu_op', op, self.now, host, tid=tid)
        self.event('cuda_runtime', 'cudaLaunchKernel', self.now + 1, 1, tid=tid, correlation=self.calls)
        start = max(self.free, self.now + lag)
        self.event(cat, kernel, start, length, pid=0, tid=7, correlation=self.calls)
        self.free, self.now = start + length, self.now + host


def loop(steps=4, load=50.0, forward=40.0, backward=80.0, wait=True):
    "A training loop on a GPU; autograd has a thread of its own"
    run = Run()
    for _ in range(steps):
        run.host('enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__', load)
        run.launch('aten::mm', forward)
        run.event('cpu_op', 'autograd::engine::evaluate_function: MmBackward0', run.now, 5.0, tid=2)
        run.launch('aten::mm', backward, tid=2)
        if wait:
            run.event('cpu_op', 'aten::_local_scalar_dense', run.now, max(run.free - run.now, 0.0) + 1)
            run.now = max(run.free, run.now) + 1
        run.host('Optimizer.step#AdamW.step', 3.0)
    return run


def test_whoever_waits_for_the_gpu_gets_no_blame():
    run = loop()
    g = gpu_parts(run.events)
    assert g.busy['forward'] == pytest.approx(4 * 40) and g.busy['backward'] == pytest.approx(4 * 80)
    assert g.idle.get('reading results', 0) < 10 and g.idle['loader'] == pytest.approx(4 * 50, rel=0.1)
    assert sum(g.busy.values()) + sum(g.idle.values()) == pytest.approx(g.wall)


def test_a_loader_behind_a_busy_gpu_costs_nothing():
    hidden, seen = (gpu_parts(loop(20, load=load, wait=False).events) for load in (50.0, 400.0))
    assert hidden.idle.get('loader', 0) / hidden.wall < 0.05 < 0.5 < seen.idle['loader'] / seen.wall


def test_parts_of_random_runs_add_up():
    draw = random.Random(0)
    for _ in range(60):
        run = Run()
        for _ in range(draw.randrange(3, 40)):
            kind = draw.randrange(5)
            if kind == 0:
                run.host(
                    draw.choice(['fsdl::evaluation', 'fsdl::checkpoint', 'Optimizer.step#SGD.step']),
                    draw.uniform(1, 90),
                )
            elif kind == 1:
                run.now += draw.uniform(0, 60)
            elif kind == 2:
                run.launch('aten::copy_', draw.uniform(1, 50), 'Memcpy HtoD (Pageable -> Device)', cat='gpu_memcpy')
            elif kind == 3:
                run.launch('aten::mm', draw.uniform(1, 80), 'ncclDevKernel_AllReduce', tid=2)
            else:
                run.launch('aten::mm', draw.uniform(1, 80), tid=draw.choice([1, 2]))
        run.launch('aten::mm', 5.0)
        g = gpu_parts(run.events)
        assert (
            sum(g.busy.values()) + sum(g.idle.values()) == pytest.approx(g.wall, rel=1e-6)
            and min([*g.busy.values(), *g.idle.values()]) >= 0
        )


def test_messages_count_where_nothing_hides_them():
    run = Run()
    run.launch('aten::mm', 100.0)
    run.event('kernel', 'ncclDevKernel_AllReduce_Sum', 50.0, 80.0, pid=0, tid=9)
    run.host('Optimizer.step#SGD.step', 200.0)
    g = gpu_parts(run.events)
    assert g.busy['communication'] == pytest.approx(130 - 102) and g.busy['forward'] == pytest.approx(100)


@pytest.mark.parametrize(
    'part, cause',
    [
        ('fsdl::checkpoint', 'checkpoint'),
        ('fsdl::evaluation', 'evaluation'),
        ('fsdl::sleeping', 'sleeping'),
        ('cudaMalloc', 'allocator'),
    ],
)
def test_a_trace_names_what_the_gpu_waits_for(part, cause, tmp_path):
    run = Run()
    for _ in range(5):
        run.launch('aten::mm', 50.0)
        run.now = run.free
        run.host(part, 200.0, cat='cuda_runtime' if part[0] == 'c' else 'user_annotation')
        run.host('Optimizer.step#SGD.step', 3.0)
    (tmp_path / 't.json').write_text(json.dumps(dict(traceEvents=run.events)))
    d = diagnose_trace(tmp_path / 't.json')
    assert d.first == cause and d.suspects[0]['try'] == cures[cause] and d.notes[1].startswith('the GPU worked for')


def test_many_launches_and_one_slow_piece_of_python_are_told_apart(tmp_path):
    few, many = Run(), Run()
    for run, n, gap in ((few, 4, 3000.0), (many, 800, 12.0)):
        for _ in range(n):
            run.launch('aten::mm', 1.5)
            run.now += gap
        (tmp_path / f'{n}.json').write_text(json.dumps(run.events))
    assert (
        diagnose_trace(tmp_path / '800.json').first == 'small operations'
        and diagnose_trace(tmp_path / '4.json').first == nothing
    )


def test_the_recorded_run():
    events = read_trace(data_path('results/gpu_trace.json.gz'))
    g = gpu_parts(events)
    assert 0.6 < g.idle['loader'] / g.wall < 0.7 and g.busy['backward'] > 2 * g.busy['forward'] > 0 and g.kernels > 700
    assert (
        trace_parts(events)['loader'] > 0.6 * trace_parts(events)['wall']
    )  # the loop's thread, not the one of autograd


def test_kernels_of_a_checkpointed_block_are_counted_once():
    run = Run()
    run.event('user_annotation', 'fsdl>recomputation', 0.0, 20.0)
    run.launch('aten::mm', 50.0)
    run.event('gpu_user_annotation', 'fsdl>recomputation', 0.0, 500.0, pid=0, tid=7)
    run.now = 30.0
    run.launch('aten::mm', 70.0, tid=2)
    run.event('cpu_op', 'autograd::engine::evaluate_function: CheckpointBackward', 30.0, 5.0, tid=2)
    run.host('Optimizer.step#SGD.step', 3.0)
    assert gpu_parts(run.events).again == pytest.approx(50.0)


def test_checkpoint_is_marked_in_the_trace():
    from fsdl_tools.training.diagnose import _marked

    net, x = nn.Linear(8, 8), torch.randn(4, 8)

    def train():
        torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).sum().backward()

    assert checkpoint is torch.utils.checkpoint.checkpoint
    assert any(e.get('name') == 'fsdl>recomputation' for e in profiled(_marked(train)))


def test_a_trace_without_kernels_is_refused():
    with pytest.raises(ValueError, match='no kernels'):
        gpu_parts([])
    with pytest.raises(ValueError, match='no kernels'):
        gpu_parts([dict(ph='X', cat='cpu_op', name='aten::mm', ts=0.0, dur=1.0, pid=1, tid=1)])


def test_what_was_measured_names_all_but_one_of_the_faults():
    judged = [r for r in read_results('diagnose_gpu')['cases'] if r.get('found')]
    assert sum(r['right'] for r in judged) >= len(judged) - 1 >= 14 and not [
        r for r in judged if r['expected'] == nothing and not r['right']
    ]
