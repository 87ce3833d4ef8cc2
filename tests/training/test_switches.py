"Trials of switches: what is turned on is on, what was given stays, and what cannot be turned on is said"

import gc
import weakref

import pytest
import torch
from torch import nn

from fsdl_tools.core import read_results
from fsdl_tools.training.speedups import Ratio, paired_ratio
from fsdl_tools.training.switches import (
    Trial,
    Tried,
    Turned,
    pays_after,
    switch_table,
    switches_alone,
    switches_together,
    try_switches,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), []

    def forward(self, x):
        self.seen.append(
            (
                torch.is_autocast_enabled('cpu'),
                torch.backends.cuda.matmul.allow_tf32,
                x.is_contiguous(memory_format=torch.channels_last),
                len(x),
            )
        )
        return self.head(self.conv(x).mean((2, 3)))


def seen(on, steps=1):
    t = Trial(Net(), on, 8, inputs=torch.rand(8, 3, 6, 6), steps=steps)
    t.model.seen.clear()
    t()
    return t.model.seen


@pytest.mark.parametrize(
    'on, autocast, tf32, last, sizes',
    [
        (Turned(), False, False, False, [8]),
        (Turned('tf32'), False, True, False, [8]),
        (Turned('bf16'), True, True, False, [8]),
        (Turned(channels_last=True), False, False, True, [8]),
        (Turned(micro_batches=4), False, False, False, [2] * 4),
    ],
)
def test_what_is_turned_on_is_on_and_off_again_afterwards(on, autocast, tf32, last, sizes):
    before = torch.backends.cuda.matmul.allow_tf32
    got = seen(on)
    assert [g[:3] for g in got] == [(autocast, tf32, last)] * len(sizes) and [g[3] for g in got] == sizes
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_the_optimizer_is_fused_where_it_was_asked_for():
    fused = {
        on: Trial(Net(), Turned(fused=on), 2, inputs=torch.rand(2, 3, 6, 6)).opt.defaults['fused']
        for on in (False, True)
    }
    assert fused == {False: None, True: True}


def test_recomputation_is_turned_on_in_the_model_and_nowhere_else():
    plain, again = (Trial('test_vit', on, 2) for on in (Turned(), Turned(recompute=True)))
    assert again.model.grad_checkpointing and not plain.model.grad_checkpointing


def test_a_text_model_gets_tokens_and_no_cache():
    from transformers import GPT2Config

    t = Trial(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=8), Turned(), 2, seq=8, steps=1)
    assert not t.model.config.use_cache and len(t.inputs['input_ids'].unique()) > 2 and t.inputs['input_ids'].max() < 50


def test_a_given_module_stays_as_it_is():
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tried = try_switches(
        net, 4, inputs=torch.rand(4, 3, 6, 6), which=['bf16', 'channels last', 'recompute'], turns=2, steps=1
    )
    assert net.seen == [] and all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert net.conv.weight.is_contiguous() and {t.switch: bool(t.why) for t in tried}['recompute']
    assert 'no switch for recomputation' in str(switch_table(tried).rows)


def test_the_rows_are_alone_then_together_and_a_wrong_name_is_refused():
    tried = try_switches(Net(), 4, inputs=torch.rand(4, 3, 6, 6), which=['bf16', 'fused optimizer'], turns=2, steps=1)
    assert [(t.how, t.switch) for t in tried] == [
        ('alone', 'baseline'),
        ('alone', 'bf16'),
        ('alone', 'fused optimizer'),
        ('together', '+ bf16'),
        ('together', '+ fused optimizer'),
    ]
    with pytest.raises(ValueError, match="'fused optimizer'"):
        try_switches(Net(), 4, inputs=torch.rand(4, 3, 6, 6), which=['fused optimiser'])
    assert {k[2:] for k in switches_together} < set(switches_alone)


def test_errors_of_the_baseline_are_raised():
    with pytest.raises(ValueError, match='hold 3 samples, not the 4'):
        try_switches(Net(), 4, inputs=torch.rand(3, 3, 6, 6))
    with pytest.raises(ValueError, match='precision'):
        Turned('fp4')
    with pytest.raises(ValueError, match='micro_batches'):
        Turned(micro_batches=0)


@pytest.mark.parametrize(
    'before, after, first, steps',
    [
        (100.0, 50.0, 11.0, 200),
        (100.0, 50.0, 1.0, 0),
        (100.0, 100.0, 11.0, None),
        (100.0, 120.0, 0.0, None),
        (100.0, 70.0, 1.1, 4),
    ],
)
def test_when_a_switch_has_paid(before, after, first, steps):
    got = pays_after(Tried('', '', before, first=1.0), Tried('', '', after, first=first))
    assert got == steps
    if steps:  # seconds of all steps, with the first
        took = lambda start, ms, n: start + n * ms / 1e3
        assert took(1.0, before, steps) >= took(first, after, steps) - 1e-9 and took(1.0, before, steps - 1) < took(
            first, after, steps - 1
        )


def test_the_record_of_the_h100_is_whole_and_its_ratios_are_those_of_its_seconds():
    record = read_results('speedups_gpu')
    for rows in record['rows'].values():
        base = next(r for r in rows if r['switch'] == 'baseline')['seconds']
        for r in rows:
            assert (
                paired_ratio(base, r['seconds']).mid == pytest.approx(r['ratio']['mid'], rel=0.01)
                and len(r['seconds']) == record['turns']
            )
            assert Ratio(**r['ratio']).low <= r['ratio']['mid'] <= r['ratio']['high']
            assert 1e3 * sorted(r['seconds'])[2] / record['steps'] == pytest.approx(r['ms'], rel=0.01)


@pytest.mark.parametrize('on', [Turned(), Turned('tf32'), Turned('bf16'), Turned('bf16', channels_last=True)])
def test_the_first_step_sees_the_switches_of_all_others(on):
    t = Trial(Net(), on, 4, inputs=torch.rand(4, 3, 6, 6), steps=2)
    t.step()
    assert len(t.model.seen) == 4 and len(set(t.model.seen)) == 1  # a step that sees others would compile anew


def test_two_models_are_in_memory_at_a_time(monkeypatch):
    alive, most = weakref.WeakSet(), []
    build = Trial._turn_on

    def counted(self):
        build(self)
        alive.add(self.model)
        gc.collect()
        most.append(len(alive))

    monkeypatch.setattr(Trial, '_turn_on', counted)
    tried = try_switches(
        Net(),
        4,
        inputs=torch.rand(4, 3, 6, 6),
        which=['tf32', 'bf16', 'channels last', 'fused optimizer', 'recompute', 'accumulate 4'],
        turns=2,
        steps=1,
    )
    assert max(most) == 2 and len(tried) == 10 and sum(bool(t.why) for t in tried) == 1


def test_an_interval_is_of_turns_with_the_baseline():
    tried = try_switches(Net(), 4, inputs=torch.rand(4, 3, 6, 6), which=['bf16'], turns=3, steps=1)
    assert [t.ratio and t.ratio.pairs for t in tried] == [None, 3, 3] and all(t.ms > 0 and t.first > 0 for t in tried)
    assert [
        t.ratio for t in try_switches(Net(), 4, inputs=torch.rand(4, 3, 6, 6), which=['bf16'], turns=1, steps=1)
    ] == [None] * 3
