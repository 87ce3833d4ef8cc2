"Stated peaks and what they mean, the best products, and benchmarks as data"

import importlib.metadata, importlib.util, math, re
from pathlib import Path
import pytest
from hypothesis import given, strategies as st
from fsdl_tools.core import read_data
from fsdl_tools.compute.gpus import find, gpus
from fsdl_tools.compute.measured import benchmarks, efficiency, explain_peak, scaling, speedup, suites, throughput

ALL = gpus()
names = st.sampled_from([g.name for g in ALL])


def test_the_best_product_over_the_peak():
    assert round(efficiency('A100'), 3) == 0.869


@given(names, st.floats(1e-3, 1e5))
def test_every_claim_gets_words(name, x):
    p = next(iter(find(name).tflops))
    assert len(explain_peak(name, x, p)) > 10


@pytest.mark.parametrize('g', [g.name for g in ALL])
def test_the_dense_peak_is_called_dense(g):
    for p, v in find(g).tflops.items():
        assert explain_peak(g, v, p) == 'dense, FP32 accumulation'


def test_benchmarks_are_whole():
    rows = read_data('gpu_benchmarks.csv')
    assert len(rows) > 1000 and all(
        r['source'] and r['date'] and r['unit'] and r['throughput'] > 0 and r['gpus'] >= 1 for r in rows
    )
    assert {r['gpu'] for r in rows} <= {g.name for g in ALL} and {r['suite'] for r in rows} == set(suites)
    keys = [(r['suite'], r['system'], r['task'], r['precision']) for r in rows]
    assert len(keys) == len(set(keys))
    units = {}
    for r in rows:
        assert units.setdefault(r['task'], r['unit']) == r['unit']


@pytest.mark.parametrize('suite', suites)
def test_speedup_is_a_ratio(suite):
    systems = sorted({r['system'] for r in benchmarks(suite)})
    for a in systems[:6]:
        assert math.isclose(speedup(a, a, suite=suite), 1)
        for b in systems[-6:]:
            assert math.isclose(speedup(a, b, suite=suite) * speedup(b, a, suite=suite), 1)


def test_benchmark_errors():
    with pytest.raises(ValueError, match='unknown system'):
        throughput('1x H100 SXN', 'resnet50')
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        throughput('1x RTX 3090', 'resnet-50')
    with pytest.raises(ValueError, match='unknown suite'):
        throughput('1x RTX 3090', 'resnet50', suite='Lambda 2024')
    with pytest.raises(ValueError, match='fp8'):
        throughput('1x RTX 3090', 'resnet50', 'fp8')
    with pytest.raises(ValueError):
        scaling('RTX 3090', 0)


@pytest.mark.parametrize(
    'name,columns',
    [
        ('collectives.csv', 'hardware collective gpus nodes bytes busbw_gbs'),
        ('peak_claims.csv', 'who gpu precision claimed'),
        ('aime_specs.csv', 'gpu cuda_cores bandwidth_gbs watt'),
    ],
)
def test_other_tables_have_sources(name, columns):
    rows = read_data(name)
    assert rows and all(
        r['source'] and r['date'] and all(r[c] not in (None, '') for c in columns.split()) for r in rows
    )


def test_lightnings_table_is_as_described():
    """The claims about Lightning's peaks hold for the version that is installed, or the page must change (read as
    text: importing it takes long)
    """
    spec = importlib.util.find_spec('lightning')
    if not spec or importlib.metadata.version('lightning') != '2.6.6':
        pytest.skip('the page speaks of Lightning 2.6.6')
    text = (Path(spec.origin).parent / 'fabric/utilities/throughput.py').read_text()
    table = {m[1]: float(m[2]) / 1e12 for m in re.finditer(r'"([a-z0-9 ]+)": \{[^}]*?torch\.bfloat16: ([\de.]+)', text)}
    want = {
        'h200 sxm1': 2000,
        'h100 nvl': 1978.8,
        'h100 sxm': 989.4,
        'rtx 4090': 82.6,
        'rtx 3090': 35.6,
        'a6000': 38.7,
        'a40': 37.4,
        'a10g': 125,
        'a100': 312,
    }
    assert {k: round(table[k], 1) for k in want} == want


def test_inductors_table_is_as_described():
    torch = pytest.importorskip('torch')
    if not torch.__version__.startswith('2.13'):
        pytest.skip('the page speaks of 2.13')
    from torch._inductor.analysis.device_info import _device_mapping as table

    l4 = table['NVIDIA L4']
    assert (l4.tops[torch.bfloat16], l4.tops_sparsity_factor, l4.dram_bw_gbs) == (242.0, 1, 3350)
