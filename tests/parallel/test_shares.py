"""Shares of a batch where a notebook cell would be too long: batch-norms of every shape, ranks without samples, many
sizes of data sets
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from fsdl_tools.models.tiny import share, tiny_batch, tiny_loss, tiny_model
from fsdl_tools.parallel.ddp import DataParallel
from fsdl_tools.parallel.ranks import on_ranks
from fsdl_tools.parallel.shares import SyncBatchNorm, _weighted_loss, sampler_indices, sync_batchnorm


@pytest.mark.parametrize('shape', [(12, 5), (12, 5, 7), (12, 5, 3, 4), (12, 5, 2, 2, 2)])
def test_sync_batchnorm_is_batchnorm(shape):
    def work():
        g = torch.Generator().manual_seed(0)
        x, w = torch.randn(*shape, generator=g) * 3 + 10, torch.randn(*shape, generator=g)
        make = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
        one, many = make(5), sync_batchnorm(make(5))
        assert type(many) is SyncBatchNorm
        x1, xs = x.clone().requires_grad_(), x.tensor_split([7, 8])[dist.get_rank()].clone().requires_grad_()
        y1, ys = one(x1), many(xs)
        (y1 * w).sum().backward()
        (ys * w.tensor_split([7, 8])[dist.get_rank()]).sum().backward()
        mine = lambda t: t.tensor_split([7, 8])[dist.get_rank()]
        close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        close(ys, mine(y1))
        close(xs.grad, mine(x1.grad))
        close(many.running_mean, one.running_mean)
        close(many.running_var, one.running_var)
        assert many.num_batches_tracked == 1
        close(many.eval()(xs), mine(one.eval()(x1)))

    on_ranks(work, 3)


def test_batchnorms_that_do_without_something():
    def work():
        for kw in (dict(affine=False), dict(track_running_stats=False), dict(momentum=None)):
            a, b = nn.BatchNorm2d(4, **kw), sync_batchnorm(nn.BatchNorm2d(4, **kw))
            for s in range(3):
                x = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(s))
                torch.testing.assert_close(b(share((x,))[0]), share((a(x),))[0], rtol=1e-4, atol=1e-5)
            if a.running_var is not None:
                torch.testing.assert_close(a.running_var, b.running_var)
            x = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(9))
            (
                torch.testing.assert_close(b.eval()(share((x,))[0]), share((a.eval()(x),))[0], rtol=1e-4, atol=1e-5)
                if a.running_var is not None
                else None
            )

    on_ranks(work, 2)


def test_weighted_loss_on_ranks_without_samples():
    def work():
        m = DataParallel(tiny_model('gpt'))
        _weighted_loss(m, share(tiny_batch('gpt', 2))).backward()
        return torch.cat([p.grad.flatten() for p in m.parameters()])

    ref = tiny_model('gpt')
    tiny_loss(ref, tiny_batch('gpt', 2)).backward()
    for g in on_ranks(work, 4):
        torch.testing.assert_close(g, torch.cat([p.grad.flatten() for p in ref.parameters()]), rtol=1e-5, atol=1e-6)


def test_samplers_deal_everything():
    for n in range(1, 30):
        for world in range(1, 9):
            dealt = [sampler_indices(n, r, world) for r in range(world)]
            assert {len(d) for d in dealt} == {-(-n // world)} and set().union(*dealt) == set(range(n))
