"""Settings shared by all tests: one thread, quiet frameworks, slow and GPU tests on request."""
import os
for k, v in dict(OMP_NUM_THREADS='1', TF_CPP_MIN_LOG_LEVEL='3', JAX_PLATFORMS='cpu', HF_HUB_OFFLINE='1', MPLBACKEND='Agg').items(): os.environ.setdefault(k, v)
import shutil
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile('course', deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)
settings.load_profile('course')
ROOT = Path(__file__).parent.parent


def pytest_addoption(parser): parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name == 'test_frameworks.py')     # last: JAX and TensorFlow start threads, and other tests fork ranks
    def skip(item, why): item.add_marker(pytest.mark.skip(reason=why))
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'): skip(item, 'slow: run with --slow')
        if 'gpu' in item.keywords:
            import torch
            if not torch.cuda.is_available(): skip(item, 'no CUDA device')


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def browser():
    "A headless Chromium, driven by Playwright"
    exe = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
    if not exe: pytest.skip('no Chromium: apt install chromium')
    sync = pytest.importorskip('playwright.sync_api')
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, args=flags)
        yield b
        b.close()
