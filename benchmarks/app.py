"""How long a reader of the app waits: from a key on a slider to the new figures, in a real Chromium.

    python benchmarks/app.py --moves 40      # fsdl_tools/data/results/app.json; about two minutes

Each move is one key on a slider; it ends when the address holds the new value and the app has drawn its answer. What
the library itself
needs for the same answer is measured beside it, so that the rest is the app's and the browser's.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from fsdl_tools.parallel.ranks import free_port

data = Path(__file__).parent.parent / 'fsdl_tools' / 'data' / 'results' / 'app.json'
sliders = {'plan': 'GPUs of a machine', 'memory': 'Batch'}
READY = """([name, before]) => location.search !== before && !document.querySelector('[data-testid=stStatusWidget]')
  && document.querySelector('[data-testid=stMetricValue], [data-testid=stAlert]')"""


def served(port):
    "The app, once it answers"
    code = f'from fsdl_tools.app.screen import serve_app; serve_app({port})'
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code])
    for _ in range(300):
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}/_stcore/health', timeout=2).read()
            return process
        except OSError:
            time.sleep(0.2)
    raise SystemExit('the app does not answer')


def moves(page, url, name, label, count):
    "Seconds of so many moves of one slider"
    page.goto(f'{url}/?page={name}', wait_until='load')
    page.wait_for_selector('[data-testid=stMetricValue], [data-testid=stAlert]', timeout=60_000)
    box = page.locator('[data-testid=stSlider]').filter(has_text=label).get_by_role('slider')
    took = []
    for number in range(count):
        before = page.evaluate('location.search')
        box.focus()
        start = time.perf_counter()
        page.keyboard.press('ArrowRight' if number % 10 < 7 else 'ArrowLeft')
        page.wait_for_function(READY, arg=[name, before], timeout=60_000)
        took.append(time.perf_counter() - start)
    return took


def row(name, took):
    took = sorted(took)
    at = lambda share: round(1000 * took[min(len(took) - 1, int(share * len(took)))])
    return dict(
        page=name, moves=len(took), median_ms=round(1000 * statistics.median(took)), p95_ms=at(0.95), worst_ms=at(1)
    )


def main(count):
    from playwright.sync_api import sync_playwright

    port = free_port()
    process = served(port)
    try:
        with sync_playwright() as p:
            chromium = shutil.which('chromium') or shutil.which('google-chrome')
            browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
            page = browser.new_page()
            rows = [
                row(name, moves(page, f'http://127.0.0.1:{port}', name, label, count))
                for name, label in sliders.items()
            ]
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
    note = dict(date=str(datetime.date.today()), cpus=os.cpu_count(), load=round(os.getloadavg()[0], 1))
    data.write_text(json.dumps(dict(note=note, rows=rows), indent=1) + '\n')
    print(json.dumps(rows, indent=1))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--moves', type=int, default=40)
    main(parser.parse_args().moves)
