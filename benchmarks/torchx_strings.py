"""What becomes of an argument and of a variable in the batch script that torchx renders for SLURM.

    python benchmarks/torchx_strings.py [--check]

The script runs in bash, with a program in the place of srun that splits --export at commas, as SLURM's does, and says
what it was given. The result is fsdl_tools/data/results/torchx_strings.json; --check compares instead of writing. It
needs the side environment torchx.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fsdl_tools.core import data_path, read_results
from fsdl_tools.files import write_atomic
from fsdl_tools.environments import build_env, built, run_in

texts = {
    'a blank': 'a b',
    'YAML false': 'no',
    'a number to some': '1e3',
    'a quote': "it's",
    'a dollar sign': '$(HOME)',
    'a comma': 'a,b=c',
    'a template': '{{ x }}',
    'a line break': 'a\nb',
    'a carriage return': 'a\r',
    'a tab first': '\ta',
    'half a character': '\udcff',
    '200 letters': 'x' * 200,
    '1,000 letters': 'x' * 1000,
}

render = '''
from torchx.specs import AppDef, Resource, Role
from torchx.schedulers.slurm_scheduler import create_scheduler
def main(text):
    small = Resource(cpu=1, gpu=0, memMB=100)
    role = Role(name="probe", image="/tmp", entrypoint="echo", args=[text], env={"NOTE": text}, resource=small)
    return create_scheduler("s").submit_dryrun(AppDef(name="probe", roles=[role]), {}).request.materialize()
'''

srun = '''#!%s -S
import json, os, sys
words = [os.fsencode(w).hex() for w in sys.argv[1:] if not w.startswith("--")]
pairs = next(w for w in sys.argv if w.startswith("--export=")).partition("=")[2].split(",")
env = {k: v for k, _, v in (p.partition("=") for p in pairs)}
json.dump(dict(words=words, note=os.fsencode(env.get("NOTE", "")).hex()), open(os.environ["SAID"], "w"))
'''


def arrives(text):
    "(as an argument, as a variable): arrives, changed, or why there is no script"
    try:
        script = run_in('torchx', render, text)
        body = script.encode()
    except (UnicodeEncodeError, RuntimeError) as e:
        return dict.fromkeys(('argument', 'variable'), f'no script: {type(e).__name__}')
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / 'srun').write_text(srun % sys.executable)
        (Path(d) / 'srun').chmod(0o755)
        (Path(d) / 'job.sh').write_bytes(body)
        env = dict(PATH=f'{d}:{os.environ["PATH"]}', SAID=f'{d}/said', SLURM_JOB_ID='1')
        r = subprocess.run(['bash', f'{d}/job.sh'], env=env, capture_output=True, timeout=60, cwd=d)
        if r.returncode:
            return dict.fromkeys(('argument', 'variable'), 'the script fails')
        said = json.loads((Path(d) / 'said').read_text())
    want = os.fsencode(text).hex()
    word = {True: 'arrives', False: 'changed'}
    return dict(argument=word[said['words'][1:] == [want]], variable=word[said['note'] == want])


def main():
    "Measure, and write or compare"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true')
    check = p.parse_args().check
    built('torchx') or build_env('torchx')
    rows = [dict(text=name, **arrives(text)) for name, text in texts.items()]
    if check:
        sys.exit(0 if rows == read_results('torchx_strings')['rows'] else f'it is no longer so: {rows}')
    note = dict(date=datetime.date.today().isoformat(), torchx='0.7.0', python='.'.join(map(str, sys.version_info[:3])))
    result = json.dumps(dict(note=note, rows=rows), indent=1) + '\n'
    write_atomic(data_path('tables.csv').parent / 'results' / 'torchx_strings.json', result)
    for r in rows:
        print(r)


if __name__ == '__main__':
    main()
