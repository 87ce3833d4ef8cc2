"""Feeding a run: no sample twice, resumption anywhere, hostile files, killed ranks and workers."""

import gc, hashlib, json, os, pickle, random, signal, subprocess, sys, time
from collections import Counter
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from fsdl_tools.training.data import Feed, Images, Tokens, epoch_order, eval_batches, open_data, rank_indices
from fsdl_tools.training.data import step_indices
from fsdl_tools.training.corpora import read_image
from fsdl_tools.parallel.ranks import RankError, on_ranks

flat = lambda batches: [i for b in batches for i in b]


def same(a, b):
    "Are two lists of steps of micro-batches bit by bit the same?"
    a, b = list(a), list(b)
    return [len(s) for s in a] == [len(s) for s in b] and all(
        torch.equal(p, q) for s, t in zip(a, b) for m, k in zip(s, t) for p, q in zip(m, k)
    )


def text(t):
    return bytes(t.tolist()).decode()


def shown(source, seq, **kw):
    "All tokens that the samples of a source hold, in order"
    return torch.cat([x for d in open_data(source, seq=seq, **kw) for i in range(len(d)) for x in [d.sample(i)[0]]])


# ---- orders ----


@st.composite
def runs(draw):
    "n, global_batch, and some ways (ranks, micro_batch) to divide it"
    ways = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4))
    batch = int(np.lcm.reduce([r * m for r, m in ways])) * draw(st.integers(1, 2))
    return draw(st.integers(batch, 5 * batch + 7)), batch, ways


@given(runs(), st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_ranks_divide_a_step_without_overlap(run, seed, step):
    n, batch, ways = run
    whole = step_indices(n, step, batch, seed)
    assert len(set(whole)) == len(whole) == batch
    for ranks, micro in ways:
        parts = [rank_indices(n, step, batch, r, ranks, micro, seed) for r in range(ranks)]
        assert {len(p) for p in parts} == {batch // ranks // micro} and {len(b) for p in parts for b in p} == {micro}
        assert flat(flat(parts)) == whole


@given(runs(), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_an_epoch_has_every_sample_at_most_once_and_drops_less_than_a_batch(run, seed, epoch):
    n, batch, _ = run
    per = n // batch
    keys = [k for s in range(epoch * per, (epoch + 1) * per) for k in step_indices(n, s, batch, seed)]
    assert {e for e, _ in keys} == {epoch}
    read = {i for _, i in keys}
    assert len(read) == len(keys) and read <= set(range(n)) and n - len(read) < batch


@given(runs(), st.integers(0, 1000), st.data())
def test_resumption_anywhere_on_any_ranks_equals_the_uninterrupted_run(run, seed, data):
    n, batch, ways = run
    end = data.draw(st.integers(1, 2 * (n // batch) + 2))
    whole = [sorted(step_indices(n, s, batch, seed)) for s in range(end)]
    cuts, got = sorted(data.draw(st.lists(st.integers(0, end), max_size=4))), []
    for a, b in zip([0, *cuts], [*cuts, end]):
        ranks, micro = data.draw(st.sampled_from(ways))
        got += [
            sorted(flat(flat(rank_indices(n, s, batch, r, ranks, micro, seed) for r in range(ranks))))
            for s in range(a, b)
        ]
    assert got == whole


@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 2**32 - 1))
@example(1, 0, 0)
def test_an_order_is_a_permutation(n, epoch, seed):
    order = epoch_order(n, epoch, seed)
    assert sorted(order) == list(range(n)) and order.dtype == np.int64
    assert list(epoch_order(n, epoch, seed)) == list(order)
    assert list(epoch_order(n, epoch, seed, shuffle=False)) == list(range(n))
    assert step_indices(n, epoch, n, seed, shuffle=False) == [(epoch, i) for i in range(n)]


def test_no_two_orders_are_alike():
    assert len({tuple(epoch_order(50, e, s)) for e in range(20) for s in range(20)}) == 400


def test_orders_do_not_depend_on_the_process_or_its_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    here = [int(x) for x in epoch_order(100, 3, 7)]
    assert torch.equal(before, torch.get_rng_state())
    code = (
        'import torch; torch.manual_seed(9); torch.rand(3); from fsdl_tools.training.data import *; print([int(x) for x'
        ' in epoch_order(100, 3, 7)])'
    )
    out = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | dict(PYTHONHASHSEED='3'),
    )
    assert json.loads(out.stdout) == here, out.stderr


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda: step_indices(3, 0, 4), '3 samples do not fill a global_batch of 4'),
        (lambda: step_indices(3, -1, 2), 'step must be from 0'),
        (lambda: step_indices(3, 1.5, 2), 'step must be a whole number'),
        (lambda: step_indices(0, 0, 1), 'n must be positive'),
        (lambda: step_indices(3, 0, 0), 'global_batch must be positive'),
        (lambda: rank_indices(50, 0, 12, 0, 5, 1), 'the nearest that can are 10 and 15'),
        (lambda: rank_indices(50, 0, 2, 0, 4, 1), 'the nearest that can is 4'),
        (lambda: rank_indices(50, 0, 12, 2, 2, 1), 'rank must be from 0 to 1, not 2'),
        (lambda: rank_indices(50, 0, 12, -1, 2, 1), 'rank must be from 0 to 1, not -1'),
        (lambda: rank_indices(50, 0, 12, 0, 2, 0), 'micro_batch must be positive'),
        (lambda: epoch_order(5, 0, seed=-1), 'seed must be from 0'),
        (lambda: epoch_order(5, 0, seed=2**32), 'seed must be from 0'),
        (lambda: epoch_order(5, True), 'epoch must be a whole number'),
    ],
)
def test_impossible_requests_are_refused(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


# ---- text ----


def test_windows_cover_the_text_once_with_multi_byte_characters(tmp_path):
    s = 'naïve 🙂 café — 漢字テスト\r\n' * 40
    (tmp_path / 't.txt').write_bytes(s.encode())
    train, held = open_data(tmp_path / 't.txt', seq=7)
    n = (len(s.encode()) - 1) // 7
    assert (len(train) + len(held), train.vocab, train.kind) == (n, 256, 'tokens') and len(held) == round(n * 0.1)
    pairs = [d.sample(i) for d in (train, held) for i in range(len(d))]
    assert bytes(torch.cat([x for x, _ in pairs]).tolist()) == s.encode()[: 7 * n]
    assert bytes(torch.cat([y for _, y in pairs]).tolist()) == s.encode()[1 : 7 * n + 1]
    assert all(x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (7,) for x, y in pairs)
    assert isinstance(train.tokens, np.memmap)


@given(st.binary(min_size=2, max_size=400), st.integers(1, 20), st.floats(0, 0.99))
def test_any_bytes_are_text(data, seq, holdout):
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        with open(f'{d}/x', 'wb') as f:
            f.write(data)
        n = (len(data) - 1) // seq
        try:
            train, held = open_data(f'{d}/x', seq=seq, holdout=holdout)
        except ValueError as e:
            assert (
                'expected text in UTF-8' in str(e)
                or 'it first' in str(e)
                or n < 1
                or (holdout and n <= max(1, round(n * holdout)))
            ), e
            return
        assert len(train) >= 1 and len(train) + len(held) == n and (len(held) > 0) == (holdout > 0)
        assert (
            b''.join(bytes(s.sample(i)[1].tolist()) for s in (train, held) for i in range(len(s)))
            == data[1 : n * seq + 1]
        )


@pytest.mark.parametrize(
    'name',
    [
        'a b.txt',
        '-rf',
        'new\nline.txt',
        'ünï🙂.txt',
        '$(touch x)',
        '*',
        "quote'\".txt",
        b'\xff\xfe.txt'.decode('utf-8', 'surrogateescape'),
    ],
)
def test_hostile_names(tmp_path, name):
    (tmp_path / name).write_bytes(b'0123456789')
    train, held = open_data(tmp_path / name, seq=2)
    assert text(train.sample(0)[0]) == '01' and '\n' not in train.describe()
    train.describe().encode()  # can be printed
    with pytest.raises(ValueError, match='fewer than a sample of seq') as e:
        open_data(tmp_path / name, seq=10)
    str(e.value).encode()
    assert os.listdir(tmp_path) == [name]


def test_a_huge_file_takes_no_memory(tmp_path):
    with open(tmp_path / 'huge', 'wb') as f:
        f.truncate(64 * 2**30)
        f.seek(-4, 2)
        f.write(b'last')
    code = f'''import torch
from fsdl_tools.training.data import *
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])     # ru_maxrss would be inherited
before = peak()
train, held = open_data({str(tmp_path / 'huge')!r}, seq=3)
held.sample(len(held) - 1); [train.sample(i) for i in range(0, len(train), len(train) // 50)]
assert bytes(held.tokens[-4:]) == b'last'
print(len(train) + len(held), peak() - before)'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    n, grown = map(int, r.stdout.split())
    assert n == (64 * 2**30 - 1) // 3 and grown < 200 * 1024, (
        r.stderr
    )  # KiB; reading ahead brings in pages around each sample


def test_a_mapped_file_travels_by_name(tmp_path):
    (tmp_path / 't').write_bytes(bytes(range(256)) * 4096)
    train = open_data(tmp_path / 't')[0]
    sent = pickle.dumps(train)
    assert len(sent) < 2000
    back = pickle.loads(sent)
    assert (
        isinstance(back.tokens, np.memmap)
        and len(back) == len(train)
        and torch.equal(back.sample(77)[1], train.sample(77)[1])
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize('kind', ['fifo', 'fifo.parquet', 'link', 'device'])
def test_a_pipe_does_not_hang(tmp_path, kind):
    p = tmp_path / kind
    if kind == 'device':
        p = '/dev/zero'
    else:
        os.mkfifo(tmp_path / 'f' if kind == 'link' else p)
    if kind == 'link':
        p.symlink_to(tmp_path / 'f')
    with pytest.raises(ValueError, match='a pipe, a socket or a device'):
        open_data(p)
    if kind == 'fifo':
        (tmp_path / 't').write_text('text ' * 100)
        with pytest.raises(ValueError, match='the tokenizer at'):
            open_data(tmp_path / 't', tokenizer=p)


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / 'empty.txt').touch()
    (tmp_path / 'words.txt').write_text('abc' * 100)
    (tmp_path / 'folder.parquet').mkdir()
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for source, error, says in [
        ('empty.txt', ValueError, 'is empty'),
        ('wrods.txt', FileNotFoundError, "did you mean 'words.txt'"),
        ('folder.parquet', ValueError, 'no images in subfolders'),
        ('no/such/folder', FileNotFoundError, 'no data at'),
        ('nul\0', (ValueError, FileNotFoundError), None),
        ('x' * 5000, OSError, None),
        ('loop', OSError, None),
        ('words.txt/more', OSError, None),
    ]:
        with pytest.raises(error, match=says):
            open_data(f'{tmp_path}/{source}')
    with pytest.raises(FileNotFoundError, match="did you mean 'synthetic'"):
        open_data('sinthetic')
    with pytest.raises(ValueError, match="did you mean 'synthetic:tokens'"):
        open_data('synthetic:token')
    with pytest.raises(ValueError, match='source is empty'):
        open_data('')
    for kw, says in [
        (dict(seq=0), 'seq must be positive'),
        (dict(seq=2.5), 'seq must be'),
        (dict(size=-1), 'size must be positive'),
        (dict(holdout=1), 'holdout must be from 0'),
        (dict(holdout=-0.1), 'holdout'),
        (dict(holdout=float('nan')), 'holdout'),
        (dict(holdout=True), 'holdout'),
        (dict(seed=-1), 'seed must be'),
        (dict(tokenizer='x.json'), 'a tokenizer is for'),
    ]:
        with pytest.raises((ValueError, TypeError), match=says):
            open_data('synthetic', **kw)
    with pytest.raises(ValueError, match='too few to hold out 0.1'):
        open_data(tmp_path / 'words.txt', seq=299)
    assert [len(d) for d in open_data(tmp_path / 'words.txt', seq=299, holdout=0)] == [1, 0]
    with pytest.raises(TypeError):
        open_data(5)


# ---- Parquet and tokenizers ----


def test_parquet_of_several_row_groups_with_nulls(tmp_path):
    rows = [None if i % 7 == 3 else f'Zeile {i} – größer' for i in range(100)] + ['', 'end']
    pq.write_table(
        pa.table(dict(other=list(range(102)), text=rows, title=['t'] * 102)), tmp_path / 'r.parquet', row_group_size=9
    )
    assert pq.ParquetFile(tmp_path / 'r.parquet').num_row_groups == 12
    want = '\0'.join(r for r in rows if r is not None).encode()
    got = shown(tmp_path / 'r.parquet', 1)
    assert bytes(got.tolist()) == want[:-1]


@pytest.mark.parametrize(
    'columns, says',
    [
        (
            dict(Texts=['a'] * 9, title=['b'] * 9),
            "its columns are Texts (string), title (string); the nearest is 'Texts'",
        ),
        (dict(n=[1] * 9), 'its columns are n (int64)'),
        (dict(text=[1] * 9), 'its columns are text (int64)'),
        (dict(text=pa.array([None] * 9, pa.string())), 'has 0 tokens'),
        (dict(text=pa.array([], pa.string())), 'has 0 tokens'),
    ],
)
def test_wrong_parquet(tmp_path, columns, says):
    pq.write_table(pa.table(columns), tmp_path / 'w.parquet')
    with pytest.raises(ValueError) as e:
        open_data(tmp_path / 'w.parquet')
    assert says in str(e.value)


@pytest.mark.parametrize('name', ['body', 'a.b', 'with space', 'ü'])
def test_the_only_column_of_strings_is_taken(tmp_path, name):
    pq.write_table(pa.table({'id': [1, 2], name: pa.array(['one', 'two'], pa.large_string())}), tmp_path / 'x.PARQUET')
    assert text(shown(tmp_path / 'x.PARQUET', 1)) == 'one\0tw'


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b'PAR1' * 10,
        lambda b: b[: len(b) // 2],
        lambda b: b'no parquet at all',
        lambda b: b[:4] + bytes(len(b) - 300) + b[-296:],
    ],
)
def test_damaged_parquet_is_named(tmp_path, damage):
    pq.write_table(
        pa.table(dict(text=[random.Random(i).randbytes(40).hex() for i in range(200)])), tmp_path / 'd.parquet'
    )
    (tmp_path / 'd.parquet').write_bytes(damage((tmp_path / 'd.parquet').read_bytes()))
    with pytest.raises(ValueError, match='d.parquet'):
        open_data(tmp_path / 'd.parquet')


@pytest.fixture
def bpe(tmp_path):
    "A tokenizer that carries truncation and padding, as many do"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(
        ['hello hello world wörld\n'] * 50,
        trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=['<pad>', '<|endoftext|>'],
            show_progress=False,
        ),
    )
    tok.enable_truncation(5)
    tok.enable_padding(length=9)
    tok.save(str(tmp_path / 'tok.json'))
    tok.no_truncation()
    tok.no_padding()
    return tok


def test_a_tokenizer_neither_cuts_nor_pads(tmp_path, bpe):
    (tmp_path / 't.txt').write_text('hello wörld and more\n' * 100, encoding='utf-8')
    ids = bpe.encode('hello wörld and more\n' * 100, add_special_tokens=False).ids
    train, held = open_data(tmp_path / 't.txt', seq=4, tokenizer=tmp_path / 'tok.json')
    assert list(train.tokens) == ids and train.tokens.dtype == np.uint16 and train.vocab == bpe.get_vocab_size()
    assert shown(tmp_path / 't.txt', 4, tokenizer=tmp_path / 'tok.json').tolist() == ids[: (len(ids) - 1) // 4 * 4]


def test_rows_are_joined_by_the_end_of_text(tmp_path, bpe):
    pq.write_table(pa.table(dict(text=['hello', None, 'world', 'x'])), tmp_path / 'r.parquet', row_group_size=2)
    train, _ = open_data(tmp_path / 'r.parquet', seq=1, holdout=0, tokenizer=str(tmp_path / 'tok.json'))
    end, parts = bpe.token_to_id('<|endoftext|>'), [bpe.encode(t).ids for t in ('hello', 'world', 'x')]
    assert list(train.tokens) == parts[0] + [end] + parts[1] + [end] + parts[2]


def test_a_text_longer_than_a_piece_is_encoded_as_a_whole_would_be(tmp_path, bpe):
    r = random.Random(0)
    s = ''.join(' '.join(r.choices(['hello', 'wörld', 'x', '漢'], k=r.randint(0, 9))) + '\r\n' for _ in range(150_000))
    (tmp_path / 't.txt').write_bytes(s.encode())
    assert len(s) > 2 * 2**20
    assert (
        open_data(tmp_path / 't.txt', tokenizer=tmp_path / 'tok.json')[0].tokens.tolist()
        == bpe.encode(s, add_special_tokens=False).ids
    )


def test_wrong_tokenizers(tmp_path, bpe):
    (tmp_path / 't.txt').write_text('hello ' * 100)
    pq.write_table(pa.table(dict(text=['a', 'b'])), tmp_path / 'r.parquet')
    (tmp_path / 'bad.json').write_text('{"model": ')
    (tmp_path / 'other.json').write_text('{"a": 1}')
    (tmp_path / 'none.json').touch()
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9 ' * 100)
    Tokenizer(models.WordLevel({'a': 0, '?': 1}, '?')).save(str(tmp_path / 'noend.json'))
    for source, tok, error, says in [
        ('t.txt', 'bad.json', ValueError, 'bad.json.* is not the JSON of a tokenizer'),
        ('t.txt', 'other.json', ValueError, 'other.json'),
        ('t.txt', 'none.json', ValueError, 'is empty'),
        ('t.txt', 'tokk.json', FileNotFoundError, "did you mean 'tok.json'"),
        ('t.txt', '', ValueError, 'is a folder'),
        ('r.parquet', 'noend.json', ValueError, 'no end-of-text'),
        ('latin.txt', 'tok.json', ValueError, 'latin.txt.* is not UTF-8'),
    ]:
        with pytest.raises(error, match=says):
            open_data(tmp_path / source, seq=2, tokenizer=f'{tmp_path}/{tok}')


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    Tokenizer(models.WordLevel({f'w{i}': i for i in range(70_000)} | {'?': 70_000}, '?')).save(
        str(tmp_path / 'big.json')
    )
    tok = Tokenizer.from_file(str(tmp_path / 'big.json'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.save(str(tmp_path / 'big.json'))
    (tmp_path / 't.txt').write_text('w69999 w1 ' * 10)
    train, _ = open_data(tmp_path / 't.txt', seq=2, tokenizer=tmp_path / 'big.json')
    assert train.tokens.dtype == np.uint32 and train.sample(0)[0].tolist() == [69999, 1] and train.vocab == 70_001


# ---- images ----


def picture(path, mode='RGB', size=(40, 30), seed=0):
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    im.save(path)
    return path


@pytest.fixture
def views(tmp_path):
    for i in range(12):
        picture(tmp_path / 'views' / ('b' if i % 3 else 'a') / f'{i:02}.jpg', seed=i)
    return tmp_path / 'views'


@pytest.mark.parametrize(
    'mode, suffix',
    [
        ('L', 'png'),
        ('L', 'jpg'),
        ('LA', 'png'),
        ('RGBA', 'png'),
        ('P', 'png'),
        ('P', 'gif'),
        ('CMYK', 'jpg'),
        ('1', 'png'),
        ('RGB', 'webp'),
        ('RGB', 'bmp'),
        ('RGB', 'JPEG'),
        ('YCbCr', 'tif'),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    picture(tmp_path / 'd' / 'c' / f'x.{suffix}', mode)
    x, y = open_data(tmp_path / 'd', holdout=0, size=16)[0].sample(0)
    assert (x.shape, x.dtype, y, x.isfinite().all().item(), x.is_contiguous()) == (
        (3, 16, 16),
        torch.float32,
        0,
        True,
        True,
    )
    assert -2.2 < x.min() < x.max() < 2.7


def test_a_palette_with_transparency_does_not_warn(tmp_path, recwarn):
    im = Image.new('P', (8, 8))
    im.putpalette([10, 20, 30] * 256)
    im.info['transparency'] = bytes(range(256))
    im.save(tmp_path / 'p.png', transparency=bytes(range(256)))
    assert read_image(tmp_path / 'p.png').getpixel((0, 0)) == (10, 20, 30) and not [
        w for w in recwarn if 'ransparency' in str(w.message)
    ]


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / 'deep.png')
    with pytest.raises(ValueError, match='deep.png.*more than 8 bits'):
        read_image(tmp_path / 'deep.png')


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:20],
        lambda b: b'',
        lambda b: b'not an image',
        lambda b: b'\xff\xd8\xff' + bytes(200),
    ],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_is_named_when_it_is_read(views, damage, workers):
    bad = views / 'b' / '04.jpg'
    bad.write_bytes(damage(bad.read_bytes()))
    train = open_data(views, holdout=0)[0]  # it is found
    assert len(train) == 12
    with pytest.raises(ValueError, match='04.jpg'):
        list(Feed(train, 12, 12, stop=1, workers=workers))


def test_a_bomb_is_named(views):
    import zlib, struct

    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    (views / 'a' / '00.png').write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )
    with pytest.raises(ValueError, match='00.png'):
        read_image(views / 'a' / '00.png')


@pytest.mark.timeout(400)
def test_what_is_no_image_is_passed_over(views):
    for name in ('.DS_Store', 'notes.txt', '._00.jpg', 'Thumbs.db', 'x.jpg.part'):
        (views / 'a' / name).write_bytes(b'x')
    os.mkfifo(views / 'a' / 'pipe.jpg')
    (views / 'a' / 'dir.jpg').mkdir()
    (views / 'a' / 'gone.jpg').symlink_to('nowhere')
    (views / 'a' / 'up').symlink_to('..')
    picture(views / 'a' / '.hidden' / 'y.jpg')
    (views / '.git').mkdir()
    (views / 'README.md').write_text('x')
    picture(views / 'a' / 'deeper' / 'z.jpg')
    train, _ = open_data(views, holdout=0)
    assert train.classes == ['a', 'b'] and len(train) == 13
    assert [p.name for p, c in train.items if c == 0] == ['00.jpg', '03.jpg', '06.jpg', '09.jpg', 'z.jpg']


def test_hostile_names_of_images(tmp_path):
    names = [
        'a b.jpg',
        '-rf.jpg',
        'new\nline.jpg',
        'ünï🙂.jpg',
        "q'\".jpg",
        b'\xff.jpg'.decode('utf-8', 'surrogateescape'),
    ]
    for c in ('-class', 'two\nlines'):
        for n in names:
            picture(tmp_path / 'd' / c / n)
    train, held = open_data(tmp_path / 'd', holdout=0.25)
    assert len(train) + len(held) == 12 and train.classes == ['-class', 'two\nlines']
    assert len(list(Feed(train, 9, 3, stop=2, workers=1))) == 2
    (tmp_path / 'd' / '-class' / names[2]).write_bytes(b'x')
    with pytest.raises(ValueError, match=r'new\\nline'):
        [d.sample(i) for d in (train, held) for i in range(len(d))]


def test_folders_without_images(tmp_path):
    (tmp_path / 'd' / 'a').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images in subfolders of'):
        open_data(tmp_path / 'd')
    picture(tmp_path / 'd' / 'loose.jpg')
    with pytest.raises(ValueError, match='expected one subfolder a class'):
        open_data(tmp_path / 'd')
    picture(tmp_path / 'd' / 'b' / 'x.jpg')
    with pytest.raises(ValueError, match="no images in the class folder 'a'"):
        open_data(tmp_path / 'd')
    (tmp_path / 'd' / 'a').rmdir()
    with pytest.raises(ValueError, match='has 1 samples, too few'):
        open_data(tmp_path / 'd')
    with pytest.raises(ValueError, match='a tokenizer is for'):
        open_data(tmp_path / 'd', tokenizer='t.json')


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_images_of_any_size_are_cut(w, h, size, seed, epoch):
    data = Images('x', [(0, 3)], ['c'] * 4, size, seed, read=lambda _: Image.new('RGB', (w, h), (124, 116, 104)))
    x, y = data.sample(0, epoch)
    assert (
        x.shape == (3, size, size) and y == 3 and x.abs().max() < 0.02
    )  # about ImageNet's mean, so about zero everywhere


def test_the_holdout_is_random_fixed_and_apart(views):
    parts = [[{p.name for p, _ in d.items} for d in open_data(views, holdout=0.5, seed=s)] for s in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    for train, held in parts:
        assert not train & held and len(train | held) == 12


def test_evaluation_images_stand_still(views):
    train, held = open_data(views, holdout=0.5)
    assert torch.equal(held.sample(1, 0)[0], held.sample(1, 9)[0])
    assert len({x.numpy().tobytes() for e in range(5) for x in [train.sample(1, e)[0]]}) == 5


def digest(data, keys):
    return hashlib.sha256(b''.join(data[k][0].numpy().tobytes() for k in keys)).hexdigest()


def test_augmentation_is_the_same_in_every_process_and_order(views):
    keys = [(e, i) for e in range(3) for i in range(10)]
    train = open_data(views, seed=3)[0]
    want = digest(train, keys)
    [train[k] for k in reversed(keys)]
    np.random.rand(5)
    torch.rand(5)
    assert digest(train, keys) == want
    code = f'''import hashlib, random
random.seed(1)
from fsdl_tools.training.data import *
d = open_data({str(views)!r}, seed=3)[0]
print(hashlib.sha256(b"".join(d[e, i][0].numpy().tobytes() for e in range(3) for i in range(10))).hexdigest())'''
    for seed in '1', '2':
        assert (
            subprocess.run(
                [sys.executable, '-c', code],
                capture_output=True,
                text=True,
                timeout=120,
                env=os.environ | dict(PYTHONHASHSEED=seed),
            ).stdout.strip()
            == want
        )
    assert on_ranks(digest, 2, train, keys) == [want] * 2


# ---- synthetic ----


def test_synthetic_tokens_follow_the_rule():
    train, held = open_data('synthetic', seq=32)
    steps = torch.cat([(y - x) % 256 for d in (train, held) for i in range(len(d)) for x, y in [d.sample(i)]])
    assert 0.94 < (steps == 3).float().mean() < 0.96
    again, other = open_data('synthetic:tokens', seq=32)[0], open_data('synthetic', seq=32, seed=1)[0]
    assert np.array_equal(train.tokens, again.tokens) and not np.array_equal(train.tokens, other.tokens)


def test_synthetic_images_can_be_told_apart():
    train, held = open_data('synthetic:images', size=16)
    assert (len(train) + len(held), train.classes, held.augment) == (
        1024,
        ['checks', 'horizontal', 'rings', 'vertical'],
        False,
    )

    def features(d):
        "How much neighbours differ along each axis"
        x = torch.stack([d.sample(i)[0] for i in range(len(d))])
        y = torch.tensor([d.sample(i)[1] for i in range(len(d))])
        return torch.stack([x.diff(dim=a).abs().mean((1, 2, 3)) for a in (2, 3)], 1) / x.std((1, 2, 3))[:, None], y

    f, y = features(held)
    assert (f[y == 1][:, 0] > f[y == 1][:, 1]).all() and (f[y == 3][:, 1] > f[y == 3][:, 0]).all()


# ---- the feed ----


@settings(max_examples=15)
@given(runs(), st.integers(0, 10), st.integers(0, 4))
def test_a_feed_yields_what_the_indices_say(run, start, length):
    n, batch, ways = run
    data = Tokens('x', np.arange(n + 1, dtype=np.uint16), 1, n + 1)  # the input is the number of the sample
    for ranks, micro in ways:
        for r in range(ranks):
            got = [
                [x[:, 0].tolist() for x, y in step]
                for step in Feed(data, batch, micro, r, ranks, start, start + length, seed=5)
            ]
            assert got == [
                [[i for _, i in b] for b in rank_indices(n, s, batch, r, ranks, micro, 5)]
                for s in range(start, start + length)
            ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize('kind', ['tokens', 'images'])
def test_workers_change_nothing(kind, views):
    train = open_data('synthetic' if kind == 'tokens' else views)[0]
    batch = 8 if kind == 'tokens' else 4
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(Feed(train, batch, 2, 1, 2, 3, 12, seed=1))
    for workers in (1, 2):
        assert same(alone, Feed(train, batch, 2, 1, 2, 3, 12, seed=1, workers=workers))
    assert torch.equal(before, torch.get_rng_state())  # dropout after it does not depend on workers
    assert same(alone[4:], Feed(train, batch, 2, 1, 2, 7, 12, seed=1, workers=2))


def test_a_feed_has_no_end_unless_it_is_told():
    from itertools import islice

    train = Tokens('x', np.arange(9, dtype=np.uint8), 1, 9)
    assert len(list(islice(Feed(train, 4, 2), 7))) == 7
    assert len(list(islice(Feed(train, 4, 2, workers=1), 7))) == 7
    assert list(Feed(train, 4, 2, start=3, stop=3)) == [] and list(Feed(train, 4, 2, start=3, stop=3, workers=1)) == []
    feed = Feed(train, 4, 2, stop=4)
    assert same(feed, feed) and feed.per_epoch == 2  # may be iterated again


def test_impossible_feeds_are_refused():
    train = open_data('synthetic')[0]
    for kw, says in [
        (dict(global_batch=9), 'cannot be divided'),
        (dict(rank=2), 'rank must be'),
        (dict(start=-1), 'start must be'),
        (dict(start=5, stop=4), 'stop=4 is before start=5'),
        (dict(workers=-1), 'workers'),
        (dict(global_batch=10_000), 'do not fill'),
        (dict(stop=2.5), 'stop must be'),
        (dict(seed=-4), 'seed must be'),
    ]:
        with pytest.raises((ValueError, TypeError), match=says):
            Feed(train, **dict(global_batch=8, micro_batch=2, ranks=2) | kw)
    with pytest.raises(ValueError, match='n must be positive'):
        Feed(open_data('synthetic', holdout=0)[1], 2, 2)


class Slow(Tokens):
    def sample(self, i, epoch=0):
        time.sleep(0.01)
        return super().sample(i, epoch)


@pytest.mark.timeout(400)
def test_a_killed_worker_is_an_error_and_not_a_wait():
    before = set(psutil.Process().children())
    feed = iter(Feed(Slow('x', np.arange(1001, dtype=np.uint16), 1, 1001), 8, 8, workers=2))
    next(feed)
    for p in set(psutil.Process().children()) - before:
        p.kill()
    with pytest.raises(RuntimeError, match='worker'):
        for _ in range(200):
            next(feed)


@pytest.mark.timeout(400)
def test_a_feed_that_is_left_leaves_no_process():
    before = set(psutil.Process().children())
    feed = iter(Feed(open_data('synthetic')[0], 8, 8, workers=2))
    next(feed)
    mine = set(psutil.Process().children()) - before
    assert len(mine) >= 2
    feed.close()
    del feed
    gc.collect()
    assert not psutil.wait_procs(mine, timeout=150)[1]


def _train(folder, start, stop, die_at, workers):
    "A run that notes what it reads and keeps its place; killed in the middle of a step if so told"
    r, n = dist.get_rank(), dist.get_world_size()
    feed = Feed(open_data(f'{folder}/t', seq=12, holdout=0)[0], 12, 1, r, n, start, stop, workers=workers)
    for step, batches in enumerate(feed, start):
        if step == die_at and r == n - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(f'{folder}/log.{step}.{n}.{r}', 'w') as f:
            json.dump([int(text(x[0]).split()[1]) for x, _ in batches], f)
        dist.barrier()
        if r == 0:
            with open(f'{folder}/place', 'w') as f:
                f.write(str(step + 1))


@pytest.mark.timeout(900)
@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_killed_three_times_reads_what_an_uninterrupted_one_reads(tmp_path, workers):
    (tmp_path / 't').write_text(''.join(f'sample {i:04}\n' for i in range(50)) + 's')
    final = {}
    for ranks, die_at in ((2, 3), (3, 5), (1, 9), (4, None)):
        start = int((tmp_path / 'place').read_text()) if (tmp_path / 'place').exists() else 0
        try:
            on_ranks(_train, ranks, str(tmp_path), start, 14, die_at, workers, timeout=200)
        except RankError as e:
            assert die_at is not None and 'SIGKILL' in str(e)
        else:
            assert die_at is None
        done = int((tmp_path / 'place').read_text())
        assert done == (14 if die_at is None else die_at)
        for s in range(start, done):
            final[s] = sorted(
                i for r in range(ranks) for i in json.loads((tmp_path / f'log.{s}.{ranks}.{r}').read_text())
            )
    assert final == {s: sorted(i for _, i in step_indices(50, s, 12)) for s in range(14)}
    for epoch in range(3):
        assert max(Counter(i for s in range(4 * epoch, 4 * epoch + 4) for i in final[s]).values()) == 1


# ---- evaluation ----


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7), st.none() | st.integers(0, 70))
def test_evaluation_sees_every_sample_once(n, ranks, micro, limit):
    data = Tokens('x', np.arange(n + 1, dtype=np.uint8), 1, n + 1)
    parts = [eval_batches(data, micro, r, ranks, limit) for r in range(ranks)]
    want = n if limit is None else min(n, limit)
    assert {len(p) for p in parts} == {-(-want // (ranks * micro))}
    assert all(
        x.shape == y.shape == (micro, 1) and w.shape == (micro,) and set(w.tolist()) <= {0.0, 1.0}
        for p in parts
        for x, y, w in p
    )
    seen = sorted(int(v) for p in parts for x, _, w in p for v, k in zip(x[:, 0], w) if k)
    assert seen == [i * n // want for i in range(want)]  # all of them, or some that lie evenly over the data


def test_evaluation_of_images_and_of_nothing(views):
    held = open_data(views, holdout=0.4)[1]
    ((x, y, w),) = eval_batches(held, 8)
    assert (x.shape, y.dtype, w.sum().item()) == ((8, 3, 32, 32), torch.int64, len(held)) and torch.equal(
        x[0], held.sample(0)[0]
    )
    assert eval_batches(open_data('synthetic', holdout=0)[1], 4, 1, 2) == []
    for kw in (dict(micro_batch=0), dict(rank=2), dict(limit=-1)):
        with pytest.raises(ValueError):
            eval_batches(held, **dict(micro_batch=2, rank=0, ranks=2) | kw)
