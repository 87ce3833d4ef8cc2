"Answers of the part on training as they were: orders, texts, errors, plans, parts of traces, formulas"

import gzip
import io
import itertools
import json
import os
import random
import re
import sys
import tarfile
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from fsdl_tools.parallel.layout import parse_layout
from fsdl_tools.training import adapters, archive, checkpoint, clock, config, corpora, custom, data, diagnose, elastic
from fsdl_tools.training import loaders, methods, provenance, runlog, runs, speedups, switches, traces, trainer
from tests.answers import answer, same_answers


class Asked(dict):
    "Answers by question, in which a temporary folder has no name"

    def __init__(self, tmp=' no folder '):
        super().__init__()
        self.tmp = str(tmp)

    def __call__(self, question, function, *args, **kw):
        text = json.dumps(answer(function, *args, **kw))
        self[question] = json.loads(text.replace('PosixPath(', 'Path(').replace(self.tmp, 'TMP'))


def digest(numbers):
    "Type, shape, sum, a sum that sees the order, and the first of some numbers"
    a = numbers.detach().numpy() if isinstance(numbers, torch.Tensor) else np.asarray(numbers)
    row = a.astype(float).ravel()
    weights = 1 + np.arange(len(row)) % 7
    return [str(a.dtype), list(a.shape), *(float(f'{v:.5g}') for v in (row.sum(), row @ weights, *row[:3]))]


def image(seed, height=9, width=12, mode='RGB'):
    "Pixels from a seed"
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def folder_of_images(root, names):
    "Files of pictures, of a seed each"
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image(i).save(path) if path.suffix.lower() in ('.png', '.jpg', '.jpeg') else path.write_text('x')
    return root


# Corpora


def test_what_lies_at_a_path(request, tmp_path):
    asked = Asked(tmp_path)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'empty.txt').write_text('')
    (tmp_path / 'corpus.txt').write_text('hello')
    os.mkfifo(tmp_path / 'pipe')
    for name in (
        'corpus.txt',
        'empty.txt',
        'folder',
        'pipe',
        'corpsu.txt',
        'folder/none',
        'nowhere/x.txt',
        'sinthetic',
        'zzzzzz',
    ):
        asked(name, lambda name=name: corpora._regular(tmp_path / name).name)
        asked(f'tokenizer {name}', lambda name=name: corpora._regular(str(tmp_path / name), 'tokenizer').name)
    same_answers(request, 'paths', asked)


def test_kinds_of_files(request, tmp_path):
    asked = Asked(tmp_path)
    heads = [
        *corpora._packed,
        *corpora._not_text,
        b'plain text',
        b'BZ',
        b'\x80\x04',
        b'',
        'é€😀'.encode(),
        b'\xe9t\xe9',
        b'\xff\xfea\0',
        b'\xfe\xff\0a',
    ]
    for head in [*heads, *(head[:-1] for head in corpora._not_text), b'P', '\ufeffmarked\r\n'.encode()]:
        path = tmp_path / 'file'
        path.write_bytes(head + b' rest' if head[:1] != b'\xff' else head)
        asked(f'plain {head}', lambda path=path: corpora._plain(path).name)
        asked(f'text {head}', lambda path=path: list(corpora._as_text(path, 3)))
    with tarfile.open(tmp_path / 'a', 'w') as t:
        t.add(tmp_path / 'file', 'file')
    asked('tar', corpora._plain, tmp_path / 'a')
    (tmp_path / 'a').write_bytes(b'x' * 256 + b'ustar' + b'x' * 300)
    asked('nearly tar', lambda: corpora._plain(tmp_path / 'a').name)
    (tmp_path / 'a').write_bytes(b'x' * 257 + b'usta')
    asked('less than tar', lambda: corpora._plain(tmp_path / 'a').name)
    asked('default piece', lambda: [len(t) for t in corpora._as_text(tmp_path / 'a')])
    same_answers(request, 'kinds_of_files', asked)


def words_tokenizer(path, words, *more):
    "A tokenizer of whole words in a file"
    vocab = {w: i for i, w in enumerate([*more, '?', *words])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='?'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.save(str(path))
    return path


def test_texts_become_tokens(request, tmp_path):
    asked, rng = Asked(tmp_path), random.Random(0)
    words = ['a', 'bb', 'ccc', 'dddddddd', 'é', '😀']
    plain = words_tokenizer(tmp_path / 'plain.json', words)
    ends = words_tokenizer(tmp_path / 'ends.json', words, 'x', '</s>', '<|endoftext|>')
    tok = corpora._tokenizer(plain)[0]
    for n in (0, 1, 7, 40):
        text = ' '.join(rng.choice(words) for _ in range(n))
        whole = tok.encode(text, add_special_tokens=False).ids
        for piece, context in itertools.product((1, 3, 10, 64), (4, 40, 64)):
            pieces = (text[i : i + piece] for i in range(0, len(text), piece))
            if context > 9 and piece > 9:
                assert list(itertools.chain(*corpora._encoded(pieces, tok, context))) == whole
            pieces = (text[i : i + piece] for i in range(0, len(text), piece))
            asked(
                f'{n} {piece} {context}',
                lambda p=pieces, c=context: digest(np.concatenate([[0], *corpora._encoded(p, tok, c)])),
            )
    for before, text, done in itertools.product(
        ('', 'a bb', 'ccc ' + 'd' * 40, 'ddd'), ('', 'ddddd a', ' bb ccc'), (0, 1, 2, 6)
    ):
        asked(f'{before!r} {text!r} {done}', corpora._tokens_from, tok, before, text, done)
    places = np.array([[0, 2], [2, 5], [5, 6], [6, 6]])
    for start, stop in itertools.product((None, 0, 2, 3), (None, 0, 5, 6, 9)):
        asked(f'{start} {stop}', corpora._begins_within, places, start, stop)
    Tokenizer(models.BPE()).save(str(tmp_path / 'empty.json'))
    for name in (plain, ends, 'none.json', tmp_path, tmp_path / 'empty.json'):
        asked(f'tokenizer {Path(name).name}', lambda name=name: corpora._tokenizer(name)[1:])
    (tmp_path / 'bad.json').write_text('{}')
    asked('bad tokenizer', lambda: corpora._tokenizer(tmp_path / 'bad.json')[1:])
    for i, rows in enumerate(([['a bb', None, 'ccc'], ['é']], [['']], [[]], [[None], ['a', 'a']])):
        writer_of(tmp_path / f'{i}.PARQUET', rows)
        for t in (None, plain, ends):
            asked(
                f'parquet {i} {t and t.name}',
                lambda i=i, t=t: [
                    v.tolist() if hasattr(v, 'tolist') else v
                    for v in (
                        *corpora._tokens(tmp_path / f'{i}.PARQUET', t),
                        str(corpora._tokens(tmp_path / f'{i}.PARQUET', t)[0].dtype),
                    )
                ],
            )
        asked(f'rows {i}', lambda i=i: list(corpora._rows(tmp_path / f'{i}.PARQUET')))
    (tmp_path / 't.txt').write_text('a bb 😀 zzz')
    for t in (None, plain, ends):
        asked(
            f'text {t and t.name}',
            lambda t=t: (corpora._tokens(tmp_path / 't.txt', t)[0].tolist(), corpora._tokens(tmp_path / 't.txt', t)[1]),
        )
    (tmp_path / 'bad.parquet').write_bytes(b'PAR1 broken')
    asked(
        'bad parquet', lambda: re.sub('(as Parquet).*', r'\1', answer(corpora._tokens, tmp_path / 'bad.parquet', None))
    )
    for n in (2**16 - 1, 2**16):
        fake = SimpleNamespace(encode=lambda t, **kw: SimpleNamespace(ids=[1, 2], offsets=[[0, 1], [1, 2]]))
        with pytest.MonkeyPatch.context() as m:
            m.setattr(corpora, '_tokenizer', lambda path, n=n: (fake, n + 1, [0]))
            asked(
                f'vocabulary {n}',
                lambda: [str(corpora._tokens(tmp_path / p, 'x')[0].dtype) for p in ('t.txt', '0.PARQUET')],
            )
    same_answers(request, 'tokens_of_texts', asked)


def writer_of(path, groups):
    "A Parquet file with a row group for each list of texts"
    schema = pa.schema([('n', pa.int32()), ('text', pa.string())])
    with pq.ParquetWriter(path, schema) as w:
        for rows in groups:
            w.write_table(
                pa.table([pa.array(range(len(rows)), pa.int32()), pa.array(rows, pa.string())], schema=schema)
            )


def test_columns_of_texts(request):
    asked, s, i = Asked(), pa.string(), pa.int64()
    kinds = dict(
        string=s,
        large=pa.large_string(),
        view=pa.string_view(),
        words=pa.dictionary(i, s),
        number=i,
        numbers=pa.dictionary(i, i),
        binary=pa.binary(),
    )
    for name, kind in kinds.items():
        asked(name, corpora._holds_text, kind)
    for fields in (
        [('text', s), ('a', s)],
        [('a', i), ('b', s)],
        [('a', s), ('b', s)],
        [('Text', i), ('txt', i)],
        [('text', i), ('x', s)],
        [],
        [('text', i)],
    ):
        asked(str(fields), corpora._text_column, 'file', pa.schema(fields))
    parts = [np.arange(3), np.arange(2) + 10]
    for groups in ([], [[]], [['a']], [['a', 'b'], [], ['ccc']]):
        asked(f'joined {groups}', corpora._joined, groups, lambda t: np.full(len(t), 7), parts[1])
    same_answers(request, 'columns_of_texts', asked)


def test_folders_of_images(request, tmp_path):
    asked = Asked(tmp_path)
    layouts = dict(
        plain=[
            'a/1.png',
            'a/0.PNG',
            'b/x/2.jpg',
            'b/note.txt',
            '.hidden/3.png',
            '__MACOSX/4.png',
            'c/.h/1.png',
            'c/5.png',
        ],
        one=['a/1.png', 'a/labels.txt'],
        one_csv=['a/1.png', 'labels.csv'],
        metadata=['a/1.png', 'a/metadata.jsonl'],
        none=['a/x.txt'],
        missing=['a/1.png', 'b/x.txt'],
        two_csv=['a/1.png', 'b/1.png', 'l.csv'],
        split=['train/a/1.png', 'train/b/2.png', 'val/a/3.png'],
        only_train=['Training/a/1.png'],
        odd=['train/a/1.png', 'other/a/2.png'],
        flat=['train/1.png', 'val/2.png'],
        nested=['data/train/a/1.png', 'data/test/a/1.png'],
        new_class=['train/a/1.png', 'dev/z/1.png'],
        jsonl=['a/1.png', 'b.JSONL', 'a.tsv'],
        both=['train/a/1.png', 'val/a/1.png', 'test/a/1.png'],
        held=['val/a/1.png', 'test/b/2.png'],
    )
    short = lambda items, classes: ([(p.relative_to(tmp_path).as_posix(), i) for p, i in items], classes)
    for name, files in layouts.items():
        root = folder_of_images(tmp_path / name, files)
        asked(f'{name} folder', lambda root=root: short(*corpora._image_folder(root)))
        asked(f'{name} splits', lambda root=root: corpora._splits(root) and [str(p) for p in corpora._splits(root)])
        asked(f'{name} lists', lambda root=root: corpora._unread_lists(root, ['a', 'b']))
        asked(
            f'{name} open',
            lambda root=root: [(d.describe(), d.augment, len(d)) for d in data.open_data(root, size=4, holdout=0)],
        )
    asked('held', lambda: short(corpora._held_items(tmp_path / 'split/val', ['b', 'a']), 0))
    root = tmp_path / 'links'
    folder_of_images(root, ['a/1.png', 'b/2.png'])
    (root / 'a/up').symlink_to(root)
    (root / 'a/self').symlink_to(root / 'a')
    (root / 'b/out').symlink_to(tmp_path / 'plain')
    (root / 'b/twice').symlink_to(tmp_path / 'plain/a')
    asked('links', lambda: sorted(p.relative_to(tmp_path).as_posix() for p in corpora._walk(root / 'b', root)))
    for p in ('a/up', 'a/self', 'b/out', 'a', 'b/2.png'):
        asked(f'back {p}', corpora._leads_back, root / p, root)
    (root / 'a/d.jpg').mkdir()
    for p in ('a/1.png', 'a/d.jpg', 'a/none.png'):
        asked(f'image {p}', corpora._is_image, root / p, root)
    same_answers(request, 'folders_of_images', asked)


def test_modes_of_images(request, tmp_path):
    asked = Asked(tmp_path)
    for mode in ('RGB', 'L', 'P', 'RGBA', 'I', 'F', 'I;16', '1', 'LA', 'CMYK'):
        im = image(3, mode='L').convert('I').convert(mode) if mode == 'I;16' else image(3, mode=mode)
        if mode == 'P':
            im.info['transparency'] = 5
        im.save(tmp_path / 'x.tif') if mode in ('F', 'CMYK', 'I;16', 'I') else im.save(tmp_path / 'x.png')
        path = tmp_path / ('x.tif' if mode in ('F', 'CMYK', 'I;16', 'I') else 'x.png')
        asked(mode, lambda path=path: [corpora.read_image(path).mode, digest(np.asarray(corpora.read_image(path)))])
    for turn in (1, 3, 6):
        exif = Image.Exif()
        exif[0x112] = turn
        image(4).save(tmp_path / 'x.png', exif=exif)
        asked(f'turned {turn}', lambda: digest(np.asarray(corpora.read_image(tmp_path / 'x.png'))))
    (tmp_path / 'x.png').write_text('no image')
    asked('text', corpora.read_image, tmp_path / 'x.png')
    same_answers(request, 'modes_of_images', asked)


# Data


def test_orders(request):
    asked, rng = Asked(), np.random.default_rng(1)
    odd = (-1, 0, 1, True, 1.0, '3', 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, None, np.int64(7))
    for v in odd:
        asked(f'natural {v!r}', custom._natural, 'x', v)
        asked(f'natural below 8 {v!r}', custom._natural, 'x', v, 8)
        asked(f'epoch {v!r}', lambda v=v: data.epoch_order(5, v).tolist())
        asked(f'seed {v!r}', lambda v=v: data.epoch_order(5, 0, v).tolist())
    for n, epoch, seed, shuffle in itertools.product((0, 1, 2, 11), (0, 1), (0, 5), (True, False)):
        asked(f'{n} {epoch} {seed} {shuffle}', lambda *a: data.epoch_order(*a).tolist(), n, epoch, seed, shuffle)
    for n, step, batch in [
        (10, 0, 3),
        (10, 2, 3),
        (10, 3, 3),
        (10, 4, 3),
        (6, 1, 3),
        (6, 2, 3),
        (3, 0, 3),
        (2, 0, 3),
        (5, -1, 2),
        (5, 1, 0),
        (0, 0, 1),
        (5, 2.5, 1),
    ]:
        for more in ((), (1,), (1, False)):
            asked(f'step {n} {step} {batch} {more}', data.step_indices, n, step, batch, *more)
    for batch, ranks, micro in [*rng.integers(0, 9, (40, 3)).tolist(), (12, 3, 2), (12, 5, 1), (4, 3, 2), (6, 3, 2)]:
        asked(f'share {batch} {ranks} {micro}', data._share, batch, ranks, micro)
        for rank in (0, ranks - 1, ranks):
            asked(f'rank {batch} {ranks} {micro} {rank}', data.rank_indices, 30, 1, batch, rank, ranks, micro, 3)
    for n in (0, 1, 2**26 - 1, 2**26, 2**26 + 1, 2**27, 10**9):
        asked(f'blocks {n}', lambda n=n: (len(data._blocks(n)), data._blocks(n)[:3], data._blocks(n)[-1]))
    for n, most in itertools.product((1, 2, 7, 100), (1, 2, 5, 100)):
        asked(f'evenly {n} {most}', lambda n=n, m=most: sorted(custom._evenly(n, m)))
    for n, holdout in itertools.product((0, 1, 2, 9, 10, 15, 100), (0, 0.01, 0.1, 0.5, 0.99)):
        asked(f'split {n} {holdout}', custom._split, n, holdout, 'it')
        asked(f'at random {n} {holdout}', custom._split_at_random, n, holdout, 'it', 4)
    same_answers(request, 'orders', asked)


class Pairs(list):
    "A data set of one's own"

    vocab, classes = 7, None


def own_data(seed, holdout, n=8):
    return Pairs((torch.arange(3) + i, torch.arange(3)) for i in range(n))


def own_two(seed):
    return Pairs([(torch.linspace(0.1, 0.7, 3), torch.tensor(1))] * 4), data.Tokens(
        'held', np.arange(9, dtype=np.uint8), 2, 9
    )


def own_needy(there, seed=0, *, missing, other, **rest):
    return []


def own_number():
    return 3


def own_fractions():
    return [(torch.zeros(2), torch.zeros(2))] * 3


def own_triples():
    return [(1, 2, 3)] * 30


def own_drawn():
    return Drawn()


class Drawn:
    "Items that are drawn"

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.tensor([random.random() + np.random.rand(), float(torch.rand(()))]), torch.tensor(i)


def test_data_sets(request, tmp_path):
    asked = Asked(tmp_path)
    here = lambda f: f'{f.__module__}:{f.__name__}'
    tokens = np.random.default_rng(0).integers(0, 250, 101).astype(np.uint8)
    for seq, first, n in ((10, 0, None), (9, 2, 3), (100, 0, None), (101, 0, None), (25, 3, 1)):
        d = data.Tokens('row', tokens, seq, 256, first, n)
        asked(
            f'tokens {seq} {first} {n}',
            lambda d=d: [
                d.describe(),
                len(d),
                d.content()[:16],
                *([t.tolist() for t in d[(0, i)]] for i in range(len(d))),
            ],
        )
        for i in (-1, len(d)):
            asked(f'tokens {seq} {first} {n} at {i}', d.sample, i)
    for kind in (np.uint16, np.int64):
        asked(f'content {kind}', lambda kind=kind: data.Tokens('row', tokens.astype(kind), 5, 256).content()[:16])
    tokens.tofile(tmp_path / 'row')
    for row in (tokens, np.memmap(tmp_path / 'row', np.uint8, 'r')):
        asked(
            f'state {type(row)}',
            lambda row=row: {
                k: str(v)
                for k, v in data.Tokens('row', row, 5, 9).__getstate__().items()
                if k != 'tokens' or isinstance(v, str)
            },
        )
    for w, h in ((4, 4), (12, 9), (9, 12), (1, 7)):
        asked(f'square {w} {h}', data._square, w, h, None)
        asked(
            f'random square {w} {h}', lambda w=w, h=h: [data._square(w, h, np.random.default_rng(s)) for s in range(3)]
        )
        for s in range(4):
            asked(
                f'pixels {w} {h} {s}',
                lambda w=w, h=h, s=s: digest(data._pixels(image(0, h, w), 6, np.random.default_rng(s) if s else None)),
            )
    root = folder_of_images(tmp_path / 'im', ['a/1.png', 'a/2.png', 'b/3.png', 'b/4.png', 'b/5.png'])
    for size, seed, holdout in ((4, 0, 0.4), (7, 3, 0)):
        for d in data.open_data(root, size=size, seed=seed, holdout=holdout):
            asked(
                f'images {size} {d.augment}',
                lambda d=d: [
                    d.describe(),
                    d.content()[:16],
                    *([label, digest(x)] for x, label in (d.sample(i, e) for i in range(len(d)) for e in (0, 1))),
                ],
            )
    for source in (
        'synthetic',
        'synthetic:tokens',
        'synthetic:images',
        'synthetic:imags',
        '',
        'nowhere',
        tmp_path / 'row',
    ):
        for kw in ({}, dict(seq=7, size=9, holdout=0.3, seed=2), dict(seq=200), dict(tokenizer='x.json')):
            asked(
                f'open {Path(source).name} {kw}',
                lambda s=source, kw=kw: [
                    [d.describe(), d.content()[:16], digest(d.sample(len(d) - 1)[0])] for d in data.open_data(s, **kw)
                ],
            )
    for kw in (
        dict(seq=0),
        dict(size=-1),
        dict(seed=-1),
        dict(seed=2**32),
        dict(holdout=1),
        dict(holdout=-0.1),
        dict(holdout=True),
        dict(holdout=0.999),
        dict(seq=2**16),
    ):
        asked(f'open {kw}', lambda kw=kw: len(data.open_data('synthetic', **kw)))
    for seq, n in ((2**15, 2**12), (2**15 + 1, 2**12), (3, 4)):
        with pytest.MonkeyPatch.context() as m:
            if seq > 3:
                m.setattr(
                    custom,
                    '_rng',
                    lambda *a: SimpleNamespace(random=lambda n: np.ones(3), integers=lambda *a: np.arange(3)),
                )
            asked(f'synthetic {seq} {n}', lambda seq=seq, n=n: custom._synthetic_tokens(seq, 0, n))
    for f in (own_data, own_two, own_number, own_fractions, own_triples, own_drawn):
        for holdout in (0, 0.5):
            asked(
                f'own {f.__name__} {holdout}',
                lambda f=f, h=holdout: [
                    [
                        d.describe(),
                        d.kind,
                        len(d),
                        getattr(d, 'vocab', 0),
                        getattr(d, 'classes', 0),
                        d.content()[:16],
                        [digest(t) for i in range(len(d)) for t in d.sample(i, 1)],
                    ]
                    for d in data.open_data(here(f), holdout=h)
                ],
            )
    for offers in (dict(there=1), dict(there=1, missing=2, other=3), dict()):
        asked(f'call {offers}', lambda o=offers: custom.call_factory(here(own_needy), **o))
    for f in (own_data, 'a.b:c', lambda: 0, Pairs.append, Pairs, 3):
        asked(f'name {str(f)[:12]}', lambda f=f: custom.factory_name(f))
    same_answers(request, 'data_sets', asked)


def test_kinds_of_samples(request):
    asked = Asked()
    for x, y in itertools.product(
        (
            torch.zeros(3),
            torch.zeros(3, dtype=int),
            torch.zeros(3, 4, 4),
            torch.zeros(3, 4, 4, dtype=int),
            torch.zeros(2, dtype=int),
        ),
        (torch.zeros(3, dtype=int), torch.tensor(1)),
    ):
        asked(f'{x.dtype} {x.shape} {y.shape}', custom._kind_of, x, y)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for key in ((0, 0, 0), (0, 1, 0), (2**32 - 1, 5, 3)):
        with custom._fixed_random(*key):
            asked(f'drawn {key}', lambda: [random.random(), np.random.rand(), round(float(torch.rand(())), 6)])
    asked('as before', lambda: [random.random(), np.random.rand(), round(float(torch.rand(())), 6)])
    d = data.Tokens('row', np.arange(100, dtype=np.uint8), 3, 100)
    for kw in (
        dict(),
        dict(rank=1, ranks=2),
        dict(start=2, stop=5),
        dict(stop=0),
        dict(start=3, stop=2),
        dict(start=-1),
        dict(workers=-1),
        dict(rank=2, ranks=2),
        dict(start=5, stop=5),
        dict(seed=3),
    ):
        asked(
            f'feed {kw}',
            lambda kw=kw: (
                [
                    [[x[:, 0].tolist(), y[:, -1].tolist()] for x, y in step]
                    for step in itertools.islice(data.Feed(d, 8, 2, **kw), 3)
                ]
                + [data.Feed(d, 8, 2, **kw).per_epoch]
            ),
        )
    for micro, rank, ranks, limit in (
        (4, 0, 1, None),
        (4, 1, 3, None),
        (5, 0, 2, 11),
        (5, 1, 2, 11),
        (3, 0, 1, 0),
        (3, 0, 1, 6),
        (3, 0, 1, 99),
        (0, 0, 1, 3),
        (2, 2, 2, 3),
        (2, 0, 0, 3),
        (2, 0, 1, -1),
    ):
        asked(
            f'held {micro} {rank} {ranks} {limit}',
            lambda *a: [[x[:, 0].tolist(), w.tolist()] for x, y, w in data.eval_batches(d, *a)],
            micro,
            rank,
            ranks,
            limit,
        )
    asked(
        'stacked', lambda: [t.tolist() for y in (1, torch.tensor(2)) for t in data._stacked([(torch.zeros(2), y)] * 2)]
    )

    def loader(error):
        yield 1
        raise error

    for e in (ValueError('own'), ValueError('Caught …\nOriginal Traceback\nValueError: the cause'), KeyError('x')):
        asked(f'told {e}', lambda e=e: list(data._told(loader(e))))
    same_answers(request, 'kinds_of_samples', asked)


# Configurations


def tokens_of(vocab, n=40):
    return data.Tokens('row', np.arange(n, dtype=np.uint8), 3, vocab)


def test_configurations(request, tmp_path, monkeypatch):
    asked, make = Asked(tmp_path), config.TrainConfig
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    counts = ('seq', 'image_size', 'warmup', 'seed', 'eval_every', 'eval_samples', 'save_every', 'workers')
    for field in ('steps', 'global_batch', 'keep', *counts, 'lr', 'clip', 'weight_decay'):
        for value in (-1, 0, 1, 2, 0.5, True, float('nan'), float('inf')):
            more = dict(folder='f') if field == 'save_every' else {}
            asked(f'{field} {value}', lambda f=field, v=value, more=more: getattr(make(**{f: v}, **more), f))
    bad = [
        dict(model=torch.nn.ReLU()),
        dict(data=3),
        dict(model=Path('a.json')),
        dict(model=own_data),
        dict(data=lambda: 0),
        dict(device='gpu'),
        dict(lr_schedule='cosin'),
        dict(layout='dp2 x'),
        dict(layout='dp2 zero=3 precision=bf16'),
        dict(save_every=3),
        dict(resume=True),
        dict(resume=True, folder='x'),
    ]
    for i, kw in enumerate(bad):
        asked(f'{list(kw)} {i}', lambda kw=kw: repr(make(**kw)))
    asked('again', lambda: make.from_dict(make(layout='dp2 tp2', lr=0.1).to_dict()) == make(layout='dp2 tp2', lr=0.1))
    for d in (3, None, [], dict(layout=3), dict(layout='x'), dict(lrr=1), dict(layout='tp2', steps=3)):
        asked(f'from {d}', lambda d=d: repr(make.from_dict(d)))
    for schedule, warmup, steps in itertools.product(config.lr_schedules, (0, 1, 4, 10), (1, 5, 10)):
        c = make(lr=2.0, lr_schedule=schedule, warmup=warmup, steps=steps)
        asked(f'{schedule} {warmup} {steps}', lambda c=c: [config.lr_at(c, s) for s in range(12)])
    for layout, batch in itertools.product(('dp1', 'dp2', 'dp3', 'pp2', 'pp2 dp2', 'pp4'), (1, 2, 4, 6, 8, 12, 16)):
        asked(
            f'{layout} {batch}',
            lambda a=layout, b=batch: [
                config._micro_batch(parse_layout(a), b),
                config._layout(make(layout=a, global_batch=b), 'cpu').text(),
                config._layout(make(layout=a, global_batch=b), 'cuda').text(),
            ],
        )
    for vocab, least in itertools.product((1, 127, 128, 129, 256, 257), (100, 128, 256)):
        asked(f'round {vocab} {least}', config._round_up, vocab, least)
    for name in (
        'gpt-tiny',
        'gpt-tinny',
        'resnet18',
        'resnet19999x',
        'bert',
        'gpt2',
        'vit',
        'llama',
        'clip',
        'nothing_like',
        'tests.training.test_answers:own_data',
        'tests.training.test_answers:none',
    ):
        asked(f'kind {name}', lambda n=name: re.sub(' did you mean.*|:.*nearest.*', '', str(answer(config._kind, n))))
    for device, there in itertools.product(('', 'cpu', 'cuda'), (True, False)):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        asked(f'device {device!r} {there}', lambda d=device: config._device(make(device=d)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for kw in (
        dict(),
        dict(seq=32),
        dict(seq=5000),
        dict(model='gpt2'),
        dict(model='gpt2', seq=1024),
        dict(model='gpt2', seq=1025),
        dict(model='bert', seq=3),
        dict(model='resnet18'),
        dict(model='resnet18', image_size=5),
        dict(model='vit'),
        dict(model='vit', image_size=8),
        dict(model='llama'),
    ):
        asked(
            f'sized {kw}',
            lambda kw=kw: [(c.seq, c.image_size) for c in [config._sized(make(**kw), *config._kind(make(**kw).model))]],
        )
    with monkeypatch.context() as m:
        for c in (SimpleNamespace(), SimpleNamespace(image_size=96)):
            m.setattr('fsdl_tools.models.architectures.load_config', lambda name, c=c: c)
            asked(f'side {c}', lambda: config._size(make(), 'transformers'))
    own = Pairs([(torch.zeros(3), torch.tensor(1))] * 9)
    for kind, d in itertools.product(
        (None, 'tokens', 'images'), (tokens_of(9), tokens_of(None), custom.Own('own', own))
    ):
        asked(f'fits {kind} {d.kind} {d.vocab}', config._check_kind, make(), kind, d)
    for kw in (dict(), dict(seq=2000), dict(model='gpt-tiny', seq=8)):
        for vocab in (3, 256, 257, 70000):
            asked(
                f'shape {kw} {vocab}',
                lambda kw=kw, v=vocab: [
                    (s.vocab, s.ctx, s.layers) for s in [config._gpt_shape(make(**kw), tokens_of(v))]
                ],
            )
    for kw in (
        dict(),
        dict(layout='dp2'),
        dict(global_batch=4000),
        dict(model='resnet18'),
        dict(model='resnet18', data='synthetic:images', image_size=32),
        dict(layout='dp3'),
        dict(layout='tp3'),
        dict(layout='dp1 optimizer=adafactor'),
        dict(layout='dp1 optimizer=sgd'),
        dict(holdout=0.5, seq=16),
        dict(layout='pp2', global_batch=8),
    ):
        asked(
            f'check {kw}',
            lambda kw=kw: [
                (
                    c.layout.text(),
                    c.seq,
                    c.image_size,
                    c.device,
                    l.text(),
                    d.describe(),
                    h.describe(),
                    s and (s.vocab, s.ctx),
                )
                for c, l, d, h, s in [config.check_config(make(**kw))]
            ],
        )
    asked('too many ranks', lambda: str(config.check_config(make(), 2)[1]))
    for name, world in itertools.product(('__main__:f', 'a:f'), ('dp1', 'dp2')):
        asked(
            f'importable {name} {world}',
            lambda n=name, w=world: config._check_importable(SimpleNamespace(model=n, data='x'), parse_layout(w)),
        )
    same_answers(request, 'configurations', asked)


def test_folders_of_runs(request, tmp_path):
    asked, make = Asked(tmp_path), config.TrainConfig
    c = make(folder=str(tmp_path / 'run'), layout='dp2 optimizer=adamw', seq=3)
    steps = tmp_path / 'run/checkpoints'
    asked('no run', config._check_folder, c, tokens_of(9), tokens_of(9), 'adamw')
    for name in ('step-00000003', 'step-00000012', 'step-x', '.step-00000099', 'step-'):
        (steps / name).mkdir(parents=True)
    (steps / 'step-00000050').symlink_to(steps / 'step-x')
    asked('reached', config._reached, tmp_path / 'run')
    asked('reached nothing', config._reached, tmp_path)
    content = config._content(tokens_of(9), tokens_of(9, 9))
    asked('content', lambda: content)
    good = dict(config=c.to_dict(), samples=13, content=content)
    old = {k: v for k, v in good.items() if k != 'content'}
    for i, said in enumerate(
        (
            None,
            '',
            '{',
            '[]',
            {},
            dict(config={}),
            dict(config=dict(layout='dp2')),
            dict(config=dict(layout='x'), samples=1),
            dict(config=3, samples=3),
            good,
            old,
        )
    ):
        (tmp_path / 'run/run.json').write_text(said if isinstance(said, str) else json.dumps(said))
        asked(f'run {i}', lambda: sorted(config._run_of(tmp_path / 'run') or {}))
        for kw in (
            dict(),
            dict(resume=True),
            dict(resume=True, steps=12),
            dict(resume=True, steps=11),
            dict(resume=True, seed=1),
            dict(resume=True, model='gpt2'),
            dict(resume=True, data='x'),
            dict(resume=True, tokenizer='t'),
            dict(resume=True, lr=9.0),
        ):
            asked(f'check {i} {kw}', config._check_folder, c.replace(**kw), tokens_of(9), tokens_of(9, 9), 'adamw')
        asked(f'other data {i}', config._check_folder, c.replace(resume=True), tokens_of(9), tokens_of(9, 12), 'adamw')
        asked(
            f'other samples {i}',
            config._check_folder,
            c.replace(resume=True),
            tokens_of(9, 99),
            tokens_of(9, 9),
            'adamw',
        )
        asked(
            f'other optimizer {i}', config._check_folder, c.replace(resume=True), tokens_of(9), tokens_of(9, 9), 'sgd'
        )
    asked('nowhere', config._run_of, tmp_path)
    before = make(steps=20).to_dict()
    for kw in (
        dict(steps=20),
        dict(steps=40),
        dict(steps=40, lr_schedule='constant'),
        dict(steps=20, lr=0.1),
        dict(steps=20, clip=2.0),
        dict(steps=20, warmup=5),
        dict(steps=20, weight_decay=0.1, lr=0.5),
    ):
        for step in (0, 1, 10, 30):
            asked(f'changes {kw} {step}', config._changes, before, make(**kw), step)
            asked(
                f'said {kw} {step}',
                lambda kw=kw, s=step: config._say_changes(config._changes(before, make(**kw), s), s),
            )
    constant = make(steps=20, lr_schedule='constant')
    asked('further', config._changes, constant.to_dict(), constant.replace(steps=30), 9)

    def taken(path, **kw):
        return SimpleNamespace(acquire=lambda timeout: exec('raise error', dict(error=config.Timeout(path))))

    (tmp_path / 'locked').mkdir()
    (tmp_path / 'locked/.lock').write_text('77 ')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(config, 'FileLock', taken)
        asked('locked', config.lock_folder, tmp_path / 'locked')
    with config.lock_folder(tmp_path / 'locked'):
        asked('free again', lambda: (tmp_path / 'locked/.lock').read_text() == str(os.getpid()))
    same_answers(request, 'folders_of_runs', asked)


# Checkpoints


def saved(folder, step, tensors, **kw):
    "A checkpoint in a folder"
    saver = checkpoint.Checkpointer(folder, **kw)
    saver.save(step, tensors, dict(note='é'), wait=True)
    return saver


def test_checkpoints(request, tmp_path, recwarn):
    asked = Asked(tmp_path)
    tensors = {
        'model.w': torch.arange(6.0).view(2, 3),
        'model.b': torch.tensor([1, 2]),
        'opt': torch.ones(1, dtype=torch.bfloat16),
    }
    folder = tmp_path / 'c'
    saver = saved(folder, 3, tensors)
    good = folder / 'step-00000003'
    asked('good', archive.verify_checkpoint, good)
    asked('files', lambda: sorted(p.name for p in good.iterdir()))
    asked('none', archive.verify_checkpoint, tmp_path / 'none')
    asked('extra', lambda: (good / 'extra.json').read_text())
    listed = json.loads((good / 'manifest.json').read_text())
    asked(
        'manifest',
        lambda: [
            sorted(listed),
            listed['format'],
            listed['step'],
            listed['world_size'],
            sorted(listed['versions']),
            sorted(listed['files']),
        ],
    )
    for step in (0, 3, 123456789, -1, True, '3', 2.0, np.int64(4)):
        asked(f'name {step!r}', archive.step_folder, step)

    def spoilt(how):
        "Problems of a copy in which something is changed"
        import shutil

        copy = tmp_path / 'spoilt' / 'step-00000003'
        shutil.rmtree(tmp_path / 'spoilt', ignore_errors=True)
        shutil.copytree(good, copy)
        how(copy)
        return [archive.verify_checkpoint(copy), *(archive.verify_checkpoint(copy, r, 2) for r in (0, 1, -1))]

    def manifest(seal=True, **kw):
        "A change of what the manifest says"

        def change(copy):
            said = {**json.loads((copy / 'manifest.json').read_text()), **kw}
            said['files'] = (
                {n: e for n, e in said['files'].items() if e} if isinstance(said['files'], dict) else said['files']
            )
            if seal:
                said['seal'] = archive._seal(said)
            (copy / 'manifest.json').write_text(json.dumps(said))

        return change

    files = listed['files']
    shard = next(n for n in files if n.startswith('shard'))

    def flip(copy):
        raw = bytearray((copy / shard).read_bytes())
        raw[-1] ^= 1
        (copy / shard).write_bytes(raw)

    hows = dict(
        missing=lambda c: (c / shard).unlink(),
        longer=lambda c: (c / 'extra.json').write_text('x' * 2000),
        flipped=flip,
        more=lambda c: (c / 'more').write_text(''),
        no_manifest=lambda c: (c / 'manifest.json').unlink(),
        torn=lambda c: (c / 'manifest.json').write_text('{'),
        listed=lambda c: (c / 'manifest.json').write_text('[]'),
        link=lambda c: ((c / 'extra.json').rename(c.parent / 'e'), (c / 'extra.json').symlink_to(c.parent / 'e')),
        folder=lambda c: ((c / 'extra.json').unlink(), (c / 'extra.json').mkdir()),
        manifest_link=lambda c: (
            (c / 'manifest.json').rename(c.parent / 'm'),
            (c / 'manifest.json').symlink_to(c.parent / 'm'),
        ),
        format=manifest(format=2),
        step=manifest(step=4),
        unsealed=manifest(False, world_size=9),
        unlisted=manifest(files={**files, 'extra.json': None}),
        leads_out=manifest(
            files={
                **files,
                '../x': files[shard],
                '': files[shard],
                '.': files[shard],
                '..': files[shard],
                'a\\b': files[shard],
            }
        ),
        no_files=manifest(files=3),
        renamed=lambda c: None,
    )
    for name, how in hows.items():
        asked(name, lambda how=how: re.sub(r'[0-9,]+ bytes', 'N bytes', json.dumps(spoilt(how))))
    for t in (torch.zeros(2), 3, torch.zeros(2, device='meta'), torch.zeros(2, 2).to_sparse()):
        for name in ('a', '', '__metadata__', 3):
            asked(f'tensor {str(t)[:20]} {name!r}', checkpoint._check_tensor, name, t)
    want = dict(tensors, **{'model.ww': torch.zeros(1), 'model.b': torch.zeros(2), 'model.w': torch.zeros(3, 2)})
    asked('misfits', lambda: archive._misfits(want, archive._metadata(good).state_dict_metadata))
    asked(
        'many misfits',
        lambda: archive._misfits(
            {f'model.w{i}': torch.zeros(1) for i in range(10)}, archive._metadata(good).state_dict_metadata
        ),
    )
    for n in (0, 1, 8, 9, 12):
        asked(
            f'problems {n}',
            lambda n=n: [
                str(archive.CheckpointError('what', [f'p{i}' for i in range(n)])),
                archive.CheckpointError('what', [f'p{i}' for i in range(n)]).problems,
            ],
        )
    for step in (None, 3, 4):
        asked(
            f'load {step}',
            lambda s=step: [
                saver.load(into := {n: torch.zeros_like(t) for n, t in tensors.items()}, s),
                [digest(t.float()) for t in into.values()],
            ],
        )
    asked('load other', saver.load, want)
    asked('save again', lambda: saver.save(3, tensors, wait=True))
    for bad in (-1, True):
        asked(f'save {bad}', saver.save, bad, tensors)
    asked('failed', lambda: saver.failed)
    for step in (5, 7, 20):
        saver.save(step, tensors, wait=True)
    asked('kept', saver.steps)
    flip(folder / 'step-00000020')
    (folder / 'step-00000021').write_text('x')
    (folder / 'step-00000022').symlink_to(folder / 'step-00000007')
    (folder / 'step-000000007').mkdir()
    asked('latest', saver.latest)
    asked('steps', saver.steps)
    asked('find', saver._find, 20)
    saver.save(20, tensors, wait=True)
    asked('repaired', saver.latest)
    asked(
        'table',
        lambda: [
            {k: v for k, v in r.items() if k not in ('bytes', 'files')} | dict(some=r['bytes'] > 0)
            for r in archive.checkpoints(folder)
        ],
    )
    leftovers = ('.step-00000001.tmp-0123abcd', '.step-00000001.tmp-0123abc', '.step-1.tmp-0123abcd', 'other')
    for name in leftovers:
        (folder / name).mkdir()
    checkpoint._sweep(folder)
    asked('swept', lambda: [n for n in leftovers if (folder / n).exists()])
    for prefix, out in (('model.', 'w.safetensors'), ('', 'all.safetensors'), ('nobody', 'x'), ('model.w', 'y')):
        asked(
            f'export {prefix}',
            lambda p=prefix, out=out: {
                n: digest(t.float())
                for n, t in archive.safetensors.torch.load_file(
                    archive.export_weights(folder / 'step-00000020', tmp_path / out, p)
                ).items()
            },
        )
    asked('export inside', archive.export_weights, folder / 'step-00000020', folder / 'step-00000020/x')
    for keep in (1, 3, 0):
        asked(f'keep {keep}', lambda k=keep: saved(tmp_path / f'k{k}', 1, tensors, keep=k).steps())
    asked('warned', lambda: [[str(w.message), Path(w.filename).name] for w in recwarn if 'step-' in str(w.message)])
    same_answers(request, 'checkpoints', asked)


# Logs of runs


def test_numbers_of_logs(request):
    asked = Asked()
    odd = (
        0,
        1,
        -1.5,
        float('nan'),
        float('inf'),
        -float('inf'),
        True,
        2**70,
        np.float32(2.5),
        torch.tensor(3),
        torch.tensor(True),
        'x',
        None,
        10**4000,
        np.int64(3),
        torch.zeros(2),
    )
    for v in odd:
        for f in (
            runlog.number_text,
            runlog._as_number,
            runlog._as_logged,
            runlog._field,
            runlog._plain,
            runlog.text_number,
        ):
            asked(
                f'{f.__name__} {str(v)[:20]!r} {type(v).__name__}',
                lambda f=f, v=v: [str(r := f(v))[:50], type(r).__name__],
            )
    for v in ('NaN', 'Infinity', '-Infinity', '3.5', 'x'):
        asked(f'text {v}', runlog.text_number, v)
    for bits in (10_000, 10_001):
        asked(f'bits {bits}', lambda b=bits: runlog._as_logged(2 ** (b - 1)) > 0)
    for v in ({1: (2, [float('nan')]), 'a': None}, {'b': Path('x')}, 3.5):
        asked(f'plain {type(v)} {len(str(v)) > 30}', runlog._plain, v)
    for name in ('a', 'é%s', '"q"', 'api_key=abcdefgh12345'):
        asked(f'hole {name}', runlog._hole, name)
    asked('line', runlog._line, t=1.5, a='\ud800', b=float('inf'))
    s = runs.Series([1, 2], [0.5, float('nan')], [0.0, 1.0])
    asked(
        'series',
        lambda: [len(s), s.last(), runs.Series().last(), s.to_dict(), repr(runs.Series.from_dict(s.to_dict()))],
    )
    for status, name, warned in itertools.product(('', 'finished'), ('', 'n'), ([], ['a', 'b', 'c', 'd'])):
        r = runs.Run(
            'id',
            name,
            source='fsdl',
            status=status,
            metrics=dict(loss=s, none=runs.Series()),
            warnings=warned,
            params=dict(a=1),
            artifacts=[runlog.Artifact('f')],
        )
        asked(
            f'run {status} {name} {len(warned)}',
            lambda r=r: [
                repr(r),
                r.points(),
                r.summary()._repr_markdown_(),
                repr(runs.Run.from_dict(r.to_dict())) == repr(r),
            ],
        )
    same_answers(request, 'numbers_of_logs', asked)


def test_logs(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    ticks = itertools.count(100)
    monkeypatch.setattr(runlog.time, 'time', lambda: float(next(ticks)))
    monkeypatch.setattr(runlog.RunLog, '_start_thread', lambda self: None)
    (tmp_path / 'r').mkdir()
    (tmp_path / 'file.txt').write_text('content')
    log = runlog.RunLog(tmp_path / 'r', id='r1', name='é', params=dict(a=1))
    for values, step in (
        ({'loss': 1.0}, None),
        ({'loss': 2, 'acc': True}, None),
        ({'loss': torch.tensor(3.0)}, 7),
        ({'loss': float('nan')}, None),
        ({'x%': np.float32(0.5)}, 8.5),
        ({'big': 2**10001}, None),
        ({}, None),
        ({'s': 'x'}, None),
    ):
        asked(f'log {list(values)} {step}', lambda v=values, s=step: [log.log(v, s), log._step, log._size])
    log.log_params(dict(api_key='secret1234', b=2.0))
    log.tag(kind='test')
    asked('artifact', log.artifact, tmp_path / 'file.txt', step=4)
    asked('artifact again', log.artifact, tmp_path / 'file.txt', 'name', 'model')
    asked('no artifact', log.artifact, tmp_path / 'none')
    log.finish('failed')
    log.finish()
    asked('after', log.log, dict(a=1))
    asked('lines', lambda: (tmp_path / 'r/log.jsonl').read_text().splitlines())
    asked('read', lambda: runs.read_log(tmp_path / 'r').to_dict())
    first = (tmp_path / 'r/log.jsonl').read_text()
    lines = first.splitlines(keepends=True)
    texts = dict(
        torn=first[:-4],
        empty='',
        half=lines[0][:-1],
        other='{"schema": "x"}\n',
        list='[1]\n',
        number=lines[0] + '3\n{"m": 3}\n{"m": {"a": "x"}}\n{"m": {"a": "NaN"}, "step": 1}\n{"t": "x"}\n',
        kinds=lines[0].replace('{"a": 1}', '3')
        + '{"params": 3}\n{"artifact": {"nme": 1}}\n{"end": "exited", "t": 5}\nno json\n{"tags": {"x": 1}}\n',
        unnamed='{"schema": "fsdl-run/1"}\n',
    )
    for name, text in texts.items():
        (tmp_path / 'other.jsonl').write_text(text)
        asked(f'read {name}', lambda: runs.read_log(tmp_path / 'other.jsonl').to_dict())
        asked(f'events {name}', lambda: list(runs.events(tmp_path / 'other.jsonl')))
    (tmp_path / 'other.jsonl').write_text(first)
    asked(
        'from',
        lambda: (
            [o for _, o in runs.events(tmp_path / 'other.jsonl', len(lines[0]))]
            == [len(''.join(lines[: i + 2]).encode()) for i in range(len(lines) - 1)]
        ),
    )
    asked('alive', runs.alive, tmp_path / 'other.jsonl')
    (tmp_path / 'q').mkdir()
    small = runlog.RunLog(tmp_path / 'q')
    asked('living', lambda: [runs.alive(tmp_path / 'q/log.jsonl'), runs.read_log(tmp_path / 'q').status])
    asked('room', lambda: [small.limit, small.calm, small.most, small.interval])
    small.limit, small.calm, small.most = 100, 150, 300
    for i in range(9):
        small.log(dict(v=float(i)))
        asked(
            f'room {i}',
            lambda: [small._size, small.dropped, small._wake.is_set(), [type(line).__name__ for line in small._lines]],
        )
    for room, wanted in ((0, 5), (3, 0)):

        def write(fd, d, room=room):
            if room == 0:
                raise OSError(28, 'No space left on device')
            return os.write.__wrapped__(fd, d[:room]) if hasattr(os.write, '__wrapped__') else len(d[:room])

        with pytest.MonkeyPatch.context() as m:
            m.setattr(runlog.os, 'write', write)
            with pytest.warns(RuntimeWarning) if room == 0 else open(os.devnull):
                small.flush()
        asked(f'written {room} {wanted}', lambda: [small._size, len(small._rest), small.trouble, small._lines])
    small.log(dict(v=1.0))
    small.finish()
    with runlog.NoLog() as nothing:
        asked('no log', lambda: [nothing.log({}), nothing.id, nothing.finish()])
        asked('no method', lambda: nothing.lgo)
        asked('no private', lambda: nothing._put)
    with (
        pytest.raises(KeyError),
        runlog.start_run(
            tmp_path / 'runs', dict(hf_token='x'), 'name', 'project', packages=False, tags=dict(a='b')
        ) as started,
    ):
        raise KeyError('bad')
    read = runs.read_log(started.folder)
    asked(
        'started',
        lambda: [
            read.status,
            read.name,
            read.project,
            read.params,
            read.tags,
            sorted(read.environment),
            re.sub(r'\d{8}-\d{6}-[0-9a-f]{6}', 'ID', read.id),
        ],
    )
    for rank in ('0', '1', ''):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('FSDL_RUN_FOLDER', str(tmp_path / f'own{rank}'))
        asked(f'rank {rank!r}', lambda: type(runlog.start_run(packages=False)).__name__)
        asked(f'rank 1 {rank!r}', lambda: type(runlog.start_run(packages=False, rank=1)).__name__)
    same_answers(request, 'logs', asked)


def test_secrets(request, monkeypatch, tmp_path):
    asked = Asked(tmp_path)
    for name in list(os.environ):
        if provenance.is_secret_name(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv('MY_PASSWORD', 'longenough')
    monkeypatch.setenv('OTHER_SECRET', 'only-8ch')
    monkeypatch.setenv('SHORT_TOKEN', 'seven77')
    monkeypatch.setenv('PLAIN', 'plain-value')
    names = [
        'api_key',
        'apiKey',
        'HF_TOKEN',
        'dbPassword',
        'max_tokens',
        'pad_token',
        'token',
        'tokens',
        'key',
        'access-key',
        'keyaccess',
        'x_key',
        'eos_token',
        'secret',
        '',
        'private.key',
        'tokenId',
        'image_token',
        'client_secret_id',
        3,
    ]
    for n in names:
        asked(f'name {n}', provenance.is_secret_name, n)
        for v in ('value', 3, True, None, ['a', dict(token='x')], dict(b='longenough'), 2.5):
            asked(f'mask {n} {v}', provenance.mask, v, n)
    hexes = '0123456789abcdef' * 2 + '01234567'
    texts = [
        'longenough and only-8ch and seven77 and plain-value',
        'hf_' + 'a' * 16,
        'hf_' + 'a' * 15,
        'sk-' + 'a' * 16,
        'ghp_' + 'b' * 16,
        'AKIA' + 'A' * 16,
        hexes,
        hexes + '0',
        'https://user:pw@host/x',
        'Bearer abcdefgh',
        'api_key=abc d',
        "password: 'x y'",
        'max_token: 3',
        'pypi-' + 'a' * 30,
        '-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----',
        'xoxb-1234567890',
        'é token=x&b=2',
        'dapi' + hexes[:32],
    ]
    for t in texts:
        for h in (True, False):
            asked(f'text {t} {h}', provenance.mask_text, t, h)
        for n in ('commit', 'sha256', 'x', 'note'):
            asked(f'mask {n} {t}', provenance.mask, {n: t})
    for argv in (
        ['p', '--api-key', 'x', '--lr', '3'],
        ['p', '--token=x', '--lr=3'],
        ['p', '--password', '--other', 'y'],
        ['p', 'token', 'x'],
        [3, '--secret', 5],
        ['p', 'api_key=y', '--max-tokens', '5'],
        ['p', '-t', 'longenough'],
    ):
        asked(f'command {argv}', provenance.mask_command, argv)

    def ask(answers):
        return lambda *cmd, cwd=None: answers.get(cmd[2] if cmd[0] == 'git' and cmd[1] == 'rev-parse' else cmd[1])

    for answers in (
        {},
        dict(HEAD='c0'),
        {'HEAD': 'c0', 'status': '', '--abbrev-ref': 'main'},
        {'HEAD': 'c0', 'status': ' M x', '--abbrev-ref': None},
    ):
        with monkeypatch.context() as m:
            m.setattr(provenance, '_ask', ask(answers))
            asked(f'git {answers}', provenance._git, '.')
    for there, said in ((None, 'x'), ('smi', 'A\nB'), ('smi', None)):
        with monkeypatch.context() as m:
            m.setattr(provenance.shutil, 'which', lambda n, there=there: there)
            m.setattr(provenance, '_ask', lambda *a, said=said: said)
            asked(f'gpus {there} {said}', provenance._gpus)
    for result in (dict(returncode=0, stdout=' x\n'), dict(returncode=1, stdout='x')):
        with monkeypatch.context() as m:
            m.setattr(provenance.subprocess, 'run', lambda cmd, result=result, **kw: SimpleNamespace(**result))
            asked(f'ask {result}', provenance._ask, 'x')
    asked('ask nobody', provenance._ask, 'no-such-program-here')
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    monkeypatch.setattr(provenance.sys, 'argv', ['x', '--token', 'y'])
    said = provenance.environment(False)
    asked(
        'environment',
        lambda: [
            sorted(said),
            said['slurm'],
            said['command'][1:],
            'packages' in provenance.environment(True),
            'torch' in provenance._installed(),
        ],
    )
    (tmp_path / 'f').write_text('x')
    asked('hash', provenance.file_hash, tmp_path / 'f')
    same_answers(request, 'secrets', asked)


# Loaders


def test_packed_files(request, tmp_path, monkeypatch):
    asked = Asked(tmp_path)
    root = folder_of_images(tmp_path / 'im', ['a/1.png', 'a/2.jpg', 'b/3.png', 'b/4.JPEG', 'b/5.png'])
    same_kind = lambda p: {k: v for k, v in p.to_dict().items() if k not in ('seconds', 'bytes', 'source_bytes')}
    for kind, side in itertools.product(('pixels', 'jpeg', 'pixel'), (None, 5, 0)):
        asked(
            f'pack {kind} {side}', lambda k=kind, s=side: same_kind(loaders.pack(root, tmp_path / f'{k}{s}.pack', k, s))
        )
    asked(
        'bytes',
        lambda: [loaders.pack(root, tmp_path / 'b', 'pixels', side=n).bytes - len(json.dumps(0)) for n in (5, 60)],
    )
    asked(
        'source',
        lambda: (
            loaders.pack(root, tmp_path / 'b').source_bytes
            == sum(p.stat().st_size for p in root.rglob('*') if p.is_file())
        ),
    )
    asked('no folder', loaders.pack, root, tmp_path / 'none/x')
    asked('onto a folder', loaders.pack, root, tmp_path / 'im')
    asked('left', lambda: sorted(p.name for p in tmp_path.iterdir() if p.name.startswith('.')))
    (root / 'b/6.png').write_text('bad')
    asked('bad', loaders.pack, root, tmp_path / 'c')
    asked('skipped', lambda: same_kind(loaders.pack(root, tmp_path / 'c', skip=True, workers=0)))
    (tmp_path / 'only/a').mkdir(parents=True)
    (tmp_path / 'only/a/1.png').write_text('bad')
    asked('none', loaders.pack, tmp_path / 'only', tmp_path / 'd', skip=True)
    image(8, 30, 9).save(root / 'a/9.png')
    asked('shapes', loaders.pack, root, tmp_path / 'c', skip=True)
    loaders.pack(root, tmp_path / 'jpeg', 'jpeg', skip=True)
    loaders.pack(root, tmp_path / 'wide', side=60, skip=True)
    for name, size in itertools.product(
        ('pixelsNone.pack', 'jpeg5.pack', 'jpegNone.pack', 'jpeg', 'wide'), (None, 1, 5, 9, 10, 0)
    ):
        for augment in (True, False):

            def about(name=name, size=size, augment=augment):
                m = loaders.Mapped(tmp_path / name, size, 3, augment)
                x, y = m.batch([0, len(m) - 1, 1], 2)
                exact = 'pixels' in name
                return [
                    m.describe(),
                    len(m),
                    m.size,
                    m.files,
                    m.classes,
                    m.skipped,
                    digest(x) if exact else list(x.shape),
                    y.tolist(),
                    digest(m[(1, 2)][0]) if exact else m[(1, 2)][1],
                    m[(1, 2)][1],
                    {k: v for k, v in m.__getstate__().items() if k != 'file'},
                ]

            asked(f'mapped {name} {size} {augment}', about)
    m = loaders.Mapped(tmp_path / 'pixelsNone.pack', 5)
    for i in (0, 4, -1, 5, -6):
        asked(f'sample {i}', lambda i=i: digest(m.sample(i)[0]))
    asked('index', lambda: m.index.tolist())
    asked('blob', lambda: [len(m.blob(i)) for i in range(5)])
    with pytest.MonkeyPatch.context() as p:
        p.setattr(loaders.Mapped, 'unchanged', lambda self: None)
        asked('seen', lambda: [m._seen.tolist(), digest(m._picture(2)), m._seen.tolist()])
    raw = (tmp_path / 'pixelsNone.pack').read_bytes()
    head = np.frombuffer(raw, loaders._head, 1).copy()
    asked('head', lambda: [str(v) for v in head[0].tolist()][:7])

    def written(**kw):
        "The file with another head, whose checksum fits"
        new = head.copy()
        for k, v in kw.items():
            new[k] = v
        if 'crc' not in kw:
            new['crc'] = loaders._checksum(new[0], raw[min(int(new['index'][0]), len(raw)) :])
        (tmp_path / 'x').write_bytes(new.tobytes() + raw[len(new.tobytes()) :])
        return loaders.Mapped(tmp_path / 'x').n

    at, names = int(head['index'][0]), int(head['about'][0])
    for kw in (
        dict(),
        dict(magic=b'x'),
        dict(version=2),
        dict(end=5),
        dict(index=names + 1),
        dict(index=4095),
        dict(index=4096),
        dict(about=len(raw) + 1),
        dict(about=at),
        dict(n=4),
        dict(crc=3),
        dict(about=len(raw), n=0),
    ):
        asked(f'head {kw}', written, **kw)
    for name, content in dict(
        empty=b'',
        short=raw[:4095],
        page=raw[:4096],
        cut=raw[:-1],
        more=raw + b'x',
        flipped=raw[:-1] + b'x',
        sample=raw[:4100] + b'\0\1' + raw[4102:],
    ).items():
        (tmp_path / 'x').write_bytes(content)
        asked(
            f'file {name}',
            lambda: [
                loaders.Mapped(tmp_path / 'x').n,
                loaders.Mapped(tmp_path / 'x', verify=False).batch([0])[1].tolist(),
            ],
        )
        asked(f'read {name}', lambda: loaders.Mapped(tmp_path / 'x').batch([1, 0])[1].tolist())
    for change in ('touch', 'replace', 'remove'):
        (tmp_path / 'x').write_bytes(raw)
        m = loaders.Mapped(tmp_path / 'x')
        if change == 'touch':
            os.utime(tmp_path / 'x', ns=(5, 5))
        if change == 'replace':
            (tmp_path / 'y').write_bytes(raw)
            os.replace(tmp_path / 'y', tmp_path / 'x')
        if change == 'remove':
            (tmp_path / 'x').unlink()
        asked(change, m.batch, [0])
    for n, batch in itertools.product((0, 1, 6, 7), (0, 1, 3, 9)):
        asked(f'steps {n} {batch}', loaders.steps_per_epoch, n, batch)
        for step, rank, ranks in ((0, 0, 1), (1, 0, 2), (2, 1, 2), (3, 2, 3), (3, 0, 0), (-1, 0, 1), (0, 1, 1)):
            asked(f'part {n} {batch} {step} {rank} {ranks}', loaders.step_part, n, step, batch, rank, ranks, 4)
    m = loaders.Mapped(tmp_path / 'pixelsNone.pack', 3)
    for kw in (
        dict(stop=4),
        dict(rank=1, ranks=2, stop=3),
        dict(start=2, stop=4, workers=0),
        dict(seed=1, stop=2, workers=3),
    ):
        asked(f'batches {kw}', lambda kw=kw: [[digest(x), y.tolist()] for x, y in loaders.batches(m, 2, **kw)])
    asked('without end', lambda: len(list(itertools.islice(loaders.batches(m, 2, workers=0), 9))))
    for workers, depth in ((0, 0), (1, 0), (2, 1), (3, 9), (-1, 0)):
        asked(f'ahead {workers} {depth}', lambda *a: list(loaders.ahead(lambda i: i * i, range(7), *a)), workers, depth)
    for workers, depth in ((1, 0), (2, 0), (2, 1), (3, 5)):

        def taken(workers=workers, depth=depth):
            asked_for = []
            out = loaders.ahead(lambda i: i, (asked_for.append(i) or i for i in range(20)), workers, depth)
            return [next(out), len(asked_for), next(out), len(asked_for), out.close()]

        asked(f'taken ahead {workers} {depth}', taken)
    j = loaders.JpegFolder(tmp_path / 'only', 3)
    asked('folder of one', lambda: len(j))
    root = folder_of_images(tmp_path / 'jf', ['a/1.png', 'b/2.png'])
    torch.manual_seed(0)
    for size in (3, 9):
        asked(
            f'as most read {size}',
            lambda size=size: [[digest(x), y] for x, y in (loaders.JpegFolder(root, size)[i % 2] for i in range(6))],
        )
    monkeypatch.delattr(os, 'O_TMPFILE', raising=False)
    asked('named', lambda: same_kind(loaders.pack(root, tmp_path / 'named')))
    asked('pages', lambda: [loaders._pages(n) for n in (0, 1, 4095, 4096, 4097)])
    same_answers(request, 'packed_files', asked)


# Traces


def event(name, ts, dur, tid=1, cat='cpu_op', **args):
    "An event of a Chrome trace"
    return dict(ph='X', name=name, ts=ts, dur=dur, pid=1, tid=tid, cat=cat, args=args)


def drawn_trace(seed, gpu=False):
    "Events of a made-up loop"
    rng, out = random.Random(seed), []
    names = [
        'aten::add',
        'aten::_to_copy',
        'Optimizer.step#AdamW.step',
        'enumerate(DataLoader)#x',
        'autograd::engine::evaluate_function: X',
        'fsdl::printing',
        'nccl:all_reduce',
        'aten::_softmax',
        'cudaMalloc',
        'aten::_local_scalar_dense',
        'other',
        'gloo:x',
        'aten::scaled_dot_product_attention',
        'fsdl>recomputation',
        'ProfilerStep#1',
        'aten::masked_fill',
        'cudaLaunchKernel',
        'Memcpy HtoD',
    ]
    if rng.random() < 0.6:
        names.remove('aten::scaled_dot_product_attention')
    for k in range(rng.randint(1, 40)):
        name = rng.choice(names)
        dims = rng.choice([[[2, 32, 32]], [[4, 31, 31]], [[64, 64]], [[1, 64, 32]], [], [3], [[1, 1, 33, 33]]])
        kind = 'user_annotation' if name[:4] in ('fsdl', 'Opti', 'enum', 'Prof') else 'cpu_op'
        more = dict(correlation=k) if rng.random() < 0.7 else {}
        out.append(
            event(
                name,
                rng.randint(0, 200),
                rng.randint(1, 60),
                rng.choice([1, 1, 1, 2]),
                kind,
                **{'Input Dims': dims},
                **more,
            )
        )
        if gpu and rng.random() < 0.6:
            cat, what = rng.choice(
                [
                    ('kernel', 'gemm'),
                    ('kernel', 'ncclAllReduce'),
                    ('gpu_memcpy', 'Memcpy HtoD'),
                    ('gpu_memcpy', 'Memcpy DtoH'),
                    ('gpu_memset', 'Memset'),
                    ('gpu_user_annotation', 'fsdl>recomputation'),
                ]
            )
            out.append(event(what, rng.randint(0, 300), rng.randint(1, 40), 7, cat, **more))
    out += [dict(ph='M', name='process_name', pid=1), dict(ph='X', name='aten::add', ts=1, pid=1, tid=1, cat='cpu_op')]
    rng.shuffle(out)
    return [e for e in out if 'dur' in e or rng.random() < 0.5]


def test_traces(request, tmp_path):
    asked = Asked(tmp_path)
    whole = lambda events: [e for e in events if 'dur' in e]
    for seed in range(40):
        events = drawn_trace(seed)
        asked(f'parts {seed}', traces.trace_parts, events)
        asked(f'hidden {seed}', traces.hidden_costs, whole(events))
        asked(f'steps {seed}', traces.step_parts, whole(events))
        asked(f'main {seed}', traces._main_thread, events)
    for seed in range(40):
        events = drawn_trace(seed, True)
        asked(f'gpu {seed}', lambda e=events: vars(traces.gpu_parts(e)))
        asked(f'idle {seed}', traces.gpu_idle, whole(events))
        asked(f'diagnosis {seed}', lambda e=events: said_of(tmp_path, whole(e)))
    rng = random.Random(5)
    for k in range(40):
        spans, taken = (
            [(a, a + rng.randint(0, 9)) for a in (rng.randint(0, 30) for _ in range(rng.randint(0, 6)))]
            for _ in range(2)
        )
        asked(
            f'spans {spans} {taken}',
            lambda s=spans, t=taken: [
                traces._union(s),
                traces._minus(traces._union(s), traces._union(t)),
                traces._length(s),
            ],
        )
        others = [(a, b, 'x') for a, b in traces._union(taken)]
        asked(f'overlap {k}', lambda s=spans, o=others: [list(traces._overlap(p, o, [a for a, _, _ in o])) for p in s])
    for name in (
        'fsdl::x',
        'xfsdl::',
        'aten::copy_',
        'aten::copy_2',
        'aten::add',
        'cudaMemcpyAsync',
        'record_param_comms',
        'cudaMalloc',
        'aten::_local_scalar_dense',
        'python',
        'Optimizer.step',
        'DistributedDataParallel.forward',
    ):
        asked(f'name {name}', lambda n=name: [traces._part_of(n), traces._host_label(n)])
    for dims in ([[2, 3, 32, 32]], [[2, 31, 31]], [[32, 32]], [[2, 32, 33]], [], None, [5], [[1, 40, 40], [3]]):
        asked(
            f'softmax {dims}',
            lambda d=dims: [traces._square_softmax(event('x', 0, 1, **{'Input Dims': d})), traces._square_softmax({})],
        )
    for durations in ([14, 15, 16], [1], [], [20]):
        ops = [event('aten::add', 20 * i, d) for i, d in enumerate(durations)]
        for watched in ([], [(0, 7)], [(0, 99)]):
            asked(f'small {durations} {watched}', traces._small_operations, ops, watched)
    asked('inside', traces._inside, [dict(ts=t) for t in (0, 1, 4, 5)] + [{}], (1, 5))
    good = [event('a', 0, 1)]
    contents = dict(
        dict=json.dumps(dict(traceEvents=good)).encode(),
        list=json.dumps(good + [3, {}, dict(name=3)]).encode(),
        zipped=gzip.compress(json.dumps(good).encode(), mtime=0),
        bad=b'{',
        empty=b'{}',
        number=b'3',
        torn=b'\x1f\x8b\x08',
        bytes=b'[{"name": "\xff"}]',
    )
    for name, content in contents.items():
        (tmp_path / 't').write_bytes(content)
        asked(f'file {name}', traces.read_trace, tmp_path / 't')
    asked('no kernels', traces.gpu_parts, good)
    asked('nothing', traces.gpu_idle, good)
    same_answers(request, 'traces', asked)


def said_of(tmp_path, events):
    "A trace's diagnosis, as texts and numbers"
    (tmp_path / 't.json').write_text(json.dumps(events))
    d = diagnose.diagnose_trace(tmp_path / 't.json')
    parts = sorted([-r['share'], r['part'], r['low'], r['high']] for r in d.parts)  # equal ones come in any order
    return [d.wall, parts[:4], sorted([s['cause'], s['gain']] for s in d.suspects), d.notes, d.repeats]


def test_diagnoses(request, tmp_path):
    asked, rng = Asked(tmp_path), random.Random(2)
    for seed in range(30):
        asked(f'trace {seed}', lambda s=seed: said_of(tmp_path, [e for e in drawn_trace(s) if 'dur' in e]))
    for values in ([1], [3, 1, 2], [4, 3, 2, 1]):
        asked(f'spread {values}', diagnose._spread, values)

    def clock_of(seconds, loaders=(), fetching=(), recomputed=0.0):
        c = clock._Clock()
        c.seconds.update(seconds)
        c.loaders.extend(clock._Loader(w) for w in loaders)
        c.fetching[: len(fetching)], c.recomputed = list(fetching), recomputed
        return c

    for name, c in dict(
        none=clock_of({}),
        zero=clock_of({}, [0]),
        few=clock_of(dict(loader=2.0), [2, 1], [5.0, 5, 5.0, 5]),
        handing=clock_of(dict(loader=2.0), [2], [1.0, 5, 1.0, 5]),
        equal=clock_of(dict(loader=2.0), [1], [2.0, 5]),
        slow=clock_of(dict(loader=2.0), [2], [9.0, 1, 3.0, 3]),
        nearly=clock_of(dict(loader=2.0), [2], [9.0, 3, 3.0, 3]),
        three=clock_of(dict(loader=1.0), [3], [10.0, 1, 9.0, 2, 2.0, 1]),
        one=clock_of(dict(loader=1.0), [1], [10.0, 1]),
        unread=clock_of(dict(loader=1.0), [2]),
        thrice=clock_of(dict(loader=1.0), [2], [3.5, 1, 1.0, 1]),
        exactly=clock_of(dict(loader=1.0), [2], [3.0, 1, 1.0, 1]),
        halves=clock_of(dict(loader=1.0), [2], [3.5, 1, 2.0, 2]),
        many=clock_of(dict(loader=1.0), [200], [3.0] * 256),
    ).items():
        asked(
            f'loader {name}',
            lambda c=c: [diagnose._loader_cause(c), diagnose._cause_of('loader', c), diagnose._cause_of('disk', c)],
        )
    parts = [
        'loader',
        'disk',
        'checkpoint',
        'printing',
        'backward',
        'optimizer',
        'evaluation',
        'barrier',
        'reading results',
        'forward',
    ]
    for k in range(25):
        runs = [
            (
                clock_of({p: rng.random() / 8 for p in rng.sample(parts, 4)}, [k % 3], [0.01, 1], rng.random() / 5),
                1 + rng.random() / 9,
                rng.random() / 3,
                rng.choice([0.0, 0.3, 5.0]),
                1.0,
            )
            for _ in range(rng.randint(1, 3))
        ]
        traced = {p: 100 * rng.random() for p in rng.sample(['forward', 'copies', 'python', 'wall'], 3)}
        hidden = {'unfused attention': rng.choice([0.0, 20.0]), 'small operations': rng.choice([0, 1, 5])}
        rows, more = diagnose._share_rows(runs, traced), diagnose._hidden_rows(runs, hidden, traced)
        asked(f'rows {k}', lambda: [[list(r.values()) for r in some] for some in (rows, more)])
        asked(
            f'suspects {k}',
            lambda: [
                [s['cause'], s['share'], s['gain']]
                for due in (diagnose._due, diagnose._due_on_gpu)
                for s in diagnose._suspects(rows + more, runs[-1][0], due)
            ],
        )
        asked(
            f'shares {k}',
            lambda: [diagnose._share(p, runs[0]) for p in ('loader', 'recomputation', 'recompiling', 'disk', 'none')],
        )
        asked(
            f'gone {k}',
            lambda: (
                [
                    diagnose._gone(dict(part=p, share=0.3), [dict(part='starting workers', share=0.2)])
                    for p in ('loader', 'disk')
                ]
                + [diagnose._gone(dict(part='loader', share=0.3), [])]
            ),
        )
        ranks, repeats = rng.choice([2, 3, 4]), 2
        together, alone = ([[low + rng.random() for _ in range(repeats)] for _ in range(ranks)] for low in (1, 0.5))
        asked(
            f'ranks {k}',
            diagnose._rank_rows,
            together,
            alone,
            [
                [dict(barrier=rng.random() / 9) if rng.random() < 0.8 else {} for _ in range(repeats)]
                for _ in range(ranks)
            ],
        )
        g = [
            traces.GpuParts(
                busy={p: 1e5 * rng.random() for p in rng.sample(parts, 3)},
                idle={
                    p: 1e5 * rng.random() for p in rng.sample(['forward', 'backward', 'python', 'copies', 'loader'], 3)
                },
                wall=5e5,
                kernels=rng.choice([1, 1000, 10**5]),
                attention=1e4,
                again=2e4,
            )
            for _ in range(2)
        ]
        walls = [rng.choice([0.1, 0.4, 0.8]) for _ in g]
        watched = [(None, w + 0.1, 0.0, rng.choice([0.0, 0.05, 3.0]), 1.0) for w in walls]
        asked(
            f'gpu rows {k}',
            lambda: [
                [list(r.values()) for r in diagnose._gpu_rows(g, walls)],
                diagnose._gpu_hidden(g, [(w, 0) for w in walls], watched),
                diagnose._busy_share(g[0], walls[0]),
                diagnose._scales(g[1], walls[1]),
            ],
        )
    for spent in (
        dict(),
        dict(entire_frame_compile=2.0),
        {'_compile.compile_inner': 3.0},
        {'entire_frame_compile': 2.0, '_compile.compile_inner': 3.0},
    ):
        with pytest.MonkeyPatch.context() as m:
            m.setitem(
                diagnose.sys.modules,
                'torch._dynamo.utils',
                SimpleNamespace(calculate_time_spent=lambda spent=spent: spent),
            )
            asked(f'compiling {spent}', diagnose._compiling)
    with pytest.MonkeyPatch.context() as m:
        m.delitem(diagnose.sys.modules, 'torch._dynamo.utils', raising=False)
        asked('compiling nothing', diagnose._compiling)
    for ranks, repeats, check, gpu in itertools.product((1, 3), (2, 3), (True, False), (True, False)):
        with pytest.MonkeyPatch.context() as m:
            ticks, loops = itertools.count(1), []
            m.setattr(diagnose, '_timed', lambda loop: (1.0 + next(ticks) / 10, 0.1, 2.0 + next(ticks) / 5))
            m.setattr(
                diagnose,
                '_watched',
                lambda loop, often=None: (
                    clock_of(dict(checkpoint=0.3 + next(ticks) / 50, disk=0.01, barrier=0.2)),
                    1.5,
                    0.1,
                    0.0,
                    2.5 + next(ticks) / 3,
                ),
            )
            m.setattr(diagnose, 'profiled', lambda loop: drawn_trace(3, gpu))
            m.setattr(diagnose, 'gpu_idle', lambda events, gpu=gpu: 0.5 if gpu else None)
            m.setattr(diagnose.dist, 'is_initialized', lambda ranks=ranks: ranks > 1)
            m.setattr(diagnose.dist, 'get_world_size', lambda ranks=ranks: ranks)
            m.setattr(diagnose.dist, 'barrier', lambda: loops.append('barrier'))
            m.setattr(diagnose, '_everywhere', lambda value, ranks=ranks: [value] * ranks)
            m.setattr(diagnose, 'trace_parts', lambda events: dict(forward=5.0, python=2.0, copies=1.0, wall=8.0))
            m.setattr(diagnose, 'hidden_costs', lambda events: {'unfused attention': 0.0, 'small operations': 0})
            trace = tmp_path / f'trace{ranks}{repeats}{check}{gpu}'
            asked(
                f'loop {ranks} {repeats} {check} {gpu}',
                lambda: [
                    (
                        d := diagnose.diagnose(
                            lambda: loops.append(1), repeats, check, str(trace) if repeats == 2 else ''
                        )
                    ).wall,
                    sorted(map(str, map(list, (r.values() for r in d.parts)))),
                    d.suspects,
                    d.checks,
                    d.overhead,
                    d.repeats,
                    d.notes,
                    loops,
                    trace.exists(),
                ],
            )
    row = dict(part='disk', share=0.25, low=0.2, high=0.3)
    suspect = dict(row, cause='disk', gain=1.33) | {'try': 'x'}
    for suspects, checks, notes in (
        ([], [], []),
        ([suspect] * 4, [], ['a', 'b']),
        ([suspect], [dict(cause='disk', measured=1.2, low=1.1, high=1.3)], []),
        ([suspect], [dict(cause='other', measured=1.2, low=1.1, high=1.3)], []),
    ):
        d = diagnose.Diagnosis(1.5, [row], suspects, checks, 0.1, 3, notes)
        asked(
            f'texts {len(suspects)} {len(checks)} {notes}',
            lambda d=d: [d.first, repr(d), d._repr_markdown_(), len(d.advice())],
        )
    (tmp_path / 's.py').write_text('import sys\nsys.exit(int(sys.argv[1]))')
    for words in (
        [],
        ['-x'],
        ['-m'],
        ['python'],
        ['python3.11', tmp_path / 's.py', 0],
        [tmp_path / 's.py', '0'],
        ['none.py'],
        ['-m', 'x'],
        ['/usr/bin/python', '-m', 'x'],
    ):
        asked(f'program {[str(w).replace(str(tmp_path), "") for w in words]}', diagnose._program, words)
    for code in (0, 3):
        asked(f'script {code}', lambda code=code: diagnose.script_loop([tmp_path / 's.py', code])())
    for repeats, trace in ((1, ''), (2, ''), (0, ''), (2, tmp_path / 'none/x'), (2, tmp_path / 'x')):
        asked(f'wishes {repeats} {Path(trace).name}', diagnose._check_wishes, repeats, trace)
    same_answers(request, 'diagnoses', asked)


# Clocks


class Ticking:
    "A clock that goes on by one with each look"

    def __init__(self, start=0):
        self.at = start

    def __call__(self):
        self.at += 1
        return float(self.at)


def test_clocks(request, tmp_path, monkeypatch):
    asked = Asked()

    def ticking(**kw):
        c = clock._Clock(**kw)
        c.now = Ticking()
        return c

    c = ticking()
    inner = c.watch('inner', lambda v: v + 1)
    outer = c.watch('outer', lambda v: inner(v) * 2)
    asked('outermost', lambda: [outer(3), inner(1), dict(c.seconds), dict(c.calls), outer.__name__, c.part])
    failing = c.watch('failing', lambda: 1 / 0)
    asked('failing', failing)
    asked('after', lambda: [dict(c.seconds), c.part])
    c.thread += 1
    asked('another thread', lambda: [outer(3), dict(c.calls)])
    for often, calls, enough in itertools.product((0, 3, 4, 9), (1, 3, 4, 6), (3, 4)):
        monkeypatch.setattr(clock, '_enough', enough)
        monkeypatch.setattr(clock, '_own_seconds', lambda: 0.25)
        c, back = ticking(often=dict(part=often)), []
        f = c.watch('part', lambda: None, back.append)
        for _ in range(calls):
            f()
        c.seconds['other'] = 3.0
        c.count_all()
        asked(f'often {often} {calls} {enough}', lambda c=c, back=back: [dict(c.seconds), len(back)])
    monkeypatch.setattr(clock, '_own_seconds', lambda: 9.0)
    c.count_all()
    asked('never below zero', lambda: dict(c.seconds))
    c = ticking()
    module = SimpleNamespace()
    train = clock._watch_train(c, lambda m, mode: mode)
    for mode in (True, False, False, True, True, False, True):
        asked(
            f'train {c.at if hasattr(c, "at") else len(c.calls)} {mode} {c.now.at}',
            lambda mode=mode: [train(module, mode), c.part, dict(c.seconds), dict(c.calls)],
        )
    c.part = 'other'
    asked('within another', lambda: [train(module, False), c.part])
    c.thread += 1
    c.part = None
    asked('train elsewhere', lambda: [train(module, False), c.part])
    c = ticking()
    asked('recomputed', lambda: [clock._watch_checkpoint(c, lambda v: v)(3), c.recomputed])
    c = ticking()

    class It:
        "An iterator of a loader"

    begin, take = clock._watch_iter(c, lambda loader: It()), clock._watch_next(c, lambda it: 'batch')
    for workers in (0, 2):
        it = begin(SimpleNamespace(num_workers=workers))
        for turn in range(2):
            asked(
                f'next {workers} {turn}',
                lambda it=it: [
                    take(it),
                    dict(c.seconds),
                    c.loaders[-1].waits,
                    c.loaders[-1].batch,
                    c.loaders[-1].workers,
                    it._fsdl_number,
                ],
            )
    c.part = 'other'
    asked('inside', lambda: [take(it), hasattr(begin(SimpleNamespace(num_workers=1)), '_fsdl_number'), len(c.loaders)])
    asked('bare', lambda: take(It()))
    fetch = clock._watch_fetch(c, lambda fetcher, which: which)
    monkeypatch.setattr(clock.time, 'perf_counter', Ticking())
    for info in (None, SimpleNamespace(id=0), SimpleNamespace(id=3), SimpleNamespace(id=127), SimpleNamespace(id=128)):
        monkeypatch.setattr(torch.utils.data, 'get_worker_info', lambda info=info: info)
        asked(f'fetch {info}', lambda: [fetch(0, 5), c.fetching[:8], c.fetching[254:]])
    monkeypatch.undo()
    seen = [clock._Loader(0, 'a', [1, 2]), clock._Loader(1, 'b', [1])]
    begin = clock._cached(seen)
    asked('cached', lambda: [list(begin(None)) for _ in range(3)])
    asked('silent', lambda: [clock._silent(lambda self, v: (self.require_backward_grad_sync, v))(SimpleNamespace(), 2)])
    asked('call', lambda: clock._call(lambda a, b: a + b, 1, b=2, use_reentrant=False, debug=True))
    quiet = clock._Quiet()
    monkeypatch.setattr(clock.time, 'perf_counter', lambda: 100.0)
    monkeypatch.setattr(clock.os, 'pread', lambda *a: b'5 2000000000 7')
    quiet.file = SimpleNamespace(fileno=lambda: 0)
    asked('quiet', lambda: [quiet(), quiet.queued, quiet.read])
    quiet.queued = 1.0
    for read in (100.0, 100.0 - 4e-4, 100.0 - 6e-4):
        quiet.read = read
        asked(f'quiet {100 - read:.4f}', quiet)
    quiet.file = None
    asked('without a file', lambda: [quiet(), quiet.read])
    monkeypatch.undo()
    own, old = SimpleNamespace(f=1), SimpleNamespace(f=2)

    class Base:
        "f is inherited"

        f = 1

    class Below(Base):
        "Has no f of its own"

    with clock._replaced([((own, 'f', 1), 5), ((Below, 'f', 1), 6), ((own, 'f', 1), 7)]):
        asked('replaced', lambda: [own.f, Below.f, Base.f])
    asked('put back', lambda: [own.f, 'f' in vars(Below), Below.f])
    back = clock._putting_back((old, 'f', 'first'))
    for ours in (3, 2):
        asked(f'putting back {ours}', lambda ours=ours: [back(ours), old.f])
    asked('subclasses', lambda: [k.__name__ for k in clock._subclasses(Base)])
    for where in (
        'torch:Tensor.item',
        'no_module:x',
        'torch:no_such',
        'torch.optim:Optimizer.step',
        'copy:deepcopy',
        'torch.nn:Module.no_such',
    ):
        asked(
            f'owners {where}',
            lambda w=where: [[bool(o), n] for o, n, _ in clock._owners(w)][:1] + [len(clock._owners(w)) > 1],
        )
    for there, part in itertools.product(
        (True, False),
        (
            'casts',
            'loader',
            'recomputation',
            'communication',
            'disk',
            'recompiling',
            'forward',
            'reading results',
            'barrier',
        ),
    ):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        asked(
            f'removable {part} {there}', lambda p=part: [clock._removable(p, c), len(clock._without_places(p, c)) > 1]
        )
    monkeypatch.undo()

    def without(part):
        with clock._without(part, c):
            return torch.ones(1).item(), clock.time.sleep(100) if part == 'sleeping' else None

    for part in ('reading results', 'sleeping', 'forward'):
        asked(f'without {part}', without, part)
    same_answers(request, 'clocks', asked)


# Methods, speed-ups, switches


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_methods(request):
    asked = Asked()
    x, y = normal(0, 6, 3, 8, 8), torch.arange(6) % 4
    scores = normal(1, 6, 4)
    for alpha in (0.0, 0.1, 1.0):
        asked(
            f'smooth {alpha}',
            lambda a=alpha: [
                digest(methods._smooth_targets(y, 4, a)),
                digest(methods.LabelSmoothing(a).loss(scores, y)),
            ],
        )
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    for lam in (0.0, 0.3, 1.0):
        asked(f'mixed {lam}', lambda lam=lam: digest(methods._mixed(x, order, lam)))
    for h, w, lam, a, b in (
        (8, 6, 0.3, 0, 0),
        (8, 6, 0.3, 7, 5),
        (8, 6, 0.3, 4, 3),
        (9, 9, 0.0, 4, 4),
        (9, 9, 1.0, 4, 4),
        (16, 12, 0.5, 9, 3),
        (7, 5, 0.9, 6, 1),
    ):
        asked(f'box {h} {w} {lam} {a} {b}', methods.cut_box, h, w, lam, a, b)
    for cls in (methods.MixUp, methods.CutMix):
        for alpha, seed in ((0.2, 0), (1.0, 3)):
            m = cls(alpha, seed)
            asked(
                f'{cls.__name__} {alpha} {seed}',
                lambda m=m: [digest(m.batch(None, x, y)[0]), m.lam, m.order.tolist(), digest(m.loss(scores, y))],
            )
        asked(f'{cls.__name__} bad', cls, 0)
    m = methods.MixUp()
    with pytest.MonkeyPatch.context() as p:
        for a, b in ((0.0, 0.0), (1.0, 3.0), (0.0, 2.0)):
            p.setattr(torch, '_standard_gamma', lambda *args, a=a, b=b, **kw: torch.tensor([a, b]))
            asked(f'drawn {a} {b}', m.draw)
    for progress in (0.0, 0.1, 0.3, 0.5, 0.8, 0.9, 1.0):
        for kw in (dict(), dict(first=0.3, delay=0.2), dict(settle=0.5, multiple=2), dict(first=1.0)):
            asked(
                f'edge {progress} {kw}',
                lambda p=progress, kw=kw: [
                    methods.growing_edge(p, 32, **kw),
                    list(methods.GrowingPictures(**kw).batch(SimpleNamespace(progress=p), x, y)[0].shape),
                ],
            )
        for a in ((), (0.2,), (0.5, 0.5)):
            asked(f'frozen {progress} {a}', methods.frozen_part, progress, *a)
        net = speedups.DigitNet(2)
        methods.FreezeLayers(0.2, 0.75).after_step(SimpleNamespace(model=net, progress=progress))
        asked(
            f'freezes {progress}',
            lambda net=net: [all(q.requires_grad for q in part.parameters()) for part in (*net.blocks, net.head)],
        )

    def linear(seed):
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        with torch.no_grad():
            for i, t in enumerate(net.state_dict().values()):
                t.copy_(normal(seed + i, *t.shape).abs() if t.is_floating_point() else torch.tensor(seed))
        return net

    weights = lambda net: [digest(t) for t in net.state_dict().values()]
    for keep in (0.0, 0.25, 1.0):
        a = linear(3)
        methods.average_into(a, linear(9), keep)
        asked(f'average {keep}', lambda a=a: weights(a))
    twin = methods._twin(linear(1))
    asked('twin', lambda: [twin.training, any(q.requires_grad for q in twin.parameters()), weights(twin)])
    ema, swa = methods.EMA(0.75), methods.SWA(0.5)
    ema.start(SimpleNamespace(model=linear(1)))
    for i, progress in enumerate((0.4, 0.5, 0.6, 1.0)):
        run = SimpleNamespace(model=linear(20 + i), progress=progress)
        ema.after_step(run), swa.after_step(run)
        asked(f'averaged {i}', lambda: [weights(ema.average), swa.n, swa.average and weights(swa.average)])
    swa.settle(normal(5, 130, 3))
    asked('settled', lambda: [weights(swa.average), swa.average[1].momentum, swa.average.training])
    for rho in (0.05, 2.0):
        net = linear(2)[0]
        net(normal(3, 4, 3)).square().sum().backward()
        asked(
            f'climb {rho}',
            lambda r=rho, net=net: [[digest(s) for s in methods.SAM.climb(list(net.parameters()), r)], weights(net)],
        )
    asked('rho', methods.SAM, 0)
    net = linear(2)[0]
    net.extra = torch.nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    net(normal(3, 4, 3)).square().sum().backward()
    run = SimpleNamespace(
        model=net, opt=opt, last=(normal(3, 4, 3),), backward=lambda v: net(v).square().sum().backward()
    )
    methods.SAM(0.5).before_step(run)
    asked('at the top', lambda: [weights(net), [digest(q.grad) for q in (net.weight, net.bias)], net.extra.grad])
    asked('blurred', lambda: [digest(methods.BlurPool(3)(x)), digest(methods.BlurPool(2).kernel)])
    blurred = methods.with_blurpool(speedups.DigitNet(2))
    asked(
        'with blur',
        lambda: [
            list(blurred(normal(0, 2, 1, 16, 16)).shape),
            [list(b[3][1].kernel.shape) for b in blurred.blocks],
            blurred.blocks[0][3][0].stride,
        ],
    )

    def ghosts(ghost, training):
        norm = methods.GhostBatchNorm2d(3, ghost).train(training)
        return [digest(norm(x)), digest(norm.running_mean), int(norm.num_batches_tracked)]

    for ghost, training in itertools.product((2, 4, 5, 6, 7), (True, False)):
        asked(f'ghost {ghost} {training}', ghosts, ghost, training)
    asked(
        'wide',
        lambda: list(
            methods.GrowingPictures().batch(SimpleNamespace(progress=1.0), normal(0, 2, 1, 8, 16), y)[0].shape
        ),
    )
    asked('ghost 0', methods.GhostBatchNorm2d, 3, 0)
    for a, b in ((torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])), ([1, 2], [1, -7]), (3, 4.0)):
        asked(f'far {a}', methods._far, a, b)
    same_answers(request, 'methods', asked)


def test_speedups(request, monkeypatch):
    asked, rng = Asked(), np.random.default_rng(0)
    for repeats, seed in ((1, 0), (3, 5), (0, 0)):
        order = []
        asked(
            f'in turns {repeats} {seed}',
            lambda r=repeats, s=seed: [
                speedups.interleaved({n: lambda n=n: order.append(n) for n in 'abc'}, r, s, Ticking()),
                order,
            ],
        )
    for n in (1, 2, 5):
        asked(
            f'ratio {n}',
            lambda n=n: [
                vars(r := speedups.paired_ratio(rng.uniform(1, 2, n), rng.uniform(1, 2, n), seed=n)),
                str(r),
                r.certain,
            ],
        )
    for a, b in (([1, 2], [1]), ([[1, 2]], [[1, 2]]), ([2, 2], [1, 1])):
        asked(f'ratio {a} {b}', speedups.paired_ratio, a, b)
    for low, high in ((0.9, 1.1), (1.0, 1.2), (0.8, 1.0), (1.1, 1.2), (0.5, 0.9)):
        asked(
            f'certain {low} {high}',
            lambda a=low, b=high: [speedups.Ratio(a, 1.05, b, 3).certain, str(speedups.Ratio(a, 1.05, b, 3))],
        )
    took = dict(a=[1.0, 2.0, 3.0], b=[2.0, 2.5, 9.0])
    for base in ('a', 'c'):
        asked(f'table {base}', lambda base=base: speedups.ratio_table(took, base, 'caption')._repr_markdown_())
    for size in (8, 16, 0):
        asked(f'digits {size}', lambda s=size: [digest(v) for v in speedups.digits(s)])
    x, y, *_ = small = tuple(v[:40] for v in speedups.digits(16))
    for kw in (
        dict(precision='fp16'),
        dict(optimizer='x'),
        dict(micro_batches=0),
        dict(augment=1.1),
        dict(augment=-0.1),
        dict(augment=0),
        dict(augment=1),
    ):
        asked(f'switches {kw}', lambda kw=kw: repr(speedups.Switches(**kw)))
    asked('shifted', lambda: digest(speedups._shifted(x, torch.Generator().manual_seed(1))))
    for progress, full in itertools.product((0.0, 0.2, 0.5, 0.66, 0.7, 1.0), (8, 15, 16)):
        asked(
            f'edge {progress} {full}',
            lambda p=progress, f=full: [speedups._edge(p, f), list(speedups._scaled(x, speedups._edge(p, f)).shape)],
        )
    for kw in (
        dict(),
        dict(micro_batches=2),
        dict(growing=True, augment=0.2),
        dict(augment=0.0, optimizer='foreach'),
        dict(precision='bf16'),
        dict(channels_last=True, recompute=True),
        dict(optimizer='fused', micro_batches=4),
    ):
        said = []

        class Method:
            "Notes each hook"

            def start(self, run):
                said.append('start')

            def before_step(self, run):
                said.append(['before', run.done, list(run.last[0].shape)])

            def after_step(self, run):
                said.append(['after', run.done])

        def steps(kw=kw):
            run = speedups.DigitRun(speedups.Switches(**kw), 1, 3, 8, [Method()], small)
            digits = 2 if kw.get('precision') == 'bf16' else 3
            return [
                [f'{run.step():.{digits}g}' for _ in range(2)],
                round(run.progress, 3),
                said,
                len(run.x),
                list(run.model.blocks[0][0].weight.shape),
                run.model.training,
                run.model.recompute,
            ]

        asked(f'run {kw}', steps)
    run = speedups.DigitRun(seed=1, steps=6, batch=4, data=small)
    run.model.eval()
    asked('accuracy', lambda: [run.accuracy(), run.model.training])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(speedups.DigitRun, 'step', lambda self: setattr(self, 'done', self.done + 1))
        for target in (0.0, 0.5, 2.0):
            m.setattr(speedups.DigitRun, 'accuracy', lambda self: self.done / 10)
            run = speedups.DigitRun(steps=7, data=small)
            asked(f'train to {target}', lambda t=target: run.train_to(t, 2, Ticking()))
    w = torch.ones(4, requires_grad=True)
    asked('saved', lambda: speedups.saved_bytes(lambda: (w.exp() * w).sum()))
    for lengths, width in (
        ([], 4),
        ([4, 3, 2, 1, 4], 4),
        ([5], 4),
        ([1, 1, 1, 2, 2], 4),
        ([3, 3, 1, 1], 4),
        (rng.integers(1, 20, 30).tolist(), 20),
    ):
        asked(f'fit {lengths} {width}', speedups.first_fit, lengths, width)
    for step, total, shortest, longest, multiple in itertools.product(
        (0, 1, 7, 10, 13), (10,), (5, 8), (8, 64), (8, 3)
    ):
        asked(
            f'curriculum {step} {shortest} {longest} {multiple}',
            speedups.curriculum_length,
            step,
            total,
            shortest,
            longest,
            multiple,
        )
    asked('curriculum', speedups.curriculum_length, 1, 0, 8, 64)
    asked(
        'one bit',
        lambda: [
            digest(v)
            for v in speedups.one_bit(torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, -4.0]))
        ],
    )
    h, v, t = normal(0, 10, 4).requires_grad_(), normal(1, 6, 4).requires_grad_(), torch.arange(10) % 6
    for chunks in (1, 3, 8, 0):

        def chunked(chunks=chunks):
            h.grad = v.grad = None
            loss = speedups.chunked_loss(h, v, t, chunks)
            (2 * loss).backward()
            return [digest(loss), digest(h.grad), digest(v.grad)]

        asked(f'chunks {chunks}', chunked)
    for shape in ((3, 5), (5, 3), (4, 4)):
        for steps in (0, 1, 5):
            asked(f'orthogonal {shape} {steps}', lambda s=shape, n=steps: digest(speedups.orthogonal(normal(2, *s), n)))
    asked('zero', lambda: digest(speedups.orthogonal(torch.zeros(2, 2))))
    for name in ('json', 'no_such_module', 'no.such.module', 'os.path'):
        asked(f'there {name}', speedups._there, name)
    a, b = speedups._parameters(2), speedups._parameters(2)
    speedups._give_gradients([a, b], 3)
    asked(
        'gradients',
        lambda: [len(speedups._parameters()), list(a[0].shape), digest(a[1].grad), torch.equal(a[1].grad, b[1].grad)],
    )
    same_answers(request, 'speedups', asked)


def modules(monkeypatch, **contents):
    "Modules that are made up: name with two strokes for a point -> what is in them"
    for name, inside in contents.items():
        name = name.replace('__', '.')
        for n in range(1, name.count('.') + 2):
            part = '.'.join(name.split('.')[:n])
            if not isinstance(sys.modules.get(part), types.ModuleType) or part == name:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        vars(sys.modules[name]).update(inside)
        if '.' in name:
            setattr(sys.modules[name.rpartition('.')[0]], name.rpartition('.')[2], sys.modules[name])


def test_beside_other_libraries(request, monkeypatch):
    asked, seen = Asked(), []

    def noted(name, result):
        def call(*args, **kw):
            seen.append(
                [
                    name,
                    *(
                        list(a.shape) if isinstance(a, torch.Tensor) else a
                        for a in args
                        if isinstance(a, (torch.Tensor, int, float, list, tuple))
                    ),
                    {
                        k: list(v.shape) if isinstance(v, torch.Tensor) else v
                        for k, v in kw.items()
                        if isinstance(v, (torch.Tensor, int, float, str, bool))
                    },
                ]
            )
            return result(*args, **kw) if callable(result) else result

        return call

    class Sam:
        "An optimizer that calls back twice"

        def __init__(self, opt, rho):
            self.opt, self.rho = opt, rho

        def step(self, closure):
            loss = closure()
            seen.append([self.rho, float(self.opt.defaults['lr']), loss.dim()])
            self.opt.step()

    functional = dict(
        smooth_labels=noted('smooth', lambda z, y, a: torch.zeros(len(z), z.shape[1])),
        mixup_batch=noted('mixup', lambda x, y, mixing, indices: (x * (1 - mixing), y)),
        compute_ema=noted('ema', lambda model, theirs, smoothing: None),
        resize_batch=noted('resize', lambda x, y, scale_factor, mode: (x[..., ::2, ::2], y)),
    )
    made = {
        'composer': dict(__version__='1'),
        'composer__functional': functional,
        'composer__algorithms': dict(blurpool=None),
        'composer__algorithms__cutmix__cutmix': dict(
            _adjust_lambda=noted('adjust', lambda t, box: 0.5), _rand_bbox=noted('box', lambda *a, **kw: (1, 2, 3, 4))
        ),
        'composer__algorithms__blurpool__blurpool_layers': dict(
            blur_2d=noted('blur', lambda x, stride: x[..., ::stride, ::stride])
        ),
        'composer__algorithms__ghost_batchnorm__ghost_batchnorm': dict(
            GhostBatchNorm2d=lambda norm, n: noted('ghost', lambda x: x * n)
        ),
        'composer__algorithms__layer_freezing__layer_freezing': dict(
            _freeze_schedule=noted('freeze', lambda p, begin, level: p * level)
        ),
        'composer__algorithms__sam__sam': dict(SAMOptimizer=Sam),
    }
    modules(monkeypatch, **made)
    torch.manual_seed(3)
    asked(
        'apart',
        lambda: [
            {k: float(f'{v:.4g}') for k, v in methods.composer_apart(dict(seed=4))['apart'].items()},
            seen.copy(),
            seen.clear(),
        ],
    )
    fits = []

    class Trainer:
        "Composer's, which notes what it gets"

        def __init__(self, **kw):
            fits.append(
                {k: v if isinstance(v, (int, str, bool, list)) else type(v).__name__ for k, v in kw.items()}
                | dict(
                    batch=kw['train_dataloader'].batch_size,
                    last=kw['train_dataloader'].drop_last,
                    n=len(kw['train_dataloader'].dataset),
                    lr=kw['optimizers'].defaults['lr'],
                )
            )

        def fit(self):
            pass

    modules(
        monkeypatch,
        composer=dict(Trainer=Trainer, algorithms=types.ModuleType('algorithms')),
        composer__models=dict(ComposerClassifier=lambda model, num_classes: num_classes),
        composer__algorithms=dict(Good=lambda **kw: f'good {kw}', Bad=lambda: 1 / 0),
    )
    sys.modules['composer'].Trainer, sys.modules['composer'].algorithms = Trainer, sys.modules['composer.algorithms']
    monkeypatch.setattr(methods, 'digits', lambda: tuple(v[:30] for v in speedups.digits()))
    rows = methods.composer_train(
        dict(algorithms=[('', {}), ('Good', dict(a=1)), ('Bad', {}), ('Missing', {})], epochs=3)
    )
    asked('trained', lambda: [[{k: v for k, v in r.items() if k != 'seconds'} for r in rows], fits])

    class Scheduler:
        "DeepSpeed's, which notes its plan"

        def __init__(self, plan):
            self.plan = plan

        def get_difficulty(self, step):
            return [step, self.plan]

    class Adam:
        "DeepSpeed's, which does nothing"

        def __init__(self, params, **kw):
            seen.append([len(params), kw])

        def step(self):
            pass

    modules(
        monkeypatch,
        deepspeed=dict(__version__='2'),
        deepspeed__ops__adam=dict(DeepSpeedCPUAdam=Adam),
        deepspeed__runtime__data_pipeline__curriculum_scheduler=dict(CurriculumScheduler=Scheduler),
    )
    monkeypatch.setattr(speedups, '_parameters', lambda: [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)])
    monkeypatch.setattr(speedups, '_there', lambda module: module.endswith('adam'))

    def raced():
        found = speedups.deepspeed_run(dict(turns=2))
        return [
            found['version'],
            found['there'],
            found['curriculum'][-2:],
            len(found['curriculum']),
            {k: len(v) for k, v in found['took'].items()},
            f"{found['apart']:.3g}",
            seen.copy(),
        ]

    asked('deepspeed', raced)
    same_answers(request, 'beside_other_libraries', asked)


class Tiny(torch.nn.Module):
    "A model of one's own"

    def __init__(self):
        super().__init__()
        self.conv, self.config = torch.nn.Conv2d(3, 4, 3), SimpleNamespace(use_cache=True)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_switches(request, monkeypatch):
    asked = Asked()
    for kw in (dict(precision='fp16'), dict(micro_batches=0), dict(precision='tf32')):
        asked(f'{kw}', lambda kw=kw: repr(switches.Turned(**kw)))
    torch.manual_seed(0)
    x = normal(0, 4, 3, 6, 6)
    model = Tiny().eval()
    for i, inputs in enumerate((x, dict(x=x), x[:3], dict(x=x[:2]))):
        asked(f'given {i}', lambda v=inputs: sorted(switches._given(v, 4, 'cpu')))
    monkeypatch.setattr(switches.time, 'perf_counter', Ticking())
    for i, on in enumerate(
        (
            switches.Turned(),
            switches.Turned('bf16', True),
            switches.Turned('tf32', micro_batches=2),
            switches.Turned(micro_batches=3),
            switches.Turned(recompute=True),
            switches.Turned(fused=True),
        )
    ):

        def trial(on=on):
            t = switches.Trial(model, on, 4, inputs=x, steps=2)
            return [
                t.first,
                t.peak,
                t.model.training,
                t.model.config.use_cache,
                [list(p[''].shape) for p in t._parts()],
                bool(t.opt.param_groups[0]['fused']),
                t.inputs[''].is_contiguous(),
                len(t.opt.state),
                t.forward is t.model,
                int(t.opt.state[t.model.conv.weight]['step']),
                t.model.conv.weight.grad,
            ]

        asked(f'trial {i}', trial)
    asked('as it was', lambda: [model.training, model.config.use_cache, torch.backends.cuda.matmul.allow_tf32])
    asked('steps', switches.Trial, model, switches.Turned(), 4, inputs=x, steps=0)
    for allowed in (True, False):
        with switches._tf32(allowed):
            asked(f'tf32 {allowed}', lambda: torch.backends.cuda.matmul.allow_tf32)
    turned = []
    for has in (
        dict(gradient_checkpointing_enable=lambda: turned.append(1)),
        dict(set_grad_checkpointing=lambda: turned.append(2)),
        {},
    ):
        asked(f'recompute {list(has)}', lambda has=has: [switches._recompute(SimpleNamespace(**has)), turned])
    for which in (None, [], ['bf16'], ['compile', 'tf32'], ['bf17'], ['channels last', 'fused optimizer']):
        asked(f'which {which}', lambda w=which: [[*k, repr(v)] for k, v in switches._all_switches(w).items()])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            switches, 'example_inputs', lambda *a: dict(input_ids=torch.zeros(2, 50, dtype=torch.long), x=torch.ones(2))
        )
        torch.manual_seed(3)
        for config_ in (None, SimpleNamespace(vocab_size=9), SimpleNamespace(vocab_size=None)):
            asked(
                f'drawn {config_}',
                lambda c=config_: {
                    k: [int(v.max()), int(v.min())]
                    for k, v in switches._batch_for(SimpleNamespace(config=c), 2, 3, 'cpu').items()
                },
            )
    fake = SimpleNamespace(steps=2, peak=2048, first=1.5)
    for seconds, base in (
        ([0.2], [0.3]),
        ([0.2, 0.4, 0.3], [0.4, 0.6, 0.6]),
        ([0.2, 0.4], None),
        ([0.1, 0.2, 0.3, 0.4], [1] * 4),
    ):
        asked(f'tried {seconds}', lambda s=seconds, b=base: repr(switches._tried('alone', 'bf16', fake, s, b)))
    rows = [
        switches._tried('alone', 'baseline', fake, [0.2]),
        switches._tried('alone', 'bf16', fake, [0.1, 0.1], [0.2, 0.3]),
        switches.Tried('together', '+ bf16', why='it failed'),
        switches.Tried('alone', 'x', 3.0, None, 0, 2.0),
    ]
    asked('table', lambda: switches.switch_table(rows, 'caption')._repr_markdown_())
    tried = lambda ms, first: switches.Tried('alone', 'x', ms, first=first)
    for before, after in (
        ((10, 1), (8, 3)),
        ((10, 1), (10, 3)),
        ((10, 1), (12, 0)),
        ((10, 3), (8, 1)),
        ((10, 1), (9, 1.0005)),
    ):
        asked(f'pays {before} {after}', switches.pays_after, tried(*before), tried(*after))

    class Fake:
        "A trial in no time"

        def __init__(self, model, on, **kw):
            if on.compile:
                raise RuntimeError('no compiler\nat all' + 'x' * 300)
            if on.fused:
                raise KeyError('out')
            self.on, self.steps, self.peak, self.first = on, kw['steps'], 0, 0.5

        def __call__(self):
            pass

    monkeypatch.setattr(switches, 'Trial', Fake)
    monkeypatch.setattr(
        switches, 'interleaved', lambda contenders, turns: {n: [0.1 * (1 + (n == 'trial'))] * turns for n in contenders}
    )
    for which in (['bf16', 'compile'], [], ['fused optimizer']):
        asked(
            f'try {which}',
            lambda w=which: [repr(t) for t in switches.try_switches(None, 4, which=w, device='cpu', turns=3)],
        )
    same_answers(request, 'switches', asked)


# A run


def test_trainer(request, tmp_path, monkeypatch):
    asked, make = Asked(tmp_path), config.TrainConfig
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(trainer, '_measure_peak', lambda *a: 1e9)
    monkeypatch.setattr(trainer.time, 'perf_counter', Ticking())
    for kw in (
        dict(),
        dict(eval_every=2, holdout=0.01),
        dict(layout='dp1 optimizer=sgd', clip=0.0, warmup=2),
        dict(layout='dp1 optimizer=momentum', holdout=0.0, lr_schedule='linear'),
        dict(layout='dp1 micro_batch=2', weight_decay=0.1),
    ):

        def trained(kw=kw):
            said = []
            t = trainer.Trainer(
                make(steps=3, global_batch=4, seq=8, eval_samples=30, **kw), None, lambda *a: said.append(a)
            )
            rows = t.train()
            return [
                [{k: float(f'{v:.3g}') if v else v for k, v in r.items()} for r in rows],
                said,
                t.per_step,
                type(t.opt).__name__,
                t.opt.param_groups[0].get('momentum'),
                t.step,
            ]

        asked(f'trained {kw}', trained)
    folder = tmp_path / 'run'
    c = make(steps=4, global_batch=4, seq=8, save_every=2, folder=str(folder), eval_samples=8, keep=3)
    asked(
        'saved',
        lambda: [
            len(trainer.fit(c)),
            sorted(p.name for p in folder.iterdir()),
            sorted(p.name for p in (folder / 'checkpoints').iterdir()),
            len((folder / 'metrics.jsonl').read_text().splitlines()),
        ],
    )
    said = json.loads((folder / 'run.json').read_text())
    asked('record', lambda: [sorted(said), said['samples'], said['world'], said['changed'], sorted(said['versions'])])
    (folder / 'metrics.jsonl').write_text((folder / 'metrics.jsonl').read_text() + '{"step": 9}\n{"torn')
    with pytest.warns(UserWarning):
        t = trainer.Trainer(c.replace(resume=True, steps=6, lr=0.5))
    asked(
        'resumed',
        lambda: [
            t.step,
            len(t.rows),
            [float(f'{r["loss"]:.3g}') for r in t.train()],
            json.loads((folder / 'run.json').read_text())['changed'],
        ],
    )
    t = trainer.Trainer(make(steps=3, global_batch=4, seq=8))
    for values in ((1.0, 2.0), (float('nan'), 1.0), (1.0, float('inf')), (float('inf'), -float('inf'))):
        asked(f'finite {values}', t._check_finite, *values, 0.1)
    for step, every in itertools.product((0, 1, 4), (0, 1, 2, 3)):
        t.step = step
        asked(f'due {step} {every}', lambda e=every: bool(t._due(e)))
    for n, micro, dp in itertools.product((1, 255, 256, 257, 600), (1, 100, 300), (1, 2)):
        fake = SimpleNamespace(layout=SimpleNamespace(micro_batch=micro, dp=dp))
        asked(f'pieces {n} {micro} {dp}', trainer.Trainer._pieces, fake, n)
    for n in (0, 3, 7):
        some = trainer._Some(tokens_of(9), list(range(2, 2 + n)))
        asked(f'some {n}', lambda s=some, n=n: [len(s), *(s.sample(i)[0].tolist() for i in range(n))])
    for y in (torch.tensor([1, 2]), torch.ones(2, 3, dtype=int)):
        asked(f'padding {y.shape}', lambda y=y: trainer._without_padding(0, y, torch.tensor([1.0, 0.0]))[1].tolist())
    shape = SimpleNamespace(layers=3, block_weights=100, vocab=50, hidden=8)
    asked('flops', lambda: [trainer._gpt_flops(shape, s) for s in (1, 16)])
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    net[1].eval()
    asked(
        'counted', lambda: [trainer._counted_flops(net, torch.ones(4)), net.training, net[0].training, net[1].training]
    )
    asked(
        'own flops',
        lambda: trainer.sample_flops(make(model='tests.training.test_answers:own_data'), None, net, torch.ones(4)),
    )
    for kind, source in (('tokens', 'transformers'), ('images', 'timm'), ('images', 'transformers')):
        with monkeypatch.context() as m:
            m.setattr(trainer, '_kind', lambda name, kind=kind, source=source: (kind, source))
            m.setattr('fsdl_tools.models.profile.profile', lambda name, **kw: SimpleNamespace(flops=len(str(kw))))
            asked(
                f'other flops {kind} {source}', lambda: [trainer.sample_flops(make(model='x', seq=s)) for s in (0, 12)]
            )
    for kind in ('adam', 'sgd', 'momentum'):
        asked(
            f'optimizer {kind}',
            lambda k=kind: {
                n: v
                for n, v in trainer._make_optimizer(
                    net.parameters(), make(lr=0.3, weight_decay=0.2), k
                ).defaults.items()
                if n in ('lr', 'momentum', 'weight_decay')
            },
        )
    monkeypatch.setattr(trainer, '_reseed', trainer._reseed)
    for key in ((0, 0, 0), (1, 5, 2)):
        trainer._reseed(*key)
        asked(f'seeded {key}', lambda: [random.random(), float(np.random.rand())])
    for frozen, lr in itertools.product((False, True), (0.5, torch.tensor(0.5))):
        net = torch.nn.Linear(2, 1)
        net.bias.requires_grad_(not frozen)
        before = net.weight.clone()
        opt = torch.optim.AdamW(net.parameters(), lr=lr)
        run = SimpleNamespace(stages=[torch.nn.ModuleDict(dict(module=net))])
        asked(
            f'states {frozen} {lr}',
            lambda: [
                {n: list(t.shape) for n, t in trainer.training_tensors(run, opt).items()},
                torch.equal(before, net.weight),
                float(opt.param_groups[0]['lr']),
                net.weight.grad,
            ],
        )
    for name, model in dict(text='gpt-tiny', own='tests.training.test_answers:own_data', resnet='resnet18').items():
        asked(
            f'made {name}',
            lambda m=model: (
                type(
                    trainer._make_model(
                        make(model=m, image_size=32), SimpleNamespace(classes=['a', 'b'], vocab=9), None
                    )
                ).__name__
            ),
        )
    asked('too many tokens', trainer._text_model, make(model='bert'), 10**6)
    same_answers(request, 'trainer', asked)


def test_ranks_and_agents(request, tmp_path, monkeypatch, capsys):
    asked, make, killed = Asked(tmp_path), config.TrainConfig, []
    safe = pytest.MonkeyPatch()
    request.addfinalizer(safe.undo)
    safe.setattr(elastic.os, 'kill', lambda number, signal: killed.append(int(signal)))
    safe.setattr(elastic.os, '_exit', lambda code: killed.append(f'exit {code}'))
    row = dict(loss=1.23456, samples_per_s=1234.5, mfu=0.123)
    for held in (None, 2.5):
        asked(f'row {held}', elastic._row_text, row | dict(eval_loss=held))
    asked('row', elastic._row_text, row)
    for steps in (5, 20, 33):
        said, at = [], Ticking()
        monkeypatch.setattr(elastic.time, 'monotonic', at)
        shown = elastic._Progress(make(steps=steps), 3.0)
        shown.console = SimpleNamespace(is_terminal=False, print=lambda text, **kw: said.append(text))
        for step in range(1, steps + 1):
            shown.row(dict(row, step=step))
        for done in (1, 2, 3, 4, 5, 6):
            shown.evaluating(done * 1000, 6000)
        asked(f'lines {steps}', lambda said=said, shown=shown: [said, shown.every, shown.close()])
    monkeypatch.undo()
    shown = elastic._Progress(make(steps=5))
    shown.console = elastic_console()
    shown.row(dict(row, step=3))
    shown.evaluating(1, 2)
    asked('bar', lambda: [[t.completed, t.total, t.fields['said']] for t in shown.bar.tasks])
    shown.close()
    for slurm, omp, local, here in itertools.product((None, '4', 'x', '0'), (None, '2'), (None, '8'), (None, 2, 100)):
        for name, v in dict(SLURM_CPUS_PER_TASK=slurm, OMP_NUM_THREADS=omp, LOCAL_WORLD_SIZE=local).items():
            monkeypatch.setenv(name, v) if v else monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(elastic.os, 'sched_getaffinity', lambda pid: range(16))
        asked(f'threads {slurm} {omp} {local} {here}', elastic.rank_threads, here)
    monkeypatch.delattr(elastic.os, 'sched_getaffinity')
    monkeypatch.setattr(elastic.os, 'cpu_count', lambda: None)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    asked('threads unknown', elastic.rank_threads)
    monkeypatch.undo()
    for first, second, frame in ((2, 2, None), (2, 2, 1), (15, 2, 1), (15, 15, 1), (2, 15, 1)):
        heard, t = elastic.Asked(), SimpleNamespace(stop=False, step=3, c=SimpleNamespace(steps=5))

        def hear(heard=heard, t=t, first=first, second=second, frame=frame):
            heard.watch(t)
            heard.hear(first)
            try:
                heard.hear(second, frame)
            except KeyboardInterrupt:
                return 'interrupt'
            return [heard.signal, t.stop, heard.code(t), heard.code(SimpleNamespace(step=5, c=t.c))]

        asked(f'hears {first} {second} {frame}', hear)
    heard, t = elastic.Asked(), SimpleNamespace(stop=False, step=3, c=SimpleNamespace(steps=5))
    asked('not asked', lambda: [heard.code(t), heard.watch(t), t.stop])
    with pytest.raises(elastic.Stopped) as stopped:
        heard.signal = 15
        heard.leave()
    asked('leaves', lambda: stopped.value.code)
    from fsdl_tools.training.checkpoint import _Lost

    errors = [
        ValueError('a\n  b'),
        OSError('disk'),
        RuntimeError('gloo: gone'),
        RuntimeError('NCCL error'),
        RuntimeError('other'),
        _Lost('lost'),
        FloatingPointError('nan'),
        BlockingIOError('taken'),
        torch.distributed.DistError('x'),
    ]
    for i, rank in itertools.product(range(len(errors)), (None, '3')):
        monkeypatch.setenv('RANK', rank) if rank else monkeypatch.delenv('RANK', raising=False)
        monkeypatch.setattr(elastic.traceback, 'print_exception', lambda e: print('traceback'))
        monkeypatch.setattr(elastic, '_cause_of_others', lambda errors: 'rank 1: cause' if rank else '')
        folder = tmp_path / f'e{i}{rank}'
        folder.mkdir()

        def failed(e=errors[i], folder=folder):
            return [
                elastic._fail(e, folder),
                *capsys.readouterr(),
                {p.name: p.read_text() for p in folder.iterdir()},
                elastic._cause(folder),
                elastic._is_lost(e),
            ]

        asked(f'fails {errors[i]!r} {rank}', failed)
        asked(f'fails again {errors[i]!r} {rank}', failed)
        asked(
            f'forgets {errors[i]!r} {rank}',
            lambda folder=folder: [elastic._forget(folder), len(list(folder.iterdir()))],
        )
    for agent, e in itertools.product((True, False), errors):
        monkeypatch.setenv('FSDL_AGENT', '1') if agent else monkeypatch.delenv('FSDL_AGENT', raising=False)
        asked(f'agent {agent} {e!r}', lambda e=e: [elastic._fail(e, None), killed.copy(), killed.clear()])
    asked(
        'no folder',
        lambda: [
            elastic._fail(ValueError('x'), None),
            elastic._fail(ValueError('x'), tmp_path / 'none'),
            elastic._cause(tmp_path),
            elastic._forget(None),
        ],
    )
    monkeypatch.undo()
    monkeypatch.setattr(elastic.time, 'sleep', lambda s: None)
    monkeypatch.setattr(elastic.time, 'monotonic', Ticking())
    asked('cause of others', lambda: [elastic._cause_of_others(tmp_path), elastic._cause_of_others(None)])
    (tmp_path / 'error.txt').write_text('it was me')
    (tmp_path / 'lost.txt').write_text('lost')
    asked('cause', lambda: [elastic._cause_of_others(tmp_path), elastic._cause(tmp_path)])
    monkeypatch.undo()
    for omp, platform in itertools.product((None, '3'), ('linux', 'darwin')):
        monkeypatch.setenv('OMP_NUM_THREADS', omp) if omp else monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
        monkeypatch.setattr(elastic.sys, 'platform', platform)
        asked(
            f'variables {omp} {platform}',
            lambda: (
                {k: v for k, v in elastic._agent_variables(2, '/a/run', '/t').items() if k != 'OMP_NUM_THREADS'}
                | dict(threads='OMP_NUM_THREADS' in elastic._agent_variables(2, '/a/run', '/t'))
            ),
        )
    asked('command', lambda: elastic._command(4, 2, Path('/t'))[1:-3])
    for given in ('gpt2', 3, None):
        asked(f'train {given}', elastic.train, given)
    asked('rows', lambda: elastic._rows_of(tmp_path))
    (tmp_path / 'metrics.jsonl').write_text('{"a": 1}\n{"a": 2}\n')
    asked('rows there', lambda: elastic._rows_of(tmp_path))
    monkeypatch.undo()
    for polls, code, asks, timeout in itertools.product((0, 2, 5), (0, 3), (0, 15), (None, 3)):
        monkeypatch.setattr(elastic.time, 'sleep', lambda s: None)
        monkeypatch.setattr(elastic.time, 'monotonic', Ticking())
        done, left = [], [polls]

        def poll(left=left, code=code):
            left[0] -= 1
            return None if left[0] >= 0 else code

        agent = SimpleNamespace(
            poll=poll,
            terminate=lambda: done.append('terminate'),
            kill=lambda: done.append('kill'),
            wait=lambda *a: done.append(['wait', *a]),
            returncode=code,
        )
        stop = tmp_path / f'stop{polls}{code}{asks}{timeout}'
        asked(
            f'waits {polls} {code} {asks} {timeout}',
            lambda: [
                elastic._wait_for(agent, SimpleNamespace(signal=asks), timeout, stop),
                done,
                stop.exists() and stop.read_text(),
            ],
        )
    monkeypatch.undo()
    for args in (['{"steps": 0}'], ['{"nope": 1}'], [str(tmp_path / 'none.json')]):
        monkeypatch.setattr(elastic.sys, 'argv', ['x', *args])
        monkeypatch.setattr(elastic, '_fail', lambda e, folder: f'{type(e).__name__} {folder}')
        with pytest.raises((SystemExit, FileNotFoundError)) as e:
            elastic._main()
        asked(f'main {args}'.replace(str(tmp_path), ''), lambda e=e: str(e.value))
    monkeypatch.setattr(elastic.sys, 'argv', ['x', '{"steps": 3}'])
    worked = []
    monkeypatch.setattr(elastic, 'work', lambda config, stop, errors: worked.append([config.steps, stop, errors]))
    elastic._main()
    make(steps=4).to_json(tmp_path / 'config.json')
    monkeypatch.setattr(elastic.sys, 'argv', ['x', str(tmp_path / 'config.json')])
    elastic._main()
    asked('worked', lambda: worked)
    monkeypatch.undo()
    for again, rank, resume, folder, agent, initialised in itertools.product(
        ('0', '1'), (None, '0'), (True, False), ('', 'f'), (None, '1'), (True, False)
    ):
        if resume and not folder:
            continue
        for name, v in dict(TORCHELASTIC_RESTART_COUNT=again, RANK=rank, FSDL_AGENT=agent).items():
            monkeypatch.setenv(name, v) if v else monkeypatch.delenv(name, raising=False)
        told = []
        monkeypatch.setattr(elastic, '_prepare_device', lambda device: 'backend')
        monkeypatch.setattr(elastic, '_join', lambda backend: told.append(backend))
        monkeypatch.setattr(elastic.dist, 'is_initialized', lambda i=initialised: i)
        monkeypatch.setattr(elastic.dist, 'barrier', lambda: told.append('barrier'))
        monkeypatch.setattr(elastic, '_trained', lambda config, asked: told.append(config.resume) or 'trainer')
        asked(
            f'life {again} {rank} {resume} {folder} {agent} {initialised}',
            lambda: [elastic._life(make(resume=resume, folder=folder), SimpleNamespace(code=lambda t: 9)), told],
        )
    monkeypatch.undo()
    for device, there, local in itertools.product(('', 'cpu', 'cuda'), (True, False), (None, '3')):
        monkeypatch.setenv('LOCAL_RANK', local) if local else monkeypatch.delenv('LOCAL_RANK', raising=False)
        told = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=there: there)
        monkeypatch.setattr(torch.cuda, 'set_device', told.append)
        monkeypatch.setattr(torch, 'set_num_threads', lambda n: told.append('threads'))
        asked(f'prepares {device} {there} {local}', lambda: [elastic._prepare_device(device), told])
    monkeypatch.undo()
    monkeypatch.setenv('MASTER_ADDR', 'here')
    monkeypatch.setenv('MASTER_PORT', '7')
    for store, error in itertools.product((None, 'True', 'False'), (None, 'EADDRINUSE', 'other')):
        monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', store) if store else monkeypatch.delenv(
            'TORCHELASTIC_USE_AGENT_STORE', raising=False
        )

        def init(backend, error=error, **kw):
            if error:
                raise torch.distributed.DistNetworkError(error)
            told.append([backend, sorted(kw), kw['timeout'].total_seconds()])

        told = []
        monkeypatch.setattr(elastic, '_in_store_of_agent', lambda timeout: dict(rank=1))
        monkeypatch.setattr(elastic.dist, 'init_process_group', init)
        asked(f'joins {store} {error}', lambda: [elastic._join('gloo'), told])
    monkeypatch.undo()
    parents = iter([5, 5, 5, 6])
    monkeypatch.setattr(elastic.os, 'getppid', lambda: next(parents))
    monkeypatch.setattr(elastic.time, 'sleep', lambda s: (tmp_path / 'stopfile').write_text('15'))
    heard = []
    elastic._follow(5, SimpleNamespace(hear=heard.append), tmp_path / 'stopfile')
    asked('follows', lambda: [heard, killed.copy(), killed.clear()])
    monkeypatch.undo()

    class Trained:
        "A trainer"

        def __init__(self, config, *shown):
            self.stop, self.c, self.step, self.rows = False, config, 2, ['rows']

        def train(self):
            pass

    monkeypatch.setattr(elastic, 'Trainer', Trained)
    for steps in (2, 5):
        asked(f'alone {steps}', lambda s=steps: elastic._alone(make(steps=s)))
        with monkeypatch.context() as m:
            m.setattr(elastic, '_trained', lambda config, asked_: setattr(asked_, 'signal', 15) or Trained(config))
            m.setattr(elastic.Asked, 'leave', lambda self: asked(f'left {steps}', lambda: self.signal))
            asked(f'asked alone {steps}', lambda s=steps: elastic._alone(make(steps=s)))
    monkeypatch.undo()
    for code, signal_, n, folder in itertools.product((0, 3), (0, 15), (2, 4), ('', str(tmp_path / 'kept'))):
        rows = [dict(step=i) for i in range(n)]
        monkeypatch.setattr(elastic, 'check_config', lambda c: (c, SimpleNamespace(world=2)))
        monkeypatch.setattr(elastic, '_start_agent', lambda cmd, env, log: SimpleNamespace())
        monkeypatch.setattr(
            elastic,
            '_wait_for',
            lambda agent, asked_, timeout, stop, code=code, s=signal_: setattr(asked_, 'signal', s) or code,
        )
        monkeypatch.setattr(elastic, '_rows_of', lambda folder, rows=rows: rows)
        monkeypatch.setattr(elastic, '_cause', lambda tmp: ': cause')

        def trained(folder=folder):
            try:
                return elastic.train(make(steps=4, layout='dp2', folder=folder))
            except elastic.Stopped as e:
                return f'stopped {e.code}'

        asked(f'train {code} {signal_} {n} {bool(folder)}', trained)
    monkeypatch.undo()
    import psutil

    process = lambda pid, ppid, **env: SimpleNamespace(
        pid=pid, info=dict(pid=pid, ppid=ppid, environ=env or None), kill=lambda: killed.append(pid)
    )
    run = str(tmp_path / 'run')
    processes = [
        process(1, 0, FSDL_RUN=run, RANK='1'),
        process(2, 0, FSDL_RUN=run, RANK='0'),
        process(3, 2, FSDL_RUN=run, RANK='0'),
        process(4, 0, FSDL_RUN='other', RANK='0'),
        process(5, 0),
        process(6, 0, FSDL_RUN=run),
    ]
    monkeypatch.setattr(psutil, 'process_iter', lambda names: processes)
    monkeypatch.setattr(elastic.time, 'sleep', lambda s: None)
    monkeypatch.setattr(elastic.time, 'monotonic', Ticking())
    asked('ranks', lambda: [p.pid for p in elastic._ranks_in(run)])
    (tmp_path / 'run').mkdir(exist_ok=True)
    asked('kill nobody', elastic.kill_one, run, 1, -1, 3)
    (tmp_path / 'run/metrics.jsonl').write_text('1\n2\n')
    for after, which in ((2, -1), (2, 0), (2, 1), (2, 2), (2, -2), (2, -3), (3, 0)):
        asked(
            f'kill {after} {which}',
            lambda a=after, w=which: [elastic.kill_one(run, a, w, 3), killed.copy(), killed.clear()],
        )
    monkeypatch.undo()

    def never(*a):
        if a:
            raise elastic.subprocess.TimeoutExpired('x', a[0])

    ended = []
    elastic._end(
        SimpleNamespace(
            poll=lambda: None,
            terminate=lambda: ended.append('terminate'),
            kill=lambda: ended.append('kill'),
            wait=lambda *a: (ended.append(a), never(*a)),
        )
    )
    asked('ends', lambda: ended)
    same_answers(request, 'ranks_and_agents', asked)


def elastic_console():
    "A console that takes itself for a terminal"
    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=True)


def test_adapters(request, monkeypatch):
    asked, logged = Asked(), []
    params = lambda p: logged.append(['params', p])
    log = SimpleNamespace(log=lambda values, step=None: logged.append([values, step]), log_params=params)
    log.flush, log.id, log.folder = lambda: logged.append('flush'), 'r', 'f'

    def ask(question, function, *args, **kw):
        asked(question, lambda: [function(*args, **kw), logged.copy(), logged.clear()])

    rows = (
        dict(a=1, b='x', c=2.5, d=True, e=None, f=np.float32(1), g=torch.tensor(2.0)),
        {},
        dict(step=3, x=1),
        dict(step=2),
    )
    for values in rows:
        asked(f'numbers {sorted(values)}', adapters._numbers, values)
        ask(f'report {sorted(values)}', adapters.reporter(log), values)
    for module, name in (('lightning.pytorch.loggers.logger', 'Logger'), ('accelerate.tracking', 'GeneralTracker')):
        for parent in ('.'.join(module.split('.')[:n]) for n in range(1, module.count('.') + 1)):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, type(name, (), {}))
    monkeypatch.setitem(sys.modules, 'transformers', types.ModuleType('transformers'))
    sys.modules['transformers'].TrainerCallback = type('TrainerCallback', (), {})
    logger = adapters.lightning_logger(log)
    ask('lightning', logger.log_metrics, dict(a=1, b='x'), 4)
    for given in (dict(a=1), SimpleNamespace(b=2)):
        ask(f'lightning {type(given).__name__}', logger.log_hyperparams, given)
    ask('lightning end', logger.finalize, 'ok')
    tracker = adapters.accelerate_tracker(log)
    ask('accelerate', tracker.log, dict(a=1, b='x'), 3)
    ask('accelerate start', tracker.store_init_configuration, dict(a=1))
    ask('accelerate end', tracker.finish)
    callback = adapters.hf_callback(log)
    for first, values in itertools.product((True, False), (None, {}, dict(loss=1.0))):
        state = SimpleNamespace(is_world_process_zero=first, global_step=7)
        ask(f'transformers {first} {values}', callback.on_log, None, state, None, values)
    ask('transformers start', callback.on_train_begin, SimpleNamespace(to_sanitized_dict=lambda: dict(a=1)), None, None)
    ask('transformers end', callback.on_train_end, None, None, None)
    same_answers(request, 'adapters', asked)
