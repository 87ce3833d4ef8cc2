"""Our DDP against torch's where a notebook cell would be too long: random models, several dtypes, buckets of every
size, faults
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from fsdl_tools.parallel.collectives import CommCounter
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.parallel.ddp import DataParallel, broadcast_all, _make_buckets
from fsdl_tools.models.tiny import share, tiny_batch, tiny_loss, tiny_model, tiny_names, train_alone


def apart(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('name', tiny_names)
def test_tiny_models_are_the_same_everywhere_and_learn(name):
    a, b = tiny_model(name), tiny_model(name)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    losses = train_alone(name, 60)
    assert losses[-1] < 0.8 * losses[0]
    state = torch.get_rng_state()
    tiny_model(name)
    tiny_batch(name)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('size', [1, 1000, 10_000, 25 << 20])
def test_buckets_hold_every_parameter_once_in_order(size):
    params = list(tiny_model('gpt').parameters())
    buckets = _make_buckets(params, size, first=size)
    assert [id(p) for b in buckets for p in b.params] == [id(p) for p in params]
    assert all(b.flat.numel() == sum(p.numel() for p in b.params) for b in buckets)
    assert _make_buckets([]) == []


def test_dtypes_do_not_share_a_bucket():
    mixed = [
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(3, dtype=torch.float64)),
        nn.Parameter(torch.zeros(2, dtype=torch.float64)),
    ]
    assert [b.flat.dtype for b in _make_buckets(mixed)] == [torch.float32, torch.float64]


def gradients(kind, bucket, rounds=3):
    "Gradients after several backward passes, with zero_grad of both kinds"
    torch.manual_seed(dist.get_rank())  # different weights on every rank: DDP must make them equal
    net = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 33), nn.Tanh(), nn.Linear(33, 5))
    m = DataParallel(net, bucket) if kind == 'ours' else DistributedDataParallel(net, bucket_cap_mb=bucket / 2**20)
    out = []
    for i in range(rounds):
        m.zero_grad(set_to_none=i % 2 == 0)
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * i + dist.get_rank()))
        m(x).square().sum().backward()
        out.append(torch.cat([p.grad.flatten() for p in net.parameters()]).clone())
    return torch.stack(out)


@pytest.mark.parametrize('bucket', [1, 2000, 25 << 20])
def test_gradients_equal_torchs_on_all_ranks(bucket):
    ours, theirs = on_ranks(gradients, 3, 'ours', bucket), on_ranks(gradients, 3, 'torch', max(bucket, 1024))
    for g in ours:
        torch.testing.assert_close(g, theirs[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2])


def test_overlap_changes_nothing_but_the_time():
    def work(overlap):
        m = DataParallel(tiny_model('gpt'), 4096, overlap)
        with CommCounter() as c:
            tiny_loss(m, share(tiny_batch('gpt'))).backward()
        return torch.cat([p.grad.flatten() for p in m.parameters()]), dict(c.calls)

    (a, calls), (b, calls_b) = on_ranks(work, 2, True)[0], on_ranks(work, 2, False)[0]
    assert torch.equal(a, b) and calls == calls_b


def test_gradients_that_are_not_zeroed_accumulate_like_torchs():
    def work(kind):
        net = tiny_model('mlp')
        m = DataParallel(net) if kind == 'ours' else DistributedDataParallel(net)
        for s in range(3):
            tiny_loss(m, share(tiny_batch('mlp', 16, s))).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    torch.testing.assert_close(on_ranks(work, 2, 'ours')[1], on_ranks(work, 2, 'torch')[1], rtol=1e-5, atol=1e-6)


def test_frozen_and_unused_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x, use_b):
            return self.a(x) + (self.b(x) if use_b else 0)

    def work(use_b):
        net = Net()
        net.c.requires_grad_(False)
        m = DataParallel(net)
        m(torch.ones(2, 3), use_b).sum().backward()
        return net.c.weight.grad is None and net.a.weight.grad is not None

    assert on_ranks(work, 2, True) == [True, True]
    with pytest.raises(RankError, match=r'rank [01]: no gradient for b.weight, b.bias; use every'):
        on_ranks(work, 2, False)


def test_an_error_in_backward_does_not_spoil_the_next_step():
    def work():
        net = tiny_model('mlp')
        m = DataParallel(net, 1)

        class Fail(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, g):
                raise ValueError('on purpose')

        h = net[0].register_forward_hook(lambda mod, i, o: Fail.apply(o))
        try:
            tiny_loss(m, share(tiny_batch('mlp'))).backward()
        except ValueError:
            pass
        h.remove()
        m.zero_grad()
        tiny_loss(m, share(tiny_batch('mlp'))).backward()
        got = torch.cat([p.grad.flatten() for p in net.parameters()])
        ref = tiny_model('mlp')
        tiny_loss(ref, tiny_batch('mlp')).backward()
        return (got - torch.cat([p.grad.flatten() for p in ref.parameters()])).abs().max().item()

    assert max(on_ranks(work, 2)) < 1e-6


def test_broadcast_all_with_mixed_types_and_scalars():
    def work():
        r = dist.get_rank()
        ts = [torch.full((2, 3), float(r)), torch.tensor(r), torch.full((4,), r, dtype=torch.float64), torch.zeros(0)]
        broadcast_all(ts, 2)
        return [t.tolist() for t in ts]

    assert on_ranks(work, 3) == [[[[2.0] * 3] * 2, 2, [2.0] * 4, []]] * 3


def on_gpu():
    net = tiny_model('mlp').cuda()
    m = DataParallel(net)
    x, y = share(tiny_batch('mlp'))
    tiny_loss(m, (x.cuda(), y.cuda())).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()]).cpu()


@pytest.mark.gpu
def test_on_gpus_with_nccl():
    if not torch.cuda.is_available():
        pytest.skip('no GPU')
    n = torch.cuda.device_count()
    ref = tiny_model('mlp')
    tiny_loss(ref, tiny_batch('mlp')).backward()
    for g in on_ranks(on_gpu, n, device='cuda', timeout=180):
        torch.testing.assert_close(g, torch.cat([p.grad.flatten() for p in ref.parameters()]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f'rank {n} has no GPU'):
        on_ranks(on_gpu, n + 1, device='cuda')
