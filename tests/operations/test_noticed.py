"""What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)

Files of trackers that are made here byte by byte, whole and torn, what sinks tell clients that only write down what
they are told, followers and comparisons. What they answer is kept beside the tests.
"""

import base64
import io
import itertools
import json
import math
import random
import sqlite3
import struct
import sys
import urllib.error
import zipfile
import zlib
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsdl_tools.units import GiB
from fsdl_tools.operations import (
    kubernetes,
    manifests,
    sinks,
    slurm_answers,
    sweep_trials,
    tracker_clients,
    tracking,
    tracking_archives,
    tracking_compare,
    tracking_files,
    tracking_read,
    tracking_stores,
    tracking_text,
)
from fsdl_tools.operations import wandb_files
from fsdl_tools.operations.launch import Job
from fsdl_tools.operations.sinks import JsonLines, _bytes_field, _double_field, _int_field
from fsdl_tools.operations.sinks import _text_event, event_record, scalar_event
from fsdl_tools.operations.tracking_files import Found
from fsdl_tools.operations.wandb_files import pieces
from fsdl_tools.training.runs import Run, Series

from ..answers import answer, same_answers


def record(content, kind=1, claims=None):
    crc = zlib.crc32(bytes([kind]) + content)
    return struct.pack('<IHB', crc, len(content) if claims is None else claims, kind) + content


@pytest.mark.parametrize(
    'claims, word',
    [(40, None), (41, 'where the file has 40'), (400, 'where the file has 40'), (32768, 'where its block has')],
)
def test_a_piece_that_claims_more_than_the_file_has_is_named(claims, word):
    b, said = b'\0' * 7 + record(b'a' * 9) + record(b'b' * 40, claims=claims), []
    got = list(pieces(b, said.append))
    assert [content for _, content in got] == [b'a' * 9] + [b'b' * 40] * (word is None) and (
        not said if word is None else word in said[0]
    )


@pytest.mark.parametrize(
    'step, whole, noted', [(3, 3, 0), (3.0, 3, 0), (3.7, 3, 1), (float('nan'), 0, 1), (float('inf'), 0, 1), ('4', 0, 1)]
)
def test_steps_are_whole_numbers(step, whole, noted, tmp_path):
    sink = JsonLines(tmp_path, {}, {}, {})
    assert sink.whole(step) == whole and sink.lost['decimal steps were rounded down'] == noted


def test_what_a_comet_run_says_of_itself():
    about = tracking_archives._comet_about(
        SimpleNamespace(path=Path('x/run.zip')), dict(project_name='digits', start_time=2000, stop_time=5000)
    )
    assert about == dict(id='run', project='digits', started=2.0, ended=5.0, status='finished')
    assert tracking_archives._comet_about(SimpleNamespace(path=Path('x/run.zip')), {}) == dict(
        id='run', project='', started=0.0, ended=0.0
    )


def shown(s):
    return [
        len(s),
        [*s.steps[:2], *s.steps[-1:]],
        sum(x for x in s.steps if isinstance(x, (int, float)) and x == x),
        [*s.values[:2], *s.values[-1:]],
        sum(v for v in s.values if math.isfinite(v)),
        [*s.times[:1], *s.times[-1:]],
    ]


def told(run):
    "What a run says, its metrics by their sums"
    d = {k: v for k, v in vars(run).items() if k not in ('metrics', 'artifacts') and v not in ('', 0.0, {}, [])}
    d |= dict(tags={k: v if len(str(v)) < 100 else len(v) for k, v in run.tags.items()}) if run.tags else {}
    return (
        d
        | dict(metrics={k: shown(s) for k, s in run.metrics.items()})
        | (dict(artifacts=[a.to_dict() for a in run.artifacts]) if run.artifacts else {})
    )


def all_told(read, path):
    "What a reader finds in a file, or which error it raises"

    def asked():
        runs = read(path)
        return [told(r) for r in (runs if isinstance(runs, list) else [runs])]

    found = answer(asked)
    return found.replace(str(Path(path).parent), '…') if isinstance(found, str) else found


def torn(b, seed, cuts=6, flips=6, first=0):
    "(name, bytes) of a file that ends early, or with one bit turned"
    r = random.Random(seed)
    for n in [0, 1, len(b) - 1, *(r.randrange(len(b)) for _ in range(cuts))]:
        yield f'cut at {n}', b[:n]
    for n in (r.randrange(first, len(b)) for _ in range(flips)):
        yield f'bit {n}', b[:n] + bytes([b[n] ^ 1 << r.randrange(8)]) + b[n + 1 :]


# ---- logs in blocks: W&B, SwanLab ----


def written(messages):
    "Messages as W&B writes them"
    out = bytearray(b':W&B\0\0\0')
    for m in messages:
        first = True
        while m or first:
            if (room := 32768 - len(out) % 32768) < 7:
                out += b'\0' * room
            room = 32768 - len(out) % 32768
            part, m = m[: room - 7], m[room - 7 :]
            out += record(part, (1 if first else 4) if not m else (2 if first else 3))
            first = False
    return bytes(out)


def field(n, *parts):
    return _bytes_field(n, b''.join(parts))


def text(n, s):
    return _bytes_field(n, s.encode() if isinstance(s, str) else s)


def item(key, value, nested=()):
    return field(1, text(1, key) if key else b'', *(text(2, k) for k in nested), text(16, value))


def test_pieces_of_records_come_back_as_they_were_written(request):
    r, found = random.Random(2), {}
    for sizes in (
        [0],
        [5, 0, 3],
        [32768 - 14],
        [32768 - 14 - 6, 9],
        [32768 - 14 - 7, 9],
        [32768 - 14 - 8, 9],
        [70_000, 1],
    ):
        messages = [bytes([65 + i]) * n for i, n in enumerate(sizes)]
        b, said = written(messages), []
        assert [m for _, m in pieces(b, said.append)] == messages and not said
        for name, damaged in [
            *torn(b, 3, 4, 4),
            ('hole', b[:20] + b'\0' * 40),
            ('odd kind', b + record(b'x', 5)),
            ('loose end', b + record(b'x', 4)),
            ('begins', b + record(b'x', 2)),
            ('middle', b + record(b'x', 3)),
            ('twice', b + record(b'x', 2) + record(b'y', 2)),
            ('empty crc', b + b'\1' + b'\0' * 6),
            ('empty', b + b'\0' * 7),
            ('short head', b + b'\0' * 6),
            ('sized', b + b'\0\0\0\0\1\0\0'),
            ('kind', b + b'\0' * 6 + b'\1'),
        ]:
            said = []
            found[f'{sizes} {name}'] = [[[o, len(m)] for o, m in pieces(damaged, said.append)], said]
    same_answers(request, 'pieces', found)


def wandb_file():
    "Records of every kind that is read, and some that are not"
    row = lambda _step_, **values: field(
        1 + 1,
        *(item(k, v) for k, v in values.items()),
        *([field(2, _int_field(1, _step_))] if _step_ is not None else []),
    )
    run = field(
        17,
        text(1, 'r1'),
        text(3, 'proj'),
        text(8, 'name'),
        field(4, item('lr', '0.1'), item('_hid', '1'), item('', '{"a": 1}', ('x', 'y'))),
        text(10, 'k=v=w'),
        text(10, 'plain'),
        field(17, _int_field(1, 1234)),
        _int_field(2, 5),
    )
    metric = lambda *texts: field(12, *(text(n, t) for n, t in texts))
    rows = [
        row(0, loss='1.5', acc='"NaN"', _timestamp='7.5', step='10', text='"odd"', on='true', off='false'),
        row(1, loss='"Infinity"', step='11.5', acc='"-Infinity"'),
        row(None, loss='2', _step='7'),
        row(None, loss='3', _step='NaN'),
        row(4, loss='NaN', step='Infinity'),
        row(5, loss='null', fsdl_time='99.5', x='1', eval_a='4'),
        row(6, **{'a': '4', 'long' + 'x' * 200: '5', 'b': '1' + '0' * 130}),
        field(
            2,
            item('', '8', ('n', 'm')),
            item('k', '9', ('z',)),
            _int_field(1, 3),
            field(2, _int_field(1, -3 & 2**64 - 1)),
        ),
    ]
    summary = field(3, item('tag.who', '"me"'), item('tag.n', '3'), item('loss', '4'))
    return [
        run,
        metric((1, 'acc'), (4, 'step')),
        metric((2, 'eval_*'), (4, 'x')),
        metric(
            (1, 'lone'),
        ),
        *rows,
        summary,
        field(5, item('more', '[1]'), item('fsdl_x', 'true')),
        field(6, text(1, 'x')),
        _int_field(7, 3),
    ]


def test_files_of_wandb_and_swanlab(request, tmp_path):
    found, place = {}, tmp_path / 'run.wandb'
    base = wandb_file()
    ours, ends = (
        field(5, item('fsdl_run', '"id"')),
        [field(18, _int_field(1, n)) for n in (0, 3)] + [field(18, text(1, 'x'))],
    )
    star = field(12, text(2, '*'), text(4, 'step'))
    for name, messages in dict(
        base=base,
        ours=[*base, ours],
        finished=[*base[:3], ends[0]],
        failed=[*base[:3], ends[1]],
        odd=[*base[:3], ends[2]],
        star=[star, *base],
        broken=[*base[:5], b'\x12\x7f', *base[5:7], b'\x13', field(5, item('j', '{'))],
        empty=[],
    ).items():
        place.write_bytes(written(messages))
        found[f'wandb {name}'] = all_told(wandb_files.read_wandb, place)
    whole = written([*base, ends[0]])
    for name, b in torn(whole, 5, 6, 6, 7):
        place.write_bytes(b)
        found[f'wandb {name}'] = all_told(wandb_files.read_wandb, place)
    scalar = lambda name, step, value=None, seconds=0, nanos=0, more=b'': field(
        13,
        text(1, name),
        _int_field(2, step),
        field(4, _int_field(1, seconds), _int_field(2, nanos)) if seconds else b'',
        field(5, _double_field(1, value) if value else b'') if value is not None else b'',
        more,
    )
    about = field(10, text(1, 'p'), text(4, 'n'), text(10, 'id'), text(5, 'x'))
    swan = [
        about,
        scalar('loss', 3, 1.5, 100, 500_000_000),
        scalar('loss', -2 & 2**64 - 1, 0, 7),
        scalar('none', 1),
        scalar('loss', 5, 2.0, more=_int_field(9, 4)),
    ]
    (tmp_path / 'files').mkdir()
    (tmp_path / 'files' / 'config.yaml').write_text('lr:\n  value: 0.1\n  desc: x\nplain: 3\nother: {a: 1}\n')
    place = tmp_path / 'run.swanlab'
    for n in (None, 0, 1, 2, 3, 4):
        place.write_bytes(written([*swan, *([field(11, _int_field(1, n))] if n is not None else [])]))
        found[f'swanlab {n}'] = all_told(wandb_files.read_swanlab, place)
    place.write_bytes(
        written([field(11, text(1, 'x')), field(13, text(1, 'bad'), field(5, text(1, '1234567'))), scalar('a', 1, 2.0)])
    )
    found['swanlab odd'] = all_told(wandb_files.read_swanlab, place)
    for raw in (
        b'1',
        b'1e3',
        b'"NaN"',
        b'"Infinity"',
        b'"-Infinity"',
        b'"x"',
        b'true',
        b'false',
        b'null',
        b'',
        b'nan',
        b'{}',
    ):
        found[f'scalar {raw}'] = wandb_files._scalar_json(raw)
    for key, value in itertools.product(('k', 'k' * 127, 'k' * 128, ''), ('1', '1' * 127, '1' * 128, '')):
        b = b'..' + item(key, value)[2 if len(key) + len(value) < 110 else 3 :] + b'..'
        for end in (0, 1):
            found[f'item {len(key)} {len(value)} {end}'] = answer(
                lambda: [len(x) for x in wandb_files._item(b, 2, len(b) - 2 - end)]
            )
    with pytest.MonkeyPatch.context() as m:
        m.setattr(wandb_files, '_any_item', lambda *a: None)
        for key, value in itertools.product(('', 'k', 'k' * 127, 'k' * 128), ('', '1', '1' * 127, '1' * 128)):
            b = text(1, key) + text(16, value)
            found[f'at once {len(key)} {len(value)}'] = [
                wandb_files._item(x + b + y, len(x), len(x + b)) is not None for x, y in ((b'', b''), (b'..', b'..'))
            ]
    for name in ('a', 'eval_x', 'eval_', 'b', ''):
        found[f'axis {name}'] = (
            wandb_files._axis(name, {'a': 'x', 'eval_*': 'y', 'c': 'z'}),
            wandb_files._axis(name, {'*': 'all', 'a': 'x'}),
        )
    for at in (3.0, 3.5, math.nan, math.inf):
        found[f'at {at}'] = [wandb_files._axis_step(f := Found('p', 's'), 'x', at, 9), f.warnings]
    for own in (None, 3.0, 3.7, math.nan, math.inf):
        found[f'own {own}'] = wandb_files._wandb_step({} if own is None else dict(_step=own))
    same_answers(request, 'blocks', found)


# ---- event files ----


def float_value(name, x):
    return field(1, text(1, name), _varfloat(2, x))


def _varfloat(n, x):
    return sinks._varint(n << 3 | 5) + struct.pack('<f', x)


def event(t, step, *values):
    return (
        (_double_field(1, t) if t is not None else b'')
        + (_int_field(2, step) if step is not None else b'')
        + field(5, *values)
    )


def tensor(name, *parts):
    return field(1, text(1, name), field(8, *parts))


def test_event_files(request, tmp_path):
    r, found, place = random.Random(4), {}, tmp_path / 'events.out.tfevents.1'
    narrow = [struct.unpack('<f', struct.pack('<f', r.gauss(0, 1)))[0] for _ in range(300)]
    plain = [event_record(event(100.0 + i, i, float_value('loss', v))) for i, v in enumerate(narrow)]
    double = [event_record(scalar_event(100.0 + i, i * 1000, [('a', float(i)), ('b', -float(i))])) for i in range(40)]
    layouts = [event_record(event(1.0, i, float_value(f'm{i % 70:02d}', float(i)))) for i in range(210)]
    odd = [
        event(None, 3, float_value('no time', 1.0)),
        event(2.0, None, float_value('no step', 1.0)),
        event(2.0, -5 & 2**64 - 1, float_value('minus', 1.0)),
        event(2.0, 1, tensor('double', _int_field(1, 2), _double_field(6, 2.5))),
        event(2.0, 1, tensor('float', _int_field(1, 1), _varfloat(5, 3.5))),
        event(2.0, 1, tensor('packed', _int_field(1, 1), text(5, struct.pack('<f', 4.5)))),
        event(2.0, 1, tensor('raw', _int_field(1, 2), text(4, struct.pack('<d', 5.5)))),
        event(2.0, 1, tensor('raw4', _int_field(1, 1), text(4, struct.pack('<f', 6.5)))),
        event(2.0, 1, tensor('two', _int_field(1, 1), text(5, b'12345678'))),
        event(2.0, 1, tensor('wrong', _int_field(1, 3), text(5, b'1234'))),
        event(2.0, 1, tensor('words', _int_field(1, 7), text(8, 'hello'))),
        event(2.0, 1, field(1, text(1, 'eight'), text(2, b'12345678'))),
        event(2.0, 1, field(1, text(1, 'whole'), _int_field(2, 7), _int_field(8, 1))),
        event(2.0, 1, text(2, b'abc')),
        text(1, b'abc') + event(None, 2, float_value('short time', 1.0)),
        event(7.0, 2, text(1, b''), float_value('among', 1.0)),
        _int_field(1, 5) + _int_field(2, 6) + _int_field(5, 1),
        event(2.0, 1, field(1, text(1, 'late kind'), field(8, text(5, b'1234'), _int_field(1, 1)))),
        text(1, b'12345678') + event(None, 2, float_value('x', 1.0)),
        _text_event(3.0, 'note', 'n' * 10_050),
        _text_event(3.0, 'fsdl_run', '{"id": "me", "name": "", "params": {"a": 1}}'),
        _text_event(3.0, 'fsdl_run', '[1]'),
        _text_event(3.0, 'fsdl_event', '{"end": "finished", "tags": {"k": "v"}, "params": 3}'),
        _text_event(3.0, 'fsdl_event', '{'),
        _text_event(3.0, 'fsdl_event', '{"artifact": {"name": "f", "bytes": 3}}'),
        _text_event(3.0, 'fsdl_event', '{"artifact": {"odd": 3}}'),
        b'\x0b',
        b'\x12',
        b'\x0a\x7f',
        b'\x15\0\0',
        b'\xff' * 11,
    ]
    files = dict(
        plain=plain,
        double=double,
        layouts=layouts,
        odd=[event_record(e) for e in odd],
        mixed=[*plain[:50], *double[:5], *(event_record(e) for e in odd[:6]), *plain[50:60]],
        none=[],
        big=[
            event_record(event(1.0, s, float_value('x', 1.0)))
            for s in (0, 1, 127, 128, 300, 2**31, 2**62, 2**63, 2**64 - 1)
        ],
        twice=[
            event_record(event(1.0, i, float_value('a', 1.0 + i), float_value('b', 2.0 + i), float_value('a', 3.0)))
            for i in range(4)
        ],
    )
    for name, records in files.items():
        place.write_bytes(b''.join(records))
        found[name] = all_told(tracking_files.read_tensorboard, place)
    assert tracking_files.read_tensorboard(tmp_path).metrics['a'].steps == [i for i in range(4) for _ in range(2)]
    for name, b in [
        *torn(b''.join(plain[:30] + double[:10]), 6, 6, 8),
        ('too long', plain[0] + struct.pack('<Q', 41) + b'x' * 52),
        ('just fits', plain[0] + struct.pack('<Q', 40) + b'x' * 52),
        ('head only', plain[0] + b'x' * 15),
        ('head', plain[0] + struct.pack('<Q', 0) + b'x' * 8),
    ]:
        place.write_bytes(b)
        found[f'plain {name}'] = all_told(tracking_files.read_tensorboard, place)
    place.write_bytes(plain[0])
    (tmp_path / 'b.tfevents').write_bytes(plain[1] + b'x')
    found['folder'] = {k: v for k, v in all_told(tracking_files.read_tensorboard, tmp_path)[0].items() if k != 'id'}
    (tmp_path / 'none').mkdir()
    found['empty'] = all_told(tracking_files.read_tensorboard, tmp_path / 'none')
    for b in (
        b'',
        b'\x08\x05',
        b'\x08',
        b'\x08\x80',
        b'\x08' + b'\xff' * 9 + b'\x01',
        b'\x08' + b'\xff' * 10 + b'\x01',
        b'\x0a\x02ab',
        b'\x0a\x02a',
        b'\x0a\x03ab',
        b'\x09' + b'x' * 8,
        b'\x09' + b'x' * 7,
        b'\x0d1234',
        b'\x0d123',
        b'\x0b',
        b'\x0e',
        b'\x80\x01\x05',
        b'\x08\x05\x12\x01x\x1d1234',
    ):
        found[f'fields {b.hex()}'] = answer(
            lambda: [list(tracking_files.fields(b)), list(tracking_files.fields(b'!' + b + b'!', 1, len(b) + 1))]
        )
    for n in (0, 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1):
        found[f'signed {n}'] = [
            tracking_files._signed(n),
            sinks._varint(n).hex(),
            sinks._varint(-1 if n == 1 else n).hex(),
        ]
    found['as double'] = [
        answer(tracking_files._double, struct.pack('<d', 1.5) * 2, a, b) for a, b in ((0, 8), (8, 16), (0, 7), (0, 9))
    ]
    import numpy as np

    for most in (1, 40, 100, 10**6):
        for around in (0, 16):
            found[f'portions {most} {around}'] = [
                [s, p.tolist()] for s, p in tracking_files._portions(np.array([5, 7, 5, 5, 9, 7]), around, most, np)
            ]
    found['crcs'] = [sinks.masked_crc(b) for b in (b'', b'a', b'123456789', bytes(range(256)))] + [
        sum(sinks._crc_table()),
        sinks._crc_table() == sinks._crcs,
    ]
    rows = np.frombuffer(b'12345678abcdefgh', np.uint8).reshape(2, 8)
    found['columns'] = [
        tracking_files._column_crcs(rows, np.array(sinks._crcs, np.uint32), np).tolist(),
        sinks.masked_crc(b'12345678'),
        tracking_files._rows(rows[0], np.array([1, 2]), 0, np).shape,
        tracking_files._varints(rows, np).tolist(),
    ]
    for name, records in files.items():
        b = b''.join(records)
        starts, sizes = tracking_files._sound(b, Found('p', 's'))
        a = np.frombuffer(b, np.uint8)
        found[f'groups of {name}'] = [
            [s, len(like), max(like)]
            for s, p in tracking_files._portions(sizes, 0, 2**26, np)
            for like in [[len(g) for _, g in tracking_files._layouts(b, a, starts[p], s, print, np)]]
            if name != 'odd'
        ]
    same_answers(request, 'events', found)


# ---- lines and tables ----


def test_lines_and_tables(request, tmp_path):
    found = {}

    def ask(name, read, content, file='file', folder='a'):
        place = tmp_path / folder / file
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        found[name] = all_told(read, place)

    lines = [
        '{"run": {"id": "x", "name": "n", "params": {"a": 1}, "tags": {"t": "u"}, "project": ""}}',
        '{"step": 3, "loss": 1, "time": 5}',
        '{"_step": 4, "loss": "NaN", "_timestamp": 6.5}',
        '{"loss": true, "t": 7}',
        '{"loss": "x"}',
        '{"loss": [1]}',
        '{"metrics": {"loss": 2, "step": 9}, "step": 8}',
        '{"metrics": 3, "end": "x"}',
        '{"params": {"b": 2}}',
        '{"tags": 5, "end": "failed"}',
        '{"artifact": {"name": "f"}}',
        '{"artifact": {"nam": "f"}}',
        '[1]',
        '{',
        '',
        '{"step": "a", "loss": 1e400}',
        '{"run": 3, "x": 1}',
        '{"loss": ' + '1' + '0' * 400 + '}',
        '{"step": true, "loss": -inf}',
        '[' * 2000,
        '\xff',
        '{"loss": -1' + '0' * 400 + ', "step": 2.5, "t": "y"}',
    ]
    ask('jsonl', tracking_text.read_jsonl, '\n'.join(lines))
    for i, line in enumerate(lines[1:16]):
        ask(f'jsonl {i}', tracking_text.read_jsonl, '{"step": 1, "a": 1}\n' + line)
    rows = [dict(step=5, loss=1.5, epoch=0.5), dict(loss=2), 3, dict(step=6, loss=math.nan)]
    state = json.dumps(dict(max_steps=9, num_train_epochs=2, odd=1, log_history=rows))
    for name, content in dict(
        whole=state,
        named=json.dumps(dict(trial_name='t', log_history=3)),
        list='[]',
        torn=state[:90],
        later=state[:-30],
        nothing='x',
        deep='[' * 100_000,
        bytes='\xff',
        inside='{"x": {"y": 1}, "log_history": [{"a": 1}, {"b": }, {"c": 2}]',
    ).items():
        ask(f'state {name}', tracking_text.read_trainer_state, content, 'trainer_state.json')
    (tmp_path / 'h').mkdir()
    (tmp_path / 'h' / 'hparams.yaml').write_text('lr: 0.1\n')
    tables = dict(
        plain='step,loss,acc\n0,1,2\n1,,3\n2,x,4\n',
        nostep='loss\n1\n2\n',
        oddstep='step,a\nx,1\n1.5,2\nnan,3\ninf,4\n,5\n-3,6\n1e3,7\n',
        wide='a,b\n1\n1,2,3\n1,2,3,4\n',
        twice='a, a ,a,b\n1,2,3,4\n',
        bom='\ufeffstep,a\n1,2\n',
        quotes='"step","a"\n1,"2\n',
        nul='a\n1\0\n',
        empty='',
        header='step,loss\n',
        numbers='a\n1_0\n1e309\n-inf\nNaN\n+5.\n.5e-3\n 7 \nInfinity\n1e5x\n',
        long='a\n"' + 'x' * 300 + '"\n',
        spaces='step , a\n 1 , 2\n',
    )
    for name, content in tables.items():
        ask(
            f'csv {name}',
            tracking_text.read_csv,
            content,
            'metrics.csv' if name in ('plain', 'bom') else 't.csv',
            'h' if name in ('plain', 'numbers') else 'c',
        )
    for name, content in dict(
        dict='a: 1', list='- 1', bad='a: [', text='x', large='a: ' + 'x' * 10_000_000, edge='a: ' + 'x' * 9_999_997
    ).items():
        (tmp_path / 'y.yaml').write_text(content)
        said = []
        got = tracking_text.yaml_values(tmp_path / 'y.yaml', said.append) if name != 'edge' else {}
        found[f'yaml {name}'] = [list(got), [s[:12] for s in said]]
    found['no yaml'] = tracking_text.yaml_values(tmp_path / 'none', print)
    f = Found(Path('d/run.x'), 'src')
    for v in (True, 'NaN', 'nan', '-inf', 'Infinity', 'x', None, 3, 10**400, -(10**400), 2.5):
        f.number('a', 1, v, 2.0)
    for i in range(102):
        f.warn(str(i))
    found['found'] = [
        shown(f.metrics['a']),
        f.metrics['a'].values[:5],
        len(f.warnings),
        f.warnings[-1],
        told(f.run(id='z'))['id'],
        f.run().id,
        Found('', 's').run().id,
    ]
    found['loads'] = [answer(tracking_files.loads, t) for t in ('1', b'"\xff"', '[' * 100_000)]
    same_answers(request, 'lines', found)


# ---- archives and operations ----


def zipped(files, b=None):
    "An archive as bytes"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def test_archives(request, tmp_path):
    found, place = {}, tmp_path / 'run.zip'

    def ask(name, read, b):
        place.write_bytes(b)
        found[name] = all_told(read, place)

    line = lambda kind, **p: json.dumps(dict(type=kind, payload=p))
    metric = lambda name, value, step=None, t=None: line(
        'metric_msg',
        metric=dict(metricName=name, metricValue=value, step=step),
        **({'local_timestamp': t} if t else {}),
    )
    messages = [
        metric('loss', 1.5, 3, 2000),
        metric('loss', 'NaN'),
        metric('loss', None, 4),
        line('parameter_msg', param=dict(paramName='a|b', paramValue=1)),
        line('parameter_msg', param=dict(paramName='cli', paramValue=1, source='cli')),
        line('log_other', key='Name', value='n'),
        line('log_other', key='fsdl_run', value='r'),
        line('log_other', key='hasNestedParams', value=1),
        line('log_other', key='who', value=2),
        line('other'),
        '{',
        '[]',
        '{"type": "metric_msg"}',
        '{"type": "metric_msg", "payload": {}}',
        '3',
    ]
    head = dict(offline_id='o', project_name='p', start_time=1000, stop_time=4000)
    body = '\n'.join(messages)
    for name, files in dict(
        whole={'experiment.json': json.dumps(head), 'messages.json': body},
        alone={'messages.json': body + '\n'},
        without={'x': '1'},
        running={'experiment.json': '{"start_time": 5000}', 'messages.json': ''},
        list={'experiment.json': '[]', 'messages.json': messages[0]},
        bad={'experiment.json': '{', 'messages.json': messages[0]},
        odd={'experiment.json': '{"start_time": "x"}', 'messages.json': messages[0]},
        escapes={'../x': '', '/y': '', 'a/../b': '', '\\z': '', 'messages.json': messages[0]},
    ).items():
        ask(f'comet {name}', tracking_archives.read_comet, zipped(files))
    lines = '\n'.join(metric('loss', i / 7, i, 1000 + i) for i in range(900))
    r = random.Random(7)
    stored = zipped({'messages.json': lines, 'experiment.json': json.dumps(head)})
    for n in [0, 10, len(stored) - 1, len(stored) // 2]:
        ask(f'comet cut {n}', tracking_archives.read_comet, stored[:n])
    for n in (200, 1000, 3000):
        place.write_bytes(stored[:n] + bytes([stored[n] ^ 255]) + stored[n + 1 :])
        run = tracking_archives.read_comet(place)[0]
        assert run.warnings and len(run.metrics.get('loss', ())) < 900
    scalar = lambda **kw: (
        dict(type='training_stats_scalar', metric='loss', variant='loss', value=1.5, iter=3, timestamp=2000) | kw
    )
    task = dict(
        id='t',
        name='n',
        project_name='p',
        tags=['k=v', 'plain', 3],
        hyperparams=dict(
            params=dict(
                lr=dict(type='float', value='0.1'),
                n=dict(type='int', value='3'),
                b=dict(type='bool', value='True'),
                c=dict(type='bool', value='true'),
                s=dict(value='x'),
            ),
            fsdl=dict(run=dict(value='me'), status=dict(value='finished'), other=dict(value='o')),
            Args=dict(a=dict(value=1)),
            Own=dict(a=dict(value=2)),
        ),
    )
    events = json.dumps(
        [
            scalar(),
            scalar(variant='val'),
            scalar(type='plot'),
            scalar(iter=None, timestamp=None),
            dict(type='training_stats_scalar'),
            3,
            scalar(value='x'),
            scalar(timestamp='x'),
        ]
    )
    for name, files in dict(
        whole={'task.json': json.dumps(task), 'metrics.jsonl': events},
        task={'task.json': json.dumps(task)},
        bad={'task.json': '{', 'metrics.jsonl': events[:-60]},
        noid={'task.json': '{}', 'metrics.jsonl': '{}\n3\n[]\n' + events},
        odd={'task.json': json.dumps(task | dict(hyperparams=dict(params=dict(x=dict(type='int', value='y')))))},
        tight={'metrics.jsonl': json.dumps([scalar(), scalar()], separators=(',', ':'))[:-1]},
        garbage={'metrics.jsonl': '[{"a": 1}], x\n[1 2]\nx'},
        none={},
    ).items():
        ask(f'clearml {name}', tracking_archives.read_clearml, zipped(files))
    for t in ('[1, 2, 3', '[1,2] 3', '[1', '', 'x', '[{"a": 1}, {"b": ', '[1,  2', '[1] ]', '[]'):
        found[f'break {t}'] = (
            [list(tracking_archives._objects_before_the_break(t, lambda at, why: said.append([at, why[:20]]))), said]
            if (said := []) is not None
            else None
        )
    for content in (b'', b'a', b'a\n', b'a\nb', b'\n\n', b'x' * 5000 + b'\n' + b'y' * 9000, b'ab\ncd\n'):
        found[f'lines {content[:9]} {len(content)}'] = [
            [len(x) for x in tracking_archives._lines_before_the_break(io.BufferedReader(io.BytesIO(content)), n)]
            for n in (3, 4096, 10**6)
        ]
    place.write_bytes(zipped({'m': 'x' * 99 + '\n' + 'y' * 9 + '\nz'}))
    with zipfile.ZipFile(place) as z:
        found['offsets'] = [[o, len(x)] for o, x in tracking_archives._archived_lines(z, 'm', Found('p', 's'), 1)]
    ops = [
        dict(
            obj=dict(
                type='LogFloats',
                path=['a', 'b'],
                values=[dict(value=1.5, step=3, ts=9), dict(value=2), dict(value='NaN', step=None)],
            )
        ),
        dict(obj=dict(type='AssignFloat', path=['lr'], value=0.1)),
        dict(obj=dict(type='AssignString', path=['sys', 'name'], value='n')),
        dict(obj=dict(type='AssignInt', path=['sys', 'name'], value=4)),
        dict(obj=dict(type='AssignString', path=['monitoring', 'x'], value=1)),
        dict(obj=dict(type='Other', path=['q'])),
        dict(x=1),
        3,
        dict(obj=dict(type='LogFloats', path=['a', 'b'], values=[dict(value=5)])),
        dict(obj=3),
        dict(obj=dict(path=['a'])),
        dict(obj=dict(type='AssignX', path=['sys', 'id'], value=1)),
    ]
    text = ' ' + '\n'.join(map(json.dumps, ops)) + '\0'
    (tmp_path / 'off').mkdir()
    for name, content in dict(
        whole=text, cut=text[:100], odd=text[:200] + '!' + text[200:], empty='', deep='[' * 100_000
    ).items():
        (tmp_path / 'off' / 'data-1.log').write_text(content)
        found[f'neptune {name}'] = all_told(tracking_archives.read_neptune_offline, tmp_path / 'off')
    (tmp_path / 'off' / 'data-2.log').write_text(text)
    found['neptune two'] = [
        all_told(tracking_archives.read_neptune_offline, p) for p in (tmp_path / 'off', tmp_path / 'off' / 'data-2.log')
    ]
    (tmp_path / 'nothing').mkdir()
    found['neptune none'] = all_told(tracking_archives.read_neptune_offline, tmp_path / 'nothing')
    same_answers(request, 'archives', found)


def test_exports_of_neptune(request, tmp_path):
    import datetime

    found, keys = {}, ('float_series', 'float', 'int', 'string', 'bool', 'file')
    said, runs = Found('p/x', 'neptune'), {}
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = [
        ('p', 'r', 'loss', k, s, t, *v)
        for k in keys
        for s, t, v in (
            (Decimal('1.000000'), 5.0, (1.5, None, None, None)),
            (2.5, when, (None, 3, None, None)),
            (None, when.replace(tzinfo=None), (None, None, 'x', None)),
            (3.0, None, (None, None, None, False)),
            (Decimal('1e18') + Decimal('.1'), None, (2.0, None, None, None)),
            (1, None, (None,) * 4),
        )
    ]
    rows += [
        (None, 'q', 'sys/name', 'odd', None, None, None, None, 'n', None),
        ('p', None, 'a', 'int', None, None, 1),
        ('p', 'r', None, 'int', None, None, 1),
        ('p', 'q', 'sys/name', 'string', None, None, None, None, 'm', None),
        ('o', 'r', 'f', 'file', None, None, None, None, 'm', None),
        ('o', 'r', 'g', 'file', None, None, None, None, 'm', None),
    ]
    for row in rows:
        tracking_archives._export_row(runs, said, 'p/x', *row)
    found['rows'] = [[told(f.run()) for f in runs.values()], said.warnings]
    found['seconds'] = [tracking_archives._seconds(x) for x in (None, 0.0, 5.5, when, when.replace(tzinfo=None))]
    import pyarrow as pa
    import pyarrow.parquet as pq

    cols = dict(
        project_id=['p'] * 3,
        run_id=['r', 'r', 's'],
        attribute_path=['loss'] * 3,
        attribute_type=['float_series'] * 3,
        float_value=[1.5, 2.5, 3.5],
        timestamp=pa.array([1000, None, 3000], pa.timestamp('ms', 'UTC')),
        step=pa.array([Decimal(1), Decimal('2.5'), None], pa.decimal128(18, 6)),
    )
    for name, table in dict(
        whole=cols,
        nostep={k: v for k, v in cols.items() if k != 'step'},
        other=dict(a=[1], b=[2]),
        untyped={k: v for k, v in cols.items() if k != 'attribute_type'},
        large=cols | dict(step=pa.array([Decimal(10) ** 30, None, Decimal(1)], pa.decimal128(38, 6))),
        none={k: v[:0] for k, v in cols.items()},
        floats=cols | dict(step=[1.0, 2.5, None], timestamp=[1.0, 2.0, None]),
    ).items():
        pq.write_table(pa.table(table), tmp_path / 'e.parquet')
        found[name] = all_told(tracking_archives.read_neptune_export, tmp_path / 'e.parquet')
    same_answers(request, 'exports', found)


# ---- databases and folders ----


def database(path, script, **tables):
    "A SQLite file"
    Path(path).unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.executescript(script)
    for table, rows in tables.items():
        for row in rows:
            db.execute(f'insert into {table} values ({",".join("?" * len(row))})', row)
    db.commit()
    db.close()
    return path


def test_databases(request, tmp_path):
    found, place = {}, tmp_path / 'p.db'
    columns = dict(
        runs='run_uuid, name, status, start_time, end_time, experiment_id',
        params='key, value, run_uuid',
        metrics='key, value, timestamp, step, is_nan, run_uuid',
        tags='key, value, run_uuid',
    )
    made = ''.join(f'create table {table}({names});' for table, names in columns.items())
    content = dict(
        runs=[
            ('b', 'n', 'FINISHED', 2000, 5000, 1),
            ('a', None, 'ODD', 1000, None, 2),
            ('c', 'x', 'KILLED', 'late', 0, None),
        ],
        metrics=[
            ('loss', 1.5, 2000, 0, 0, 'b'),
            ('loss', 2, None, 1, 1, 'b'),
            ('loss', 'x', 1, 1, 0, 'b'),
            ('loss', 1.0, 1, 1.5, 0, 'b'),
            ('loss', 1.0, 1, 1, 0, 'zz'),
            ('acc', 3.0, 'w', 7, 0, 'a'),
        ],
        params=[('lr', '.1', 'b'), (3, 4, 'a'), ('q', 1, 'zz')],
        tags=[
            ('mlflow.source.git.commit', 'abc', 'b'),
            ('fsdl.run', 'mine', 'b'),
            ('mlflow.user', 'me', 'b'),
            ('k', 5, 'b'),
        ],
    )
    database(place, made + 'create table experiments(experiment_id, name);', **content, experiments=[(1, 'exp')])
    found['mlflow'] = all_told(tracking_stores.read_mlflow, place)
    database(place, made, **content)
    found['mlflow without'] = all_told(tracking_stores.read_mlflow, place)
    database(place, 'create table runs(a); create table metrics(b)')
    found['mlflow not'] = all_told(tracking_stores.read_mlflow, place)
    database(place, made.replace('start_time', 'begun'))
    found['mlflow other'] = answer(lambda: all_told(tracking_stores.read_mlflow, place))[:40]
    rows = [
        (1, '2026-01-01T00:00:00+00:00', 'n', 0, '{"loss": 1.5, "x": "NaN", "t": "a"}'),
        (2, 'odd', 'n', 1, '{'),
        (3, None, 'n', 2, None),
        (4, '2026-01-01T00:00:01+00:00', 'm', 3, '[1]'),
        (5, '2026-01-01T00:00:02+00:00', 'm', 4, '{"loss": 9}'),
    ]
    old = 'create table metrics(id, timestamp, run_name, step, metrics); create table configs(run_name, config);'
    for name, script, more in (
        ('old', old, dict(configs=[('n', '{"lr": 1, "_u": 2}'), ('zz', '{}'), ('m', 'x')])),
        ('bare', old.partition(' create table configs')[0], {}),
    ):
        database(place, script, metrics=rows, **more)
        found[f'trackio {name}'] = all_told(tracking_stores.read_trackio, place)
    database(
        place,
        'create table metrics(id, timestamp, run_name, step, metrics, run_id); create table configs(run_id, config)',
        metrics=[(*r, i if (i := r[0]) != 4 else None) for r in rows],
        configs=[(1, '{"lr": 1}'), (5, None)],
    )
    found['trackio new'] = all_told(tracking_stores.read_trackio, place)
    database(place, 'create table configs(a)')
    found['trackio not'] = all_told(tracking_stores.read_trackio, place)
    value = lambda *parts: field(2, *parts)
    entry = lambda n, name, *parts: field(n, text(1, name), value(*parts))
    update = lambda *parts: b''.join(parts)
    at = lambda whole, micro=None: field(1, _int_field(1, whole), _int_field(2, micro) if micro is not None else b'')
    ops = [
        update(
            at(3, 500_000),
            field(2, _int_field(1, 7), _int_field(2, 250_000_000)),
            entry(8, 'loss', _double_field(1, 1.5)),
            entry(8, 'n', _int_field(3, -2 & 2**64 - 1)),
        ),
        update(at(4, 0), entry(8, 'loss', _double_field(1, 2.0))),
        update(
            entry(4, 'lr', _double_field(1, 0.1)),
            entry(4, 'on', _int_field(5, 1)),
            entry(4, 'name', text(6, 'x')),
            entry(4, 'odd', text(7, 'y')),
        ),
        update(entry(8, 'loss', text(1, '123'))),
        b'\x0b',
        update(
            at(1),
            entry(8, 'late', _double_field(1, 3.0)),
            entry(8, 'b', _int_field(5, 0)),
            entry(4, 'wrong', _int_field(1, 3), text(3, 'x'), text(5, 'z'), _int_field(6, 2)),
        ),
    ]
    database(
        place,
        'create table run_operations(sequence_id, operation, operation_type); create table metadata(project, run_id)',
        run_operations=[(i, op, 0) for i, op in enumerate(ops)] + [(9, b'x', 1), (10, None, 0)],
        metadata=[('p', 'r')],
    )
    found['neptune'] = all_told(tracking_stores.read_neptune_scale, place)
    database(place, 'create table x(a)')
    found['neptune not'] = all_told(tracking_stores.read_neptune_scale, place)
    b = place.read_bytes()
    for name, head in dict(
        whole=b,
        empty=b'',
        short=b[:31],
        edge=b[:32],
        none=b[:16] + b'\0\0' + b[18:],
        one=b[:16] + b'\0\1' + b[18:],
        small=b[:16] + b'\1\0' + b[18:],
        many=b[:28] + struct.pack('>I', 64 * len(b) // 4096) + b[32:],
        more=b[:28] + struct.pack('>I', 64 * len(b) // 4096 + 1) + b[32:],
        least=b[:16] + b'\2\0' + b[18:],
    ).items():
        place.write_bytes(head)
        found[f'claims {name}'] = [tracking_stores._claimed_size(place), len(b)]
    whole = database(place, made, **content).read_bytes()
    for n in (len(whole) - 1, len(whole) - 4096, len(whole) - 4097, 4097):
        place.write_bytes(whole[:n])
        import contextlib

        with contextlib.ExitStack() as stack:
            copy, how = tracking_stores._whole_file(place, stack)
            found[f'whole {n}'] = [
                copy == place,
                how,
                copy.stat().st_size,
                [i for i, (x, y) in enumerate(zip(copy.read_bytes(), whole)) if x != y][:1],
            ]
    place.write_bytes(whole)
    (tmp_path / 'p.db-wal').write_bytes(b'')
    with contextlib.ExitStack() as stack:
        found['wal'] = [
            (p := tracking_stores._whole_file(place, stack))[1],
            p[0] == place,
            sorted(x.name for x in p[0].parent.iterdir()),
        ]
    (tmp_path / 'p.db-wal').unlink()
    with tracking_stores.open_sqlite(place) as db:
        found['limits'] = [
            db.getlimit(sqlite3.SQLITE_LIMIT_LENGTH),
            answer(db.execute, 'create table y(a)'),
            len(tracking_stores._tables(db)),
            list(tracking_stores._rows(db, f := Found('p', 's'), 'select 1 union select 2')),
            f.warnings,
        ]
        assert list(tracking_stores._rows(db, f, 'select x from nowhere')) == [] and f.warnings
    with pytest.raises(sqlite3.OperationalError), tracking_stores.open_sqlite(place, -1) as db:
        db.execute(
            'with recursive n(i) as (select 1 union all select i + 1 from n limit 3000000) select count(*) from n'
        ).fetchone()
    found['times'] = [tracking_stores._from_ms(x) for x in (0, 1500, 2.5, None, 'x', 10**400)] + [
        tracking_stores._iso(x) for x in ('1970-01-01T00:00:09+00:00', 'x', None, 3)
    ]
    found['all of'] = [
        answer(lambda: [r.warnings for r in tracking_stores._all_of(runs, f)])
        for f in (Found('p', 's'), f)
        for runs in ({}, dict(a=Found('q', 's')))
    ][:2]
    same_answers(request, 'databases', found)


def test_folders_and_servers_of_mlflow(request, tmp_path, monkeypatch):
    found, run = {}, tmp_path / 'm' / '1' / 'r'
    for kind in ('metrics', 'params/deep', 'tags'):
        (run / kind).mkdir(parents=True)
    (tmp_path / 'm' / '1' / 'meta.yaml').write_text('name: exp')
    (run / 'params' / 'lr').write_text('0.1')
    (run / 'params' / 'deep' / 'x').write_text('1' * 1_000_001)
    (run / 'tags' / 'fsdl.run').write_text('me')
    (run / 'tags' / 't').write_text('v')
    (run / 'metrics' / 'loss').write_text(
        '1000 1.5 0\n2500 NaN 3\n3000 2\nx 1 1\n1\n\n4000 inf 4 more\n5 6 x\n' + '9' * 20_000 + ' 1 1\n'
    )
    (run / 'tags' / 'link').symlink_to(run / 'params' / 'lr')
    for i, meta in enumerate(
        [
            'run_id: r\nrun_name: n\nstatus: 3\nstart_time: 1000\nend_time: 2000',
            'status: 1',
            'status: 9\nstart_time: x',
            '- 1',
            'a: [',
        ]
    ):
        (run / 'meta.yaml').write_text(meta)
        got = all_told(tracking_stores.read_mlruns, tmp_path / 'm')
        got[0]['params']['deep/x'] = len(got[0]['params']['deep/x'])
        if i == 4:
            got[0]['warnings'] = len(got[0]['warnings'])
        found[f'meta {i}'] = (
            got if not i else {k: v for k, v in got[0].items() if k not in ('metrics', 'params', 'tags')}
        )
    found['places'] = [len(tracking_stores.read_mlruns(p)) for p in (tmp_path / 'm', tmp_path / 'm' / '1', run)] + [
        all_told(tracking_stores.read_mlruns, tmp_path / 'none')
    ]
    for parts in ((), ('metrics',), ('params',), ('tags',)):
        place = tmp_path / f'is{len("".join(parts))}'
        for part in parts:
            (place / part).mkdir(parents=True)
        place.mkdir(exist_ok=True)
        found[f'is run {parts}'] = [
            tracking_stores._is_run(place),
            (place / 'meta.yaml').write_text('a: 1') and tracking_stores._is_run(place),
        ]
    asked, pages = [], {}

    def call(self, address, data=None):
        asked.append([address.partition('?')[0], json.loads(data) if data else address.partition('?')[2]])
        got = pages[address.partition('?')[0]]
        return got.pop(0) if len(got) > 1 else got[0]

    monkeypatch.setattr(tracking_stores._Server, 'call', call)
    pages['experiments/search'] = [
        dict(experiments=[dict(experiment_id='1', name='e')], next_page_token='t'),
        dict(experiments=[dict(experiment_id='2', name='f')]),
        {},
    ]
    info = dict(run_id='r', run_name='n', experiment_id='2', status='FINISHED', start_time='1000', end_time=2500)
    pages['runs/search'] = [
        dict(
            runs=[
                dict(
                    info=info,
                    data=dict(
                        params=[dict(key='a', value='1')],
                        tags=[dict(key='k', value='v'), dict(key='mlflow.x', value='v')],
                        metrics=[dict(key='loss')],
                    ),
                ),
                dict(info=dict(run_id='q')),
            ]
        )
    ]
    pages['metrics/get-history'] = [
        dict(
            metrics=[dict(step='3', value=1.5, timestamp='1000'), dict(value='NaN', timestamp=2000)], next_page_token=''
        ),
        {},
    ]
    found['server'] = [
        [told(r) for r in tracking_stores.read_mlflow_server('http://h/#x')],
        tracking_stores.read_mlflow_server('http://h'),
        asked,
    ]
    monkeypatch.undo()

    class Answer(io.BytesIO):
        def read(self, n=-1):
            return json.dumps(dict(n=n)).encode()

    said = []
    monkeypatch.setattr(
        tracking_stores.urllib.request,
        'urlopen',
        lambda request, timeout: (
            said.append([request.full_url, request.data, request.get_method(), timeout]) or Answer()
        ),
    )
    found['call'] = [
        tracking_stores._Server('http://h/', 7).call('a'),
        tracking_stores._Server('http://h/', 7).call('b', b'{}'),
        said,
    ]
    same_answers(request, 'mlflow', found)


# ---- which is which ----


def test_what_kind_of_file_it_is(request, tmp_path):
    found, place = {}, tmp_path / 'file'
    heads = [
        b'',
        b':W&B\0',
        b':SWL',
        b'PAR1',
        b'PK\x05\x06',
        b'PK\x03\x04',
        b'PK\x07\x08',
        b'SQLite format 3\0',
        b'SQLite format 3',
        b'{',
        b'{"a": 1}',
        b'{}',
        b'{"schema": "fsdl-run/1"}',
        b'{"schema": "x"}',
        b'{"run": {}}',
        b'{"run": 3}',
        b'{"obj": 1}',
        b'{"obj": ',
        b'{"log_history": []}',
        b'{\n "log_history": 1}',
        b'[1]',
        b'step,a',
        b'epoch',
        b'a,b',
        b'a,"step"',
        b'\xef\xbb\xbfstep,a\n1',
        b'\xef\xbb\xbf {"a": 1}',
        b'  step , a\n',
        b'a\nstep',
        b'a\rstep',
        event_record(b''),
        event_record(b'x')[:12],
        event_record(b'x')[:11],
        b'x' + event_record(b'x')[1:],
        zipped({'messages.json': '', 'task.json': ''}),
        zipped({'task.json': ''}),
        zipped({'metrics.jsonl': ''}),
        zipped({'a': ''}),
        zipped({'task.json': 'x' * 99})[:90],
        zipped({'a': 'x' * 99})[:60],
    ]
    for b in heads:
        place.write_bytes(b)
        found[f'{b[:40]} {len(b)}'] = tracking_read.recognise(place)
    for tables in (
        ['runs', 'metrics', 'params'],
        ['runs', 'metrics'],
        ['run_operations'],
        ['metrics'],
        ['configs'],
        ['x'],
        ['runs'],
        [],
    ):
        found[f'tables {tables}'] = tracking_read.recognise(
            database(place, ''.join(f'create table {t}(a);' for t in tables) or 'pragma user_version = 1')
        )
    (tmp_path / 'trainer_state.json').write_bytes(b'{')
    found['by name'] = tracking_read.recognise(tmp_path / 'trainer_state.json')
    top = tmp_path / 'top'
    files = {
        'a/log.jsonl': '{"schema": "fsdl-run/1", "id": "x"}\n',
        'a/b/log.jsonl': '{"schema": "fsdl-run/1", "id": "hidden"}\n',
        'c/metrics.csv': 'step,a\n1,2\n',
        'c/rows.jsonl': '{"a": 1}\n',
        'c/own.jsonl': '{"run": {"id": "lines"}}\n',
        'c/x.py': '{"run": {}}',
        'd/meta.yaml': 'run_id: ml',
        'd/metrics/loss': '1 2 3\n',
        'e/meta.yaml': 'x: 1',
        'e/f/data-1.log': '{"obj": {"type": "AssignInt", "path": ["a"], "value": 1}}',
        'files/g.csv': 'step,a\n1,2\n',
        '.git/g.csv': 'step,a\n1,2\n',
        'h/readme.md': 'step,a',
    }
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    (top / 'e' / 'meta.yaml').write_text('x: 1')
    (top / 'h' / 'events.out.tfevents.1').write_bytes(event_record(scalar_event(1.0, 2, [('a', 3.0)])))
    (top / 'h' / 'link.csv').symlink_to(top / 'c' / 'metrics.csv')
    found['folder'] = [[r.id, r.source] for r in tracking_read.read_all(top)]
    for p in ('a', 'a/b', 'c', 'd', 'e', 'e/f/data-1.log', 'h', 'c/rows.jsonl', 'e/none', '.git'):
        got = answer(lambda: [[r.id, r.source] for r in tracking_read.read_all(top / p)])
        found[f'part {p}'] = got.replace(str(tmp_path), '') if isinstance(got, str) else got
    found['nothing'] = [
        answer(tracking_read.read_all, p).replace(str(tmp_path), '')
        for p in (top / 'd' / 'metrics', top / 'e' / 'meta.yaml')
    ]
    found['address'] = [
        [r.id for r in tracking_read.read_all(f'{before}{top}/c/metrics.csv')]
        for before in ('', 'file://', 'sqlite:///')
    ]
    found['one'] = [
        answer(lambda: tracking_read.read(top, n).id).replace(str(tmp_path), '')
        for n in ('', 'x', 'lin', 'zzzz', 'linse', 'ml')
    ] + [tracking_read.read(top / 'a').id]
    runs = [Run(f'r{i}', 'n' if i % 2 else '') for i in range(10)]
    found['called'] = [
        answer(lambda: [r.id for r in tracking_read._called(n, rs)])
        for n in ('r1', 'r', 'n', 'q', 'r99')
        for rs in (runs, [])
    ] + [tracking_read._some(runs)]
    for found_in in ('http://x', 'https://x', 'httpx'):
        found[found_in] = answer(lambda: tracking_read.read_all(found_in))[:50] if found_in == 'httpx' else None
    same_answers(request, 'kinds', found)


# ---- what sinks tell their clients, which only write it down ----


class Recorder:
    "Stands for anything of a client: what is called is kept, and so is what it answers"

    def __init__(self, name, calls, results):
        self.__dict__.update(_name=name, _calls=calls, _results=results)

    def __repr__(self):
        return self._name

    def __bool__(self):
        return True

    def __enter__(self):
        return self

    def __getattr__(self, k):
        if k.startswith('__') and k != '__exit__':
            raise AttributeError(k)
        return (
            self._results.get(f'.{k}', None)
            if f'.{k}' in self._results
            else Recorder(f'{self._name}.{k}'.rpartition('()')[2], self._calls, self._results)
        )

    def __setattr__(self, k, v):
        self._calls.append([f'{k} =', v])

    def __call__(self, *args, **kw):
        self._calls.append([self._name, *args, kw] if kw else [self._name, *args])
        got = self._results.get(self._name.rpartition('.')[2], Recorder(f'{self._name}()', self._calls, self._results))
        return got(*args) if callable(got) and not isinstance(got, Recorder) else got


def client(monkeypatch, results, *modules):
    "Modules that write down what is called: the list of calls"
    calls = []
    for name in modules:
        monkeypatch.setitem(sys.modules, name, Recorder('', calls, results))
    return calls


news = [
    dict(m=dict(loss=1.5, step=2), step=3, t=7.2504),
    dict(m=dict(loss='-Infinity', bad='NaN'), step=4.5, t=None),
    dict(m={'odd name!': 'Infinity'}, t=9.0),
    dict(params=dict(b=dict(c=2), d={})),
    dict(tags=dict(k='v')),
    dict(artifact=dict(name='dir/f?.txt', sha256='a' * 64)),
    dict(artifact=dict(name='g', sha256='b' * 64)),
    dict(end='finished'),
]
head = dict(
    id='r1',
    name='run',
    project='proj',
    started=12.3456,
    params=dict(lr=0.1, deep=dict(x=1)),
    tags=dict(t='u' * 80),
    environment=dict(git=dict(commit='abc')),
)


def kept_file(tmp_path):
    "A run with one artifact in its store, and a link where another should be"
    (tmp_path / 'run' / 'artifacts').mkdir(parents=True)
    (tmp_path / 'run' / 'artifacts' / ('a' * 64)).write_text('content')
    (tmp_path / 'run' / 'artifacts' / ('b' * 64)).symlink_to(tmp_path / 'run' / 'artifacts' / ('a' * 64))
    return dict(run=str(tmp_path / 'run'))


def tell(kind, tmp_path, options, about=head, state=None, status='finished'):
    "A sink hears a head, the news and the end: what it has to say itself"
    sink = kind(tmp_path / 'sink', about, state or {}, options)
    sink.write(news)
    done = sink.commit()
    sink.close(status)
    return [done, dict(sink.lost), sink.where()]


def cleaned(value, tmp_path):
    "Without the names of temporary folders"
    return json.loads(json.dumps(value, default=repr).replace(str(tmp_path), 'TMP'))


def test_what_sinks_tell_their_clients(request, tmp_path, monkeypatch):
    found, options = {}, kept_file(tmp_path)
    modules = dict(
        wandb=['wandb'],
        comet=['comet_ml'],
        clearml=[
            'clearml',
            'clearml.backend_interface',
            'clearml.backend_interface.metrics',
            'clearml.backend_interface.metrics.events',
        ],
        trackio=['trackio', 'trackio.sqlite_storage'],
        determined=['determined'],
    )
    for name, needed in modules.items():
        for status, about in (('finished', head), ('killed', dict(id='r2'))):
            calls = client(monkeypatch, {'get_offline_mode_folder': tmp_path / 'gone'}, *needed)
            if name == 'clearml':
                (tmp_path / 'gone').mkdir()
            monkeypatch.setenv('CLEARML_CACHE_DIR', '')
            monkeypatch.setenv('TRACKIO_DIR', '')
            said = tell(
                tracker_clients.sinks[name], tmp_path, options, about, dict(row=5, reported=7, lost=dict(x=1)), status
            )
            found[f'{name} {status}'] = cleaned([said, calls, (tmp_path / 'gone').exists()], tmp_path)
    there = SimpleNamespace(info=SimpleNamespace(run_id='old', artifact_uri='u'), experiment_id='e7')
    uploaded = lambda run, path: [Path(path).name, Path(path).read_text()] and None
    monkeypatch.setattr(tracker_clients, '_whole_database', lambda uri: None)
    monkeypatch.setattr(tracker_clients.tempfile, 'TemporaryDirectory', lambda: _folder(tmp_path))
    for case, results in dict(
        new=dict(search_runs=[], get_experiment_by_name=None),
        old=dict(search_runs=[there], get_experiment_by_name=there),
    ).items():
        for status, about in (
            ('finished', head),
            ('failed', dict(id='r2')),
            ('odd', dict(id='r3', environment=dict(git=None))),
        ):
            for uri in ('', 'http://h', f'sqlite:///{tmp_path}/x/m.db', 'file:///x'):
                calls = client(monkeypatch, results | dict(log_artifact=uploaded), 'mlflow')
                said = tell(
                    tracker_clients.sinks['mlflow'],
                    tmp_path,
                    options | (dict(uri=uri, experiment='own') if uri else {}),
                    about,
                    None,
                    status,
                )
                if uri == '' or case == 'new' and status == 'finished':
                    found[f'mlflow {case} {status} {uri.replace(str(tmp_path), "")}'] = cleaned([said, calls], tmp_path)
    calls = client(monkeypatch, dict(search_runs=[there]), 'mlflow')
    sink = tracker_clients.sinks['mlflow'](tmp_path / 'sink', dict(id='r'), {}, {})
    calls.clear()
    for n in (1, 100, 101, 250):
        sink._params({str(i): i for i in range(n)})
    for n in (1, 1000, 1001):
        sink.write([dict(m={f'k{i}': i for i in range(n)}, step=1, t=0)])
    found['batches'] = [
        [c[0], len((c[-1].get('params') or c[-1].get('metrics')))] for c in calls if c[0].endswith('log_batch')
    ]
    found['names'] = [
        [tracker_clients._mlflow_name(n), len(tracker_clients._mlflow_name(n))]
        for n in ('a', 'a b', 'a?b!', 'é', 'a/b:c.d-e', 'x' * 251)
    ] + [tracker_clients._flat(dict(a=1, b=dict(c=dict(d=2), e={}), f=[])), tracker_clients._flat({})]
    found['times'] = [tracker_clients._milliseconds(e) for e in ({}, dict(t=None), dict(t=1.2345), dict(t=0))]
    found['words'] = sinks._words(dict(m=1, params=2, tags=3, artifact=4, end=5, t=6))
    monkeypatch.undo()
    (tmp_path / 'there.db').write_text('')
    found['databases'] = [
        str(tracker_clients._missing_database(u.format(tmp_path))).replace(str(tmp_path), '')
        for u in (
            'sqlite:///{}/new.db',
            'sqlite:///{}/there.db',
            'sqlite:///{}/none/new.db',
            'sqlite:///{}/new.db?x=1',
            'http://h',
            '{}/new.db',
        )
    ]
    made, path = tmp_path / 'made', tmp_path / 'there.db'
    made.write_text('new')
    found['appear'] = [
        tracker_clients._appear(made, path),
        path.read_text(),
        tracker_clients._appear(made, tmp_path / 'fresh'),
        (tmp_path / 'fresh').read_text(),
        made.exists(),
    ]

    def no_links(*a):
        raise OSError('no links')

    monkeypatch.setattr(tracker_clients.os, 'link', no_links)
    found['no links'] = [tracker_clients._appear(made, path), path.read_text(), made.exists()]
    same_answers(request, 'sinks', found)


class _folder:
    "A temporary folder that stays"

    def __init__(self, place):
        self.place = place / 'temporary'

    def __enter__(self):
        return self.place.mkdir(exist_ok=True) or str(self.place)

    def __exit__(self, *error):
        return None


def test_a_database_of_mlflow_appears_whole(tmp_path, monkeypatch):
    def make(uri):
        db = sqlite3.connect(uri.removeprefix('sqlite:///'))
        db.execute('create table made(a)')
        db.commit()
        db.close()
        return Recorder('', asked, {})

    asked = []
    monkeypatch.setitem(sys.modules, 'mlflow', SimpleNamespace(MlflowClient=make))
    tracker_clients._whole_database(f'sqlite:///{tmp_path}/m.db')
    assert [p.name for p in tmp_path.iterdir()] == ['m.db'] and asked == [['.search_experiments', dict(max_results=1)]]
    with tracking_stores.open_sqlite(tmp_path / 'm.db') as db:
        assert tracking_stores._tables(db) == {'made'}
    asked.clear()
    tracker_clients._whole_database(f'sqlite:///{tmp_path}/m.db')
    assert not asked


def test_what_sinks_with_files_of_their_own_write(request, tmp_path):
    found, options = {}, kept_file(tmp_path)
    for name in ('jsonl', 'tensorboard'):
        for about in (head, dict(id='r2')):
            said = tell(tracker_clients.sinks[name], tmp_path / name / about['id'], options, about)
            content = Path(said[2]).read_bytes()
            found[f'{name} {about["id"]}'] = cleaned(
                [said, zlib.crc32(content), content.decode().splitlines() if name == 'jsonl' else len(content)],
                tmp_path,
            )
            for size in (0, 20, len(content) - 1):
                again = tell(
                    tracker_clients.sinks[name],
                    tmp_path / name / about['id'],
                    options,
                    about,
                    dict(bytes=size, lost=dict(y=2)),
                )
                found[f'{name} {about["id"]} {size}'] = [
                    again[0],
                    again[1],
                    Path(again[2]).read_bytes()[size:] == content[-1000:],
                    len(Path(again[2]).read_bytes()),
                ]
    base = sinks.Sink(tmp_path, dict(id='i', params=None), {}, options)
    found['base'] = [
        base.label(),
        base.project,
        base.told('params'),
        base.commit(),
        base.step({}),
        base.step(dict(step=3.7)),
        base.points(dict(m=dict(a='NaN', b=3))),
        dict(base.lost),
        Path(base.where()) == tmp_path,
    ]
    found['kept'] = [
        base.kept(dict(sha256=x)) is not None
        for x in ('a' * 64, 'b' * 64, 'c' * 64, 'A' * 64, '../' + 'a' * 64, '', None)
    ] + [base.kept({}), dict(base.lost)]
    same_answers(request, 'files', found)


# ---- followers ----


def logged(folder, *events):
    "A run's log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'log.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in events))
    return folder


def test_followers(request, tmp_path, monkeypatch):
    found, start = {}, dict(schema='fsdl-run/1', id='r', started=1.0)
    rows = [dict(t=float(i), step=i, m=dict(a=i)) for i in range(2503)]
    run = logged(tmp_path / 'r', start, *rows, dict(t=9.0, end='finished'))
    log = run / 'log.jsonl'
    found['head'] = [
        tracking._header(log)[0]['id'],
        tracking._header(log)[1],
        answer(tracking._header, logged(tmp_path / 'o', dict(id=1)) / 'log.jsonl').replace(str(tmp_path), ''),
        answer(tracking._header, logged(tmp_path / 'e') / 'log.jsonl').replace(str(tmp_path), ''),
    ]
    found['batches'] = [[len(b), o] for b, o in tracking._batches(log, tracking._header(log)[1])] + [
        [[len(b) for b, _ in tracking._batches(log, 0, n)] for n in (1252, 2505, 2506)]
    ]
    states = dict(none=None, torn='{"a', list='[1]', good='{"a": 1}')
    for name, content in states.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        found[f'state {name}'] = tracking._state_of(tmp_path / name)
    done = tracking.feed(run, 'jsonl')
    found['feed'] = cleaned(
        [
            done,
            tracking.feed(run, 'jsonl') == done,
            len((run / 'sinks' / 'jsonl' / 'run.jsonl').read_text().splitlines()),
        ],
        tmp_path,
    )
    (run / 'sinks' / 'jsonl.json').write_text(json.dumps(done | dict(done=False)))
    again = tracking.feed(run, 'jsonl', live=False)
    found['again'] = [again['events'], again['status']]
    open_run = logged(tmp_path / 'live', start, *rows[:5])
    for living in ([True, True, False], [False], [True] * 4 + [False]):
        for live in (True, False):
            left, slept = list(living), []
            monkeypatch.setattr(tracking, 'alive', lambda log: left.pop(0) if len(left) > 1 else left[0])
            monkeypatch.setattr(tracking, 'time', SimpleNamespace(sleep=slept.append))
            for p in (open_run / 'sinks').rglob('*.json*') if (open_run / 'sinks').exists() else ():
                p.unlink()
            state = tracking.feed(open_run, 'jsonl', live=live, poll=0.7)
            found[f'living {living} {live}'] = [
                state['status'],
                state['done'],
                state['events'],
                state['offset'],
                slept,
                len(left),
            ]
    monkeypatch.undo()
    found['unknown'] = [
        answer(tracking.feed, run, 'jsonll'),
        answer(tracking.feed, tmp_path / 'o', 'jsonl').replace(str(tmp_path), ''),
    ]
    seen = []

    class Once(sinks.Sink):
        name, start_over = 'once', True

        def open(self):
            seen.append([self.state, sorted(p.name for p in self.folder.iterdir())])

        def commit(self):
            return dict(n=len(seen))

        def close(self, status):
            seen.append(status)

    monkeypatch.setitem(tracking.sinks, 'once', Once)
    (run / 'sinks' / 'once' / 'deep' / 'er').mkdir(parents=True)
    (run / 'sinks' / 'once' / 'old').write_text('x')
    (run / 'sinks' / 'once' / 'link').symlink_to(tmp_path / 'r')
    (run / 'sinks' / 'once.json').write_text(json.dumps(dict(offset=100, events=50)))
    found['once'] = cleaned([tracking.feed(run, 'once'), seen, log.exists()], tmp_path)
    with tracking._alone(tmp_path / 'alone'):
        found['alone'] = answer(lambda: tracking._alone(tmp_path / 'alone').__enter__()).replace(str(tmp_path), '')
    found['names'] = [tracking._names_in(x) for x in ('a, b,,c', 'a', '', ('x', 'y'))]
    found['reasons'] = [tracking._reason(x) for x in ([], ['', ' \n'], ['a\n', 'b \n', '\n'])] + [
        tracking._result(c, x) for c, x in ((0, ['x', '{"a": 1}']), (0, ['no']), (0, []), (1, ['{"a": 1}', '\n']))
    ]
    found['losses'] = [tracking._losses(d) for d in ({}, dict(lost=dict(a=1, b=2000)))] + [
        tracking._followed('s', d) for d in ({}, dict(status='x', events=3, where='w', error='e', lost=dict(a=1)))
    ]
    found['options'] = [
        tracking._absolute(o) for o in (None, {}, dict(uri='http://x'), dict(uri='sqlite:////a/../b.db', k=1))
    ]
    monkeypatch.setattr(tracking, 'built', lambda side: 'PY' if side == 'trackers' else None)
    monkeypatch.setattr(tracking.importlib.util, 'find_spec', lambda name: None)
    found['pythons'] = [
        tracking._python_for('jsonl') == sys.executable,
        tracking._python_for('wandb'),
        answer(tracking._python_for, 'clearml'),
    ]
    monkeypatch.setattr(tracking.importlib.util, 'find_spec', lambda name: 1)
    found['pythons'] += [tracking._python_for('wandb') == sys.executable]
    monkeypatch.undo()
    started, ended = [], []

    class Process:
        pid, returncode = 7, 0

        def __init__(self, command, **kw):
            started.append(
                [
                    command[1:2],
                    sorted(kw),
                    kw['start_new_session'],
                    sorted(k for k in tracking._quiet if kw['env'][k]),
                    sorted(set(kw['env']) & tracking._dropped),
                    kw['env']['PYTHONPATH'] == kw['cwd'],
                    sorted(p.name for p in Path(kw['cwd']).iterdir()),
                ]
            )
            self.stdin, self.stdout, self.sent = (
                SimpleNamespace(write=lambda t: started.append(json.loads(t)), close=lambda: None),
                iter(script),
                [],
            )

        def wait(self):
            ended.append('waited')

    monkeypatch.setattr(tracking.subprocess, 'Popen', Process)
    monkeypatch.setattr(tracking.os, 'killpg', lambda pid, s: ended.append([pid, int(s)]))
    monkeypatch.setenv('RANK', '3')
    script = ['line hf_' + 'a' * 34 + '\n'] * 1003 + ['\n', '{"status": "finished", "events": 3, "where": "w"}\n']
    table = tracking.follow(run, 'jsonl, tensorboard', options=dict(jsonl=dict(k=1)), live=False)
    found['follow'] = cleaned(
        [
            table.rows,
            table.caption,
            started,
            ended,
            len((run / 'sinks' / 'jsonl.out').read_text().splitlines()),
            (run / 'sinks' / 'jsonl.out').read_text().splitlines()[0],
        ],
        tmp_path,
    )
    slow = SimpleNamespace(is_alive=lambda: True, join=lambda *a: joined.append(a))
    joined, out = [], {}
    monkeypatch.setattr(tracking, 'time', SimpleNamespace(monotonic=lambda: 100.0))
    for end in (90.0, 103.5):
        tracking._wait_for(SimpleNamespace(pid=9, wait=lambda: 0), slow, end, 5, out, 's')
    tracking._wait_for(
        None, SimpleNamespace(is_alive=lambda: False, join=lambda *a: joined.append(a)), 101.0, 5, out, 'q'
    )
    found['late'] = [out, joined, ended[-2:]]
    waited = []
    monkeypatch.setattr(
        tracking, '_wait_for', lambda p, thread, end, timeout, out, name: waited.append([end, timeout]) or thread.join()
    )
    for timeout in (None, 0, 5, '2min'):
        tracking.follow(run, ('jsonl',), timeout=timeout)
    found['timeouts'] = [
        waited,
        answer(tracking.follow, run, ('jsonll',)),
        answer(tracking.follow, tmp_path / 'o').replace(str(tmp_path), ''),
    ]
    same_answers(request, 'followers', found)


# ---- comparing ----


def some_runs():
    "Runs that differ in what they can differ in"
    series = lambda *points: Series(*map(list, zip(*points))) if points else Series()
    a = Run(
        'a',
        'first',
        'p',
        'jsonl',
        'finished',
        1.0,
        9.0,
        dict(lr=0.1, deep=dict(x=1, y=2), same=1),
        dict(loss=series((0, 1.5, 1.0), (1, 0.5, 2.0), (2, 0.25, 3.0)), acc=series((0, 0.1, 1.0), (2, 0.3, 3.0))),
        dict(t='<u>'),
        [],
        dict(git=None),
        ['warned <1>'],
    )
    b = Run(
        'b',
        '',
        'p',
        'csv',
        '',
        0.0,
        0.0,
        dict(lr='0.1', deep=dict(x=1), same=1, more=[1]),
        dict(
            loss=series((0, 1.5, 1.0), (1, math.nan, 2.0005), (3, -0.0, 3.0)),
            other=series(),
            acc=series((0, 0.1, 1.0), (2, 0.3, 3.001)),
        ),
    )
    c = Run(
        'c',
        'third',
        '',
        'x',
        'killed',
        0.0,
        4.0,
        dict(lr=0.2, same='1'),
        dict(
            loss=series((5, 1.0, 9.0), (4, 2.0, 1.0), (4, 3.0, 1.0), (4, 3.0, 1.0)),
            inf=series((0, math.inf, 0.0), (1.5, 1e300, 0.0), (math.nan, 2.0, 0.0), ('x', 1.0, 0.0)),
        ),
    )
    return [a, b, c, Run('d')]


def test_runs_side_by_side(request, tmp_path, monkeypatch):
    found, runs = {}, some_runs()
    for a, b in itertools.product(runs, runs):
        found[f'{a.id} {b.id}'] = tracking_compare.run_differences(a, b)
    ragged, other = Series([0, 1, 2], [1.0, 2.0], [0.0]), Series([0, 3], [1.0, 5.0, 6.0], [9.0, 8.0, 7.0])
    of_two = (tracking_compare._other_steps, tracking_compare._other_values, tracking_compare._other_times)
    found['ragged'] = [answer(f, a, b) for f in of_two for a, b in ((ragged, other), (other, ragged))] + [
        answer(lambda: list(f(s)))
        for f in (tracking_compare._points_of, tracking_compare._finite)
        for s in (ragged, other)
    ]
    found['ragged order'] = [tracking_compare._ordered(s) for s in (ragged, other)]
    for late in (0.0, 0.0009, 0.001, 0.0011, 5.0):
        found[f'late {late}'] = tracking_compare._other_times(Series([0], [0.0], [0.0]), Series([0], [0.0], [-late]))
    found['one value'] = [
        tracking_compare._other_values(Series([0, 1], [0.0, 1.0], [0, 0]), Series([0, 1], [-0.0, 1.0], [0, 0])),
        tracking_compare._other_steps(Series([0, 1], [0.0, 1.0]), Series([0, 2], [0.0, 1.0])),
    ]
    for r in runs:
        place = tracking_compare.write_log(r, tmp_path / r.id)
        found[f'log {r.id}'] = (place / 'log.jsonl').read_text().splitlines()
        found[f'twice {r.id}'] = answer(tracking_compare.write_log, r, place)[:15]
    equal = Series([0, 0, 1], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    found['ordered'] = [
        tracking_compare._ordered(s)
        for s in (equal, Series([1, 0], [1.0, 2.0], [0.0, 0.0]), Series([1, 0], [1.0, 2.0], [0.0, 1.0]), Series())
    ] + [tracking_compare._merged(dict(a=equal, b=Series([0], [9.0], [0.0])))]
    for metrics in (None, ['loss'], ['acc', 'loss'], ['losss']):
        found[f'compare {metrics}'] = answer(
            lambda: [(t := tracking_compare.compare(runs, metrics)).rows, t.caption, t.notes]
        )
    wide = [
        Run(
            str(i),
            params={f'p{k:02d}': k * i for k in range(14)},
            metrics={f'm{k}': Series([0], [k], [0]) for k in range(10)},
        )
        for i in range(2)
    ]
    found['wide'] = [list(tracking_compare.compare(wide).rows[0]), list(tracking_compare.compare(wide[0]).rows[0])]
    for title, chosen in (('Runs', runs), ('<a>', runs[:1]), ('none', [Run('e')])):
        page = tracking_compare.compare_html(chosen, title=title)
        found[f'page {title}'] = [
            zlib.crc32(page.encode()),
            page[page.index('<h1>') : page.index('<h1>') + 500],
            page[-600:],
        ]
    many = [Run(str(i), metrics={'m': Series([0, 1], [i, i + 1.0], [0, 0])}, warnings=['w'] * 30) for i in range(60)]
    page = tracking_compare.compare_html(many, tmp_path / 'page.html')
    found['many'] = [
        page.count('<li>'),
        page.count('<polyline'),
        (tmp_path / 'page.html').read_text() == page,
        tracking_compare.compare_html([Run('x', metrics={f'm{i}': Series([0], [1.0], [0]) for i in range(70)})]).count(
            '<figure>'
        ),
    ]
    r = random.Random(8)
    points = [(float(i), r.random()) for i in range(1000)]
    found['thin'] = (
        [[len(t := tracking_compare._thin(points[:n], 10)), sum(x * y for x, y in t)] for n in (0, 5, 20, 21, 25, 1000)]
        + [len(tracking_compare._thin(points[:n])) for n in (600, 601)]
        + [len(tracking_compare._thin([(float(i), 1.0) for i in range(50)], 10))]
    )
    found['bounds'] = (
        [tracking_compare._bounds(v) for v in ([1.0], [1.0, 2.0], [-3.0, -3.0, 4.0])]
        + [tracking_compare._share(v, 2.0, 6.0) for v in (2.0, 3.0, 6.0, 7.0)]
        + [tracking_compare._colour(i) for i in (0, 7, 8, 9)]
        + [tracking_compare._finite(runs[2].metrics['inf'])]
    )
    found['conversion'] = [
        tracking_compare.Conversion('a', 'b', 'w', 3, *more).table().rows
        + [tracking_compare.Conversion('a', 'b', 'w', 3, *more).table().notes]
        for more in ((), (['x', 'y'], ['z'], ['1', '2', '3', '4']))
    ]
    asked, answers = [], dict(status='finished', lost='x (1); y (2)', error='')
    monkeypatch.setattr(tracking_compare, 'follow', lambda *a, **kw: asked.append([a[1:], kw]) or [answers])
    monkeypatch.setattr(tracking_compare, 'read_all', lambda where: asked.append(str(where)) or [runs[1], runs[0]])
    found['convert'] = cleaned(
        [
            answer(lambda: tracking_compare.convert(runs[0], to, tmp_path / f'to {to} {i}', options=o).to_dict())
            for i, (to, o) in enumerate((('jsonl', None), ('mlflow', dict(uri='u')), ('determined', {}), ('odd', None)))
        ]
        + [asked],
        tmp_path,
    )
    found['back'] = [tracking_compare._read_back('a', 'w').id, tracking_compare._read_back('zz', 'w').id]
    for status in ('failed', 'stopped', 'killed'):
        answers = dict(status=status, error='why', lost='')
        found[f'handed {status}'] = answer(tracking_compare._hand_over, tmp_path, 'jsonl', None, 5)
    monkeypatch.undo()
    for path, headers, folder in (
        ('/', 'localhost', runs),
        ('/', '127.0.0.1:80', runs),
        ('/?run=a&run=c', '[::1]:5', runs),
        ('/', 'evil.org', runs),
        ('/', 'localhost.evil:80', runs),
        ('/x', 'localhost', runs),
        ('/', 'localhost', ValueError('<no> ghp_' + 'a' * 36)),
        ('/', None, runs),
        ('/?run=zz', 'localhost:1', runs * 2),
    ):

        def read_runs(where):
            if isinstance(folder, Exception):
                raise folder
            return folder

        monkeypatch.setattr(tracking_compare, 'read_all', read_runs)
        sent, out = [], io.BytesIO()
        handler = SimpleNamespace(
            path=path,
            headers={'Host': headers} if headers else {},
            server=SimpleNamespace(folder='f'),
            send_response=sent.append,
            send_header=lambda *a: sent.append(list(a)),
            end_headers=lambda: None,
            wfile=out,
        )
        handler._asked_here, handler._answer = (
            lambda: tracking_compare._Handler._asked_here(handler),
            lambda *a: tracking_compare._Handler._answer(handler, *a),
        )
        tracking_compare._Handler.do_GET(handler)
        body = out.getvalue().decode()
        found[f'{path} {headers} {folder is runs}'] = [
            sent,
            zlib.crc32(body.encode()),
            body[:60]
            if len(body) < 500
            else [body.count(' checked'), body.count('<svg'), body.count('type="checkbox"')],
        ]
    monkeypatch.undo()
    found['serve'] = answer(tracking_compare.serve, tmp_path / 'nowhere').replace(str(tmp_path), '')
    server = tracking_compare.serve(tmp_path, background=True)
    assert server.url == f'http://127.0.0.1:{server.server_port}/' and server.folder == tmp_path
    server.shutdown()
    server.server_close()
    started = []

    class Server:
        server_address = 'h', 5

        def __init__(self, *a):
            started.append(a[0])

        def serve_forever(self):
            started.append('forever')

        def server_close(self):
            started.append('closed')

    monkeypatch.setattr(tracking_compare.http.server, 'ThreadingHTTPServer', Server)
    found['foreground'] = [tracking_compare.serve(tmp_path, 7), started]
    same_answers(request, 'compare', found)


def test_registering_and_fetching(request, tmp_path, monkeypatch):
    found, asked = {}, []
    run = logged(
        tmp_path / 'r',
        dict(schema='fsdl-run/1', id='r', started=1.0, environment=dict(git=dict(commit='abc', dirty=True))),
        dict(artifact=dict(name='m', sha256='a' * 64)),
        dict(end='finished'),
    )
    (run / 'sinks').mkdir()
    (run / 'sinks' / 'mlflow.json').write_text(json.dumps(dict(uri='u', run_id='i')))
    monkeypatch.setattr(tracking_compare, '_hand_over', lambda *a: asked.append(a[1:]))
    monkeypatch.setattr(tracking_compare, 'run_in', lambda *a, **kw: asked.append([a[0], a[2:], kw]) or got)
    got = '3'
    found['register'] = [
        tracking_compare.register(run, 'm', 'model'),
        tracking_compare.register(run, 'm', 'model', 'a', 'http://x', 9),
        answer(tracking_compare.register, run, 'n', 'model'),
        asked[:],
    ]
    (tmp_path / 'file').write_text('content')
    digest = tracking_compare.file_hash(tmp_path / 'file')
    for sha in (digest, 'b' * 64, None):
        got = dict(path=str(tmp_path / 'file'), tags=dict(sha256=sha, x='y') if sha else {}, version=4, run_id='i')
        asked.clear()
        found[f'fetch {(sha or "none")[:4]}'] = cleaned(
            [answer(lambda: [str(x) for x in tracking_compare.fetch('model', 'u', tmp_path / 'out')]), asked], tmp_path
        )
    found['origin'] = tracking_compare._origin(Run('r'), SimpleNamespace(sha256='s'))
    same_answers(request, 'registry', found)


# ---- how much is read at a time, and at most ----


class Watched(io.BytesIO):
    "A file that writes down how much is asked of it"

    asked = []

    def readline(self, n=-1):
        return Watched.asked.append(n) or super().readline(n)

    def read(self, n=-1):
        return Watched.asked.append(n) or super().read(n)


def test_how_much_is_read(request, tmp_path, monkeypatch):
    found = {}
    import yaml

    monkeypatch.setattr(yaml, 'safe_load', lambda text: dict(a=len(text)))
    place = tmp_path / 'a.yaml'
    for size in (10_000_000, 10_000_001):
        with open(place, 'wb') as f:
            f.truncate(size)
        found[f'yaml {size}'] = tracking_text.yaml_values(place, print)
    monkeypatch.undo()
    limits = []
    monkeypatch.setattr(tracking_text, 'read_limited', lambda path, n: limits.append(n) or b'step,a\n1,2\n')
    monkeypatch.setattr(tracking_text.csv, 'field_size_limit', lambda n: limits.append(n) or 7)
    found['csv'] = [shown(tracking_text.read_csv(tmp_path / 'x.csv').metrics['a']), limits]
    for module in (tracking_text, tracking_read):
        monkeypatch.setattr(module, 'open', lambda path, mode: Watched(b'{"a": 1}\n{"a": 2}'), raising=False)
    tracking_text.read_jsonl(tmp_path / 'x')
    tracking_read.recognise(tmp_path / 'x')
    archive = SimpleNamespace(
        namelist=lambda: ['experiment.json', 'task.json', 'messages.json'], open=lambda name: Watched(b'')
    )
    tracking_archives._comet_zip(archive, Found('p', 's'), 1)
    tracking_archives._clearml_zip(archive, Found('p', 's'), 1)
    list(tracking_archives._lines_before_the_break(SimpleNamespace(read1=lambda n: Watched.asked.append(n))))
    found['asked'] = list(Watched.asked)
    Watched.asked.clear()

    class Line:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

    for size in (1, 10**6):
        limit = max(64 * 2**20, 100 * size)
        monkeypatch.setattr(tracking_archives, '_lines_before_the_break', lambda f: map(Line, (limit - 1, 1, 1, 1)))
        said = Found('p', 's')
        found[f'unpacked {size}'] = [
            [at for at, _ in tracking_archives._archived_lines(archive, 'm', said, size)],
            said.warnings,
        ]
    for n in (100_000, 100_001):
        monkeypatch.setattr(
            tracking_read.os,
            'walk',
            lambda path, followlinks: [(path, ['b', '.git', 'a'], ['x'] * (n - 1)), (path, [], ['y'])],
        )
        monkeypatch.setattr(tracking_read, '_read_here', lambda here, names, dirs: [(len(names), *dirs)])
        found[f'files {n}'] = answer(tracking_read._read_folder, tmp_path).__repr__().replace(str(tmp_path), '')
    monkeypatch.undo()
    (tmp_path / 'ten').write_bytes(b'x' * 10)
    import pyarrow as pa

    batches = []
    names = ['run_id', 'attribute_path', 'attribute_type', 'step']
    for rows in (20_000, 20_001):
        table = SimpleNamespace(
            schema_arrow=SimpleNamespace(names=names),
            metadata=SimpleNamespace(num_rows=rows),
            iter_batches=lambda n, columns: batches.append([n, columns]) or [],
        )
        found[f'rows {rows}'] = answer(tracking_archives._export_file, table, tmp_path / 'ten', {}, Found('p', 's'))
    found['batches'] = batches
    column = pa.chunked_array([pa.array([1500, None], pa.timestamp('ms'))]).combine_chunks()
    found['columns'] = [
        tracking_archives._plain_column(column, 'timestamp'),
        [str(x) for x in tracking_archives._plain_column(column, 'step')],
        tracking_archives._plain_column(pa.array([1, 2]), 'timestamp'),
    ]
    clock, set_ = [100.0], []
    monkeypatch.setattr(tracking_stores, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    tracking_stores._limit_time(SimpleNamespace(set_progress_handler=lambda f, n: set_.append([f, n])), 5)
    found['limit'] = [set_[0][1], *(clock.__setitem__(0, t) or set_[0][0]() for t in (100.0, 105.0, 105.1))]
    same_answers(request, 'limits', found)


def test_what_is_left_of_readers(request, tmp_path, monkeypatch):
    found = {}
    f = Found('p', 's')
    for d in ([1], None, {}, dict(params=3, tags=dict(a=1), end=4, artifact=dict(name='x', step=2)), dict(artifact=3)):
        tracking_files.take_log_event(f, d)
    found['event'] = told(f.run())

    def broken(*args):
        raise tracking_text.csv.Error('field larger than field limit')

    monkeypatch.setattr(tracking_text, '_csv_table', broken)
    (tmp_path / 'a.csv').write_text('a\n1\n')
    found['csv'] = [all_told(tracking_text.read_csv, tmp_path / 'a.csv'), tracking_text.csv.field_size_limit()]
    monkeypatch.undo()
    (tmp_path / 'b.parquet').write_bytes(b'PAR1 no')
    got = answer(lambda: tracking_archives.read_neptune_export(tmp_path / 'b.parquet'))
    found['parquet'] = [got[:45], answer(lambda: tracking_archives.read_neptune_export(tmp_path)[0])[:45]]
    import pyarrow as pa

    for n in (10**37, 5):
        steps = pa.array([Decimal(n), None, Decimal(1)], pa.decimal128(38, 0))
        found[f'steps {n}'] = [str(x) for x in tracking_archives._exact_steps(steps)]
    found['gone'] = answer(tracking_archives.read_comet, tmp_path / 'none.zip')[:20]
    monkeypatch.setattr(tracking_read, 'read_mlflow_server', lambda url: ['from', url])
    found['address'] = [tracking_read.read_all(u) for u in ('http://h', 'https://h')]

    def damaged(path):
        raise sqlite3.DatabaseError('disk image is malformed')

    monkeypatch.setattr(tracking_read, 'recognise', lambda path: 'mlflow')
    monkeypatch.setitem(tracking_read._file_readers, 'mlflow', damaged)
    found['damaged'] = answer(tracking_read._read_file, tmp_path / 'a.csv').replace(str(tmp_path), '')
    import matplotlib.pyplot as plt

    plt.close('all')  # it draws where something is drawn already
    ax = tracking_compare.plot_metric(some_runs()[:2], 'acc')
    found['plot'] = [len(ax.lines), ax.get_title(), answer(tracking_compare.plot_metric, some_runs(), 'other')]
    plt.close('all')
    same_answers(request, 'readers', found)


@pytest.mark.parametrize('nodes', [1, 2, 9, 10, 11, 12, 99, 100, 101, 1000])
def test_the_longest_name_of_a_job_leaves_room_for_the_last_pod(nodes):
    longest = 63 - len(f'-{nodes - 1}')

    def said(letters):
        return [
            s
            for s in kubernetes.Kubernetes()._rules(Job('a' * letters, ['x'], nodes=nodes, image='i'))
            if 'letters' in s
        ]

    assert not said(longest) and f'{longest} are possible' in said(longest + 1)[0]


def test_a_record_of_slurm_keeps_blanks_in_its_values():
    (f,) = slurm_answers.records('Reason=None Dependency=(null)  WorkDir=/my work StdOut=/my work/a b.out Power= ')
    assert f == dict(Reason='None', Dependency='(null)', WorkDir='/my work', StdOut='/my work/a b.out', Power='')
    assert slurm_answers.records('nothing\n\nCPUs/Task=1 ReqB:S:C:T=0:0:*:*') == [
        {},
        {},
        {'CPUs/Task': '1', 'ReqB:S:C:T': '0:0:*:*'},
    ]


def test_limits_are_those_of_the_partition_a_job_goes_to():
    "Without a name that is the default, wherever it is listed; a job of ours is requeued whatever JobRequeue says"
    rows = [f'PartitionName={n} Default={d} MaxTime={t}' for n, d, t in (('a', 'NO', '1:0:0'), ('b', 'YES', '2:0:0'))]

    def ask(*args):
        if args[0] == 'sinfo':
            asked.append(args[3])
            return '1 2 4000 (null)'
        return '\n'.join(r for r in rows if args[-1] == 'partition' or f'={args[-1]} ' in r)

    for mine, hours, there in (('', 2, 'b'), ('a', 1, 'a'), ('b', 2, 'b')):
        asked = []
        assert slurm_answers.limits_of(SimpleNamespace(partition=mine, ask=ask)).time == hours * 3600
        assert asked == [there]
    said = slurm_answers._partition_row(
        dict(PreemptMode='REQUEUE', GraceTime='8', State='UP', TotalNodes='2', MaxTime='30', PartitionName='a'),
        dict(JobRequeue='0', PreemptType='preempt/qos'),
    )
    assert said['value'].endswith('a preempted job comes back')


@pytest.mark.parametrize('step', ['x', '3', [1], float('nan'), float('inf')])
def test_a_point_whose_step_is_no_number_is_left_out_by_name(tmp_path, step):
    good, bad = dict(value=0.25, step=2), dict(value=0.5, step=step)
    op = dict(obj=dict(type='LogFloats', path=['loss'], values=[bad, good]))
    (tmp_path / 'data-1.log').write_text(json.dumps(op))
    metric = [dict(metricName='loss', metricValue=d['value'], step=d['step']) for d in (bad, good)]
    with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as z:
        lines = [json.dumps(dict(type='metric_msg', payload=dict(metric=m))) for m in metric]
        z.writestr('messages.json', '\n'.join(lines))
    rows = [dict(step=d['step'], loss=d['value']) for d in (bad, good)]
    (tmp_path / 'trainer_state.json').write_text(json.dumps(dict(log_history=rows)))
    runs = tracking_archives.read_neptune_offline(tmp_path) + tracking_archives.read_comet(tmp_path / 'c.zip')
    for run in [*runs, tracking_text.read_trainer_state(tmp_path / 'trainer_state.json')]:
        assert (run.metrics['loss'].steps, run.metrics['loss'].values) == ([2], [0.25])
        assert len(run.warnings) == 1 and "a point of 'loss' was left out: its step is " in run.warnings[0]


def test_an_odd_row_of_an_export_costs_that_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    nan = float('nan')
    for step, when, value in (
        (nan, None, 0.5),
        (float('inf'), None, 0.5),
        (2.0, '2026-01-01', 0.5),
        (2.0, 5, 0.5),
        (2.0, None, 'x'),
    ):
        names = dict(run_id=['a'] * 2, attribute_path=['loss', 'lr'], attribute_type=['float_series', 'string'])
        given = dict(step=[step] * 2, timestamp=[when] * 2, float_value=[value, None], string_value=[None, 'low'])
        pq.write_table(pa.table(names | given), tmp_path / 'e.parquet')
        run = tracking_archives.read_neptune_export(tmp_path / 'e.parquet')[0]
        assert (run.points(), run.params) == (0, dict(lr='low'))
        assert len(run.warnings) == 1 and "a row of 'loss' was left out: " in run.warnings[0]


def test_an_archive_of_somebody_else_is_no_session_of_clearml(tmp_path):
    with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as z:
        z.writestr('messages.json', '{}')
    run = tracking_archives.read_clearml(tmp_path / 'c.zip')[0]
    assert 'it holds neither task.json nor metrics.jsonl' in run.warnings[0]


@pytest.mark.parametrize(
    'lines, steps',
    [
        (['{"a": 1}', '{"b": 2}', '{"b": 3}'], dict(a=[0], b=[1, 2])),
        (['{"run": {"id": "x"}}', '{"a": 1}', '{"tags": {"k": "v"}}', '{"a": 2}'], dict(a=[0, 1])),
        (['{"step": 2, "tags": {"k": "v"}, "loss": 3}', '{"params": 1, "loss": 3, "step": 4}'], dict(loss=[2, 4])),
    ],
)
def test_each_row_of_numbers_has_its_step_or_its_place(tmp_path, lines, steps):
    (tmp_path / 'x.jsonl').write_text('\n'.join(lines))
    run = tracking_text.read_jsonl(tmp_path / 'x.jsonl')
    assert {k: s.steps for k, s in run.metrics.items() if k in steps} == steps and not run.warnings


def test_a_quantity_may_have_an_exponent_or_a_bare_point():
    "k8s.io/apimachinery/pkg/api/resource: a decimal exponent stands in place of a suffix"
    want = {
        '1e3': 1e3,
        '1E3': 1e3,
        '1E': 1e18,
        '2e-1': 0.2,
        '.5': 0.5,
        '5.': 5.0,
        '100n': 1e-7,
        '3u': 3e-6,
        '1.5Gi': 1.5 * GiB,
    }
    for text, number in want.items():
        assert math.isclose(manifests.quantity(text), number), text
    for bad in ('', '.', 'e3', '1e', '1e3Mi', '1e+', '2GB', '1 Gi', '1K'):
        with pytest.raises(ValueError, match='is no quantity'):
            manifests.quantity(bad)


@pytest.mark.parametrize(
    'row, want',
    [
        ({'loss': 10**400}, [math.inf, 0.5]),
        ({'loss': -(10**400)}, [-math.inf, 0.5]),
        ({'loss': None}, [0.5]),
        ({'loss': 'high'}, [0.5]),
        ({'loss': [1]}, [0.5]),
        (['loss'], [0.5]),
        ('loss', [0.5]),
    ],
)
def test_one_odd_value_of_a_trial_does_not_end_the_sweep(tmp_path, row, want):
    "The books are read in each round: a value that raises there would stop every trial, and every restart"
    lines = [dict(run=dict(id='a'), started=1.0), dict(t=2.0, step=0, m=row), dict(t=3.0, step=1, m=dict(loss=0.5))]
    (tmp_path / 'log.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    assert sweep_trials.history_of(tmp_path, 'loss') == want
    (tmp_path / 'log.jsonl').unlink()
    (tmp_path / 'output.txt').write_text('{"loss": 1' + '0' * 400 + '}\n')
    (tmp_path / 'exit.json').write_text('{"code": 0, "seconds": 1}')
    assert sweep_trials.verdict(tmp_path, 'loss', 1, 0)[0] == 'failed'
