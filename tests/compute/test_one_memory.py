"""One answer to one question: what `memory.predict` reads from a model's graph, the planner computes from its sizes."""

import importlib.util
import warnings
from pathlib import Path
import pytest
from fsdl_tools.core import fix_torchvision, read_data

fix_torchvision()
from fsdl_tools.compute.gpus import Cluster
from fsdl_tools.compute.planner import estimate
from fsdl_tools.compute.step_memory import _block_units
from fsdl_tools.memory.predict import breakdown

spec = importlib.util.spec_from_file_location(
    'block_units', Path(__file__).parents[2] / 'benchmarks' / 'block_units.py'
)
counts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(counts)

# model type, sizes, batch, tokens: as their checkpoints have them, some with fewer layers
MODELS = dict(
    gpt2=('gpt2', dict(hidden=768, ffn=3072, layers=12, heads=12, kv=12, head_dim=64, vocab=50257), 8, 1024),
    gpt2_large=('gpt2', dict(hidden=1280, ffn=5120, layers=36, heads=20, kv=20, head_dim=64, vocab=50257), 4, 1024),
    tinyllama=('llama', dict(hidden=2048, ffn=5632, layers=22, heads=32, kv=4, head_dim=64, vocab=32000), 8, 2048),
    llama3=('llama', dict(hidden=4096, ffn=14336, layers=8, heads=32, kv=8, head_dim=128, vocab=128256), 2, 8192),
    mistral=('mistral', dict(hidden=4096, ffn=14336, layers=6, heads=32, kv=8, head_dim=128, vocab=32000), 4, 4096),
    qwen2=('qwen2', dict(hidden=896, ffn=4864, layers=24, heads=14, kv=2, head_dim=64, vocab=151936), 8, 2048),
    qwen3=('qwen3', dict(hidden=1024, ffn=3072, layers=28, heads=16, kv=8, head_dim=128, vocab=151936), 8, 2048),
    pythia=('gpt_neox', dict(hidden=2048, ffn=8192, layers=24, heads=16, kv=16, head_dim=128, vocab=50304), 4, 2048),
    opt=('opt', dict(hidden=2048, ffn=8192, layers=24, heads=32, kv=32, head_dim=64, vocab=50272), 4, 2048),
    starcoder2=(
        'starcoder2',
        dict(hidden=3072, ffn=12288, layers=10, heads=24, kv=2, head_dim=128, vocab=49152),
        2,
        4096,
    ),
    gemma3=('gemma3_text', dict(hidden=1152, ffn=6912, layers=26, heads=4, kv=1, head_dim=256, vocab=262144), 4, 2048),
    phi3=('phi3', dict(hidden=3072, ffn=8192, layers=10, heads=32, kv=32, head_dim=96, vocab=32064), 2, 4096),
    olmo2=('olmo2', dict(hidden=2048, ffn=8192, layers=16, heads=16, kv=16, head_dim=128, vocab=100352), 4, 4096),
    small_batch=('llama', dict(hidden=4096, ffn=11008, layers=16, heads=32, kv=32, head_dim=128, vocab=32000), 1, 256),
)
PRECISIONS = dict(fp32='precision=fp32', amp='precision=amp_bf16', bf16='precision=bf16,optimizer=adam16')


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    "The planner counts a fused kernel where heads of keys are few, as CUDA has one in fp32 since PyTorch 2.14"
    monkeypatch.setattr('fsdl_tools.memory.gpu._groups_with_mask', True)


def both(name, precision, recompute, folder):
    "Bytes at the peak by the graph and by the sizes"
    from transformers import AutoConfig

    model_type, sizes, batch, seq = MODELS[name]
    path = counts.configuration(model_type, folder, **sizes)
    kept = 'full' if recompute else 'none'
    layout = f'dp1,micro_batch={batch},recompute={kept},framework=transformers,{PRECISIONS[precision]}'
    e = estimate(AutoConfig.from_pretrained(path), layout, Cluster('A100-SXM-80GB', 1), batch, seq)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        b = breakdown(path, batch, seq, precision=precision, recompute=recompute)
    return b, e


@pytest.mark.sweep(12)
@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', MODELS)
def test_graph_and_sizes_agree_within_five_per_cent(name, precision, recompute, tmp_path):
    b, e = both(name, precision, recompute, tmp_path)
    assert b.kernels == 'cuda' and e.layout.framework == 'transformers'
    assert (e.allocated - e.first['fixed']) / b.peak == pytest.approx(1, abs=0.05)


@pytest.mark.sweep(1)
@pytest.mark.parametrize('architecture, precision', sorted(_block_units()))
def test_the_table_is_what_the_graph_says(architecture, precision):
    stored = next(
        r
        for r in read_data('block_units.csv', text=('date',))
        if (r['architecture'], r['precision']) == (architecture, precision)
    )
    assert {k: pytest.approx(stored[k], abs=0.02) for k in stored if k not in ('source', 'date')} == counts.row(
        architecture, precision
    )


def test_a_configuration_is_a_model_everywhere(tmp_path):
    "As a file, a folder and an object, for the profiler, the memory, the exporter and the planner"
    from transformers import AutoConfig
    from fsdl_tools.models.profile import profile
    from fsdl_tools.onnx.sources import open_model

    model_type, sizes, batch, seq = MODELS['gpt2']
    path = counts.configuration(model_type, tmp_path, **(sizes | dict(layers=2)))
    ways = [path, Path(path), tmp_path, AutoConfig.from_pretrained(path)]
    params = {profile(way, seq=8).params for way in ways} | {
        sum(p.numel() for p in open_model(way).module.parameters()) for way in ways
    }
    assert len(params) == 1
    assert len({breakdown(way, batch, seq).peak for way in ways}) == 1
    assert len({estimate(way, 'dp1', Cluster('H100', 1), batch, seq).allocated for way in ways}) == 1


def test_an_estimate_says_whose_blocks_it_counts():
    said = lambda model, how: ' '.join(estimate(model, how, Cluster('H100', 1), 1, 512).assumed)
    assert 'those of qwen3' in said('qwen3-4b', 'dp1,framework=transformers') and 'those of llama' in said(
        'gemma-2-9b', 'dp1,framework=transformers'
    )
    assert 'those of gpt2' in said('gpt2', 'dp1,framework=accelerate') and 'fused' in said('gpt2', 'dp1')
