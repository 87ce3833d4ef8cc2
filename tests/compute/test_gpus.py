"The table of accelerators and what is computed from it"

import json, math, re, subprocess, sys
import pytest
from hypothesis import example, given, settings, strategies as st
from fsdl_tools.core import read_data
from fsdl_tools.units import GiB
from fsdl_tools.compute.gpus import (
    Cluster,
    Gpu,
    fabrics,
    find,
    gpu_table,
    gpus,
    matmul_work,
    peak,
    _precisions,
    ridge,
    roofline,
)

ALL = gpus()
names = st.sampled_from([g.name for g in ALL])


@pytest.mark.parametrize('g', ALL, ids=lambda g: g.name)
def test_row_is_sane(g):
    assert g.source.startswith('http') and g.seen and re.fullmatch(r'\d{4}-\d\d-\d\d', g.date)
    assert 2014 <= g.year <= 2026 and 8 * GiB <= g.memory <= 300 * GiB and g.devices in (1, 2)
    assert 2e11 < g.bandwidth < 1e13 and (g.tdp is None or 60 <= g.tdp <= 1500)
    assert g.link_bandwidth is None or 1e10 <= g.link_bandwidth <= 1e12
    assert g.tflops and all(1 < v < (16000 if p == 'fp4' else 6000) for p, v in g.tflops.items())
    assert 0.9 * g.memory < g.usable <= 1.02 * g.memory


@pytest.mark.parametrize('g', ALL, ids=lambda g: g.name)
def test_precisions_are_ordered(g):
    "Fewer bits are never slower, and nobody measured more than the datasheet"
    rates = [g.tflops[p] for p in ('fp32', 'tf32', 'bf16', 'fp8') if p in g.tflops]
    assert rates == sorted(rates)
    assert all(g.achievable[p] <= g.tflops[p] for p in g.achievable)
    if g.vendor == 'NVIDIA' and 'bf16' in g.tflops:
        assert g.tflops['fp16'] == g.tflops['bf16']
    if g.arch in ('Kepler', 'Pascal', 'Volta', 'Turing'):
        assert 'bf16' not in g.tflops and 'tf32' not in g.tflops


def test_there_are_enough_and_names_are_unique():
    assert len(ALL) >= 30 and len({g.name for g in ALL}) == len(ALL)
    aliases = [a.lower() for r in read_data('gpus.csv') for a in [r['name'], *(r['aliases'] or '').split('|')] if a]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize(
    'alias,name',
    [
        ('A100-SXM-80GB', 'A100 SXM 80GB'),
        ('A100-SXM-40GB', 'A100 SXM 40GB'),
        ('H100-SXM-80GB', 'H100 SXM'),
        ('H100-SXM-96GB-500W', 'H100 SXM 96GB 500W'),
        ('B200-SXM-184GB', 'B200 SXM'),
        ('B200-SXM-power-limited', 'B200 SXM'),
        ('NVIDIA GeForce RTX 3090', 'RTX 3090'),
        ('Tesla T4', 'T4'),
        ('NVIDIA A100-SXM4-80GB', 'A100 SXM 80GB'),
        ('NVIDIA H100 80GB HBM3', 'H100 SXM'),
        ('h100 pcie', 'H100 PCIe'),
        ('Tesla V100-SXM2-32GB', 'V100 SXM2 32GB'),
    ],
)
def test_aliases(alias, name):
    assert find(alias).name == name


@pytest.mark.parametrize('bad', ['', ' ', 'GTX 9999', 'H100 SXN', 'nvidia', 'ＲＴＸ４０９０', '../H100/..x'])
def test_unknown_names(bad):
    with pytest.raises(ValueError, match='unknown GPU'):
        find(bad)


@given(st.text(max_size=60) | st.text(max_size=60).map('{{{}}}'.format))
@example('{')
@example('{}')
@example('{"name": 1}')
def test_any_text_is_found_or_refused(name):
    try:
        assert isinstance(find(name), Gpu)
    except ValueError as e:
        assert ('Gpu' if name.startswith('{') else 'unknown GPU') in str(e)


@given(names)
def test_a_gpu_survives_json(name):
    g = find(name)
    assert Gpu.from_json(g.to_json()) == g and hash(g) == hash(Gpu.from_json(g.to_json()))


@given(names, st.sampled_from(_precisions), st.floats(1e-3, 1e6), st.floats(1, 10))
def test_roofline_rises_and_ends(name, p, x, k):
    g = find(name)
    if p not in g.tflops:
        return
    assert roofline(g, x, p) <= roofline(g, k * x, p) <= peak(g, p)
    assert math.isclose(roofline(g, ridge(g, p), p), peak(g, p))


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**5))
def test_matmul_work(m, k, n):
    f, b, i = matmul_work(m, k, n)
    assert f == 2 * m * k * n and b == 2 * (m * k + k * n + m * n) and i <= min(m, k, n)


@pytest.mark.parametrize('bad', [0, -1, 1.5, True, 'x'])
def test_matmul_refuses(bad):
    with pytest.raises((ValueError, TypeError)):
        matmul_work(bad, 2, 2)


@given(names, st.integers(1, 64), st.sampled_from([1, 2, 4, 8]))
def test_cluster_counts(name, nodes, per):
    c = Cluster(name, nodes * per, per, gpu_hour=1 / (nodes * per))
    assert c.nodes == nodes and c.memory == nodes * per * find(name).usable and Cluster.from_json(c.to_json()) == c
    assert math.isclose(c.cost(7200), 2.0)


@pytest.mark.parametrize(
    'kw,msg',
    [
        (dict(gpus=0), 'gpus'),
        (dict(gpus=-8), 'gpus'),
        (dict(gpus=12), 'multiple of gpus_per_node'),
        (dict(gpus=8, gpus_per_node=0), 'gpus_per_node'),
        (dict(gpus=8, interconnect='infinband-3200'), "did you mean 'infiniband-3200'"),
        (dict(gpus=16, interconnect='nvlink-only'), 'nic_bandwidth'),
        (dict(gpus=8, gpu_hour=float('nan')), 'gpu_hour'),
        (dict(gpus=8, gpu_hour=-1.0), 'gpu_hour'),
    ],
)
def test_cluster_refuses(kw, msg):
    with pytest.raises(ValueError, match=msg):
        Cluster('H100', **kw)


def test_cluster_without_price():
    with pytest.raises(ValueError, match='no price'):
        Cluster('H100', 8).cost(1)


def test_peaks():
    assert peak('H100') == 989e12 and peak('H100', measured=True) == 794.5e12
    for args, msg in (
        (('V100', 'bf16'), 'there is fp32, fp16'),
        (('H100', 'fp4'), 'there is fp32'),
        (('H100', 'fp2'), 'precision'),
        (('L4', 'bf16', True), 'measured'),
    ):
        with pytest.raises(ValueError, match=msg):
            peak(*args)


def test_table_and_import_time():
    assert len(gpu_table()) == len(ALL) and 'H100 SXM' in gpu_table()._repr_html_()
    code = (
        'import sys, fsdl_tools.compute.measured, fsdl_tools.compute.cost; '
        "print(json.dumps(sorted({'torch', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules))))"
    )
    r = subprocess.run([sys.executable, '-c', 'import json; ' + code], capture_output=True, text=True, timeout=60)
    assert json.loads(r.stdout) == [], r.stderr
