"""What people bring: models and data sets of their own, folders, photographs, tokenizers, packed files; and sums
that must not be means of means.
"""

import bz2, gzip, lzma, os, random, sys, zipfile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from fsdl_tools.parallel.model import Parallel, _recompute
from fsdl_tools.parallel.ranks import RankError, on_ranks
from fsdl_tools.models.architectures import is_factory, load_factory
from fsdl_tools.training.custom import Own, factory_name
from fsdl_tools.training.data import Feed, open_data
from fsdl_tools.training.corpora import _as_text, _encoded, read_image
from fsdl_tools.training.elastic import train
from fsdl_tools.training.trainer import fit
from fsdl_tools.training.config import TrainConfig, check_config

MODULE = '''
import random
import numpy as np
import torch
from torch import nn

class Points(torch.utils.data.Dataset):
    classes = ['left', 'right', 'top']
    def __init__(self, n=96, noisy=False): self.n, self.noisy = n, noisy
    def __len__(self): return self.n
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(4, generator=g)
        if self.noisy: x = x + torch.randn(4) + random.random() + np.random.rand()
        return x, int(x[:3].argmax())

class Loader:
    def __iter__(self): yield 1

def points(): return Points()
def noisy(seed): return Points(noisy=True)
def pair(size): return Points(64), Points(16)
def no_second(): return Points(), None
def forgetful(): Points()
def stream(): return Loader()
def regression(): return [(torch.zeros(3), 1.5)] * 8
def triples(): return [(1, 2, 3)] * 8
def words(seq): return [(torch.arange(seq) % 7, (torch.arange(seq) + 1) % 7)] * 40
def pictures(size):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(3, size, size, generator=g), i % 2) for i in range(20)]
def greedy(data, colour): return Points()
def net(data, config):
    torch.manual_seed(config.seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, len(data.classes)))
def normed(): return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
def dictionary():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.f = nn.Linear(4, 3)
        def forward(self, x): return dict(logits=self.f(x), hidden=x)
    return Net()
def scalar():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.f = nn.Linear(4, 3)
        def forward(self, x): return self.f(x).sum()
    return Net()
def nothing(): return 3
class factories:
    @staticmethod
    def net(): return nn.Linear(4, 3)
number = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A module in the working folder"
    (tmp_path / 'brought_here.py').write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    sys.modules.pop('brought_here', None)
    yield tmp_path
    sys.modules.pop('brought_here', None)


def run(**kw):
    return TrainConfig(
        **dict(model='brought_here:net', data='brought_here:points', steps=6, global_batch=12, lr=0.02) | kw
    )


def losses(rows):
    return [r['loss'] for r in rows]


def apart(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


# ---- own models and data ----


def test_an_own_model_on_own_data_in_any_layout(mine):
    alone = fit(run())
    assert alone[-1]['loss'] < alone[0]['loss'] and alone[-1]['eval_loss'] is not None and alone[0]['mfu'] > 0
    for layout in ('dp2', 'dp2,zero=3', 'dp2,micro_batch=2', 'dp3,zero=1'):
        found = on_ranks(fit, int(layout[2]), run(layout=layout), timeout=200)[0]
        assert apart(losses(found), losses(alone)) < 1e-5, layout
    for model in ('normed', 'dictionary', 'factories.net'):
        two = on_ranks(fit, 2, run(model=f'brought_here:{model}', layout='dp2,zero=2', seed=1), timeout=200)[0]
        assert apart(losses(two), losses(fit(run(model=f'brought_here:{model}', seed=1)))) < 1e-5, model


def test_functions_are_named_and_records_say_so(mine):
    net, points = load_factory('brought_here:net'), load_factory('brought_here:points')
    c = TrainConfig(net, data=points, steps=2, global_batch=12, lr=0.02, folder=str(mine / 'run'))
    assert (c.model, c.data) == ('brought_here:net', 'brought_here:points') and TrainConfig.from_json(c.to_json()) == c
    rows = fit(c.replace(save_every=1))
    assert '"brought_here:net"' in (mine / 'run' / 'run.json').read_text()
    assert losses(fit(c.replace(resume=True, steps=4, save_every=1, lr_schedule='constant')))[:2] == losses(rows)
    with pytest.raises(ValueError, match='cannot be resumed with another'):
        fit(c.replace(resume=True, steps=5, data='brought_here:noisy'))


@pytest.mark.timeout(400)
def test_torchrun_finds_it_in_the_working_folder(mine):
    assert (
        apart(losses(train(run(layout='dp2', steps=2), timeout=150, log=mine / 'log')), losses(fit(run(steps=2))))
        < 1e-5
    )


def test_random_data_repeats_whatever_reads_it(mine):
    train_on, held = open_data('brought_here:noisy', seed=3)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    a = train_on.sample(5, epoch=2)
    random.seed()
    np.random.seed()
    torch.manual_seed(9)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    b = train_on.sample(5, epoch=2)
    assert (
        torch.equal(a[0], b[0])
        and not torch.equal(a[0], train_on.sample(5, epoch=3)[0])
        and not torch.equal(a[0], open_data('brought_here:noisy', seed=4)[0].sample(5, 2)[0])
    )
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2] and torch.equal(
        torch.get_rng_state(), state[2]
    )
    assert len(train_on) == 86 and len(held) == 10 and not set(train_on.which) & set(held.which)
    here, there = (list(Feed(train_on, 12, 4, start=3, stop=5, workers=w)) for w in (0, 2))
    assert all(torch.equal(p, q) for s, t in zip(here, there) for x, y in zip(s, t) for p, q in zip(x, y))


def test_what_a_function_returns_is_looked_at(mine):
    a, b = open_data('brought_here:pair', size=8)
    assert (len(a), len(b), a.kind, a.classes) == (64, 16, 'samples', ['left', 'right', 'top'])
    assert (
        open_data('brought_here:words', seq=9)[0].kind == 'tokens'
        and open_data('brought_here:pictures', size=8)[0].kind == 'images'
    )
    split, alone = (
        open_data('brought_here:points'),
        open_data('brought_here:no_second'),
    )  # nothing to evaluate on: a part is held out
    assert [(len(d), d.content()) for d in split] == [(len(d), d.content()) for d in alone]
    for data, error, says in (
        ('forgetful', ValueError, 'returned a NoneType: expected a data set with a length'),
        ('stream', ValueError, 'returned a Loader: expected a data set with a length'),
        ('regression', ValueError, 'targets must be whole numbers'),
        ('triples', ValueError, r'item \d is a tuple, not a pair'),
        ('greedy', TypeError, 'needs data, colour; what it can have by name'),
        ('point', ValueError, "did you mean 'Points'"),
        ('number', ValueError, 'is no function but a int'),
    ):
        with pytest.raises(error, match=says):
            open_data(f'brought_here:{data}')
    with pytest.raises(ValueError, match="no module 'brought_there'"):
        open_data('brought_there:points')
    for c, says in (
        (run(model='brought_here:nothing'), 'returned a int, not a torch.nn.Module'),
        (run(model='brought_here:scalar'), r'expected scores \(batch, …, classes\)'),
        (run(model='gpt-tiny', data='brought_here:words'), 'a field vocab'),
        (run(model='gpt-tiny'), 'is trained on tokens'),
        (run(layout='tp2'), 'do not fill'),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            fit(c)


def test_what_names_code_and_what_does_not(mine):
    assert (
        is_factory('a.b:c')
        and is_factory(len)
        and not any(map(is_factory, ('synthetic:images', 'book.txt', 'a/b:c', 'C:\\x', 'gpt-tiny', '', 'http://x')))
    )
    (mine / 'a:b').write_text('a file may be called that ' * 10)
    assert not is_factory('a:b') and open_data('a:b', seq=4)[0].kind == 'tokens'

    def local():
        pass

    for f in (local, lambda: 0, Own('x', [(torch.zeros(1), 0)]).sample):
        with pytest.raises(ValueError, match='cannot be imported by other processes'):
            factory_name(f)
    (mine / 'broken_here.py').write_text('import not_installed_at_all')
    with pytest.raises(ModuleNotFoundError, match='not_installed_at_all'):
        load_factory('broken_here:f')


# ---- sums, not means of means ----


def masked_batches(counts, seed=0, seq=6):
    "Micro-batches of tokens of which so many targets count"
    g = torch.Generator().manual_seed(seed)
    for n in counts:
        x, y = (torch.randint(0, 20, (2, seq), generator=g) for _ in range(2))
        y.view(-1)[torch.randperm(2 * seq, generator=g)[n:]] = -100
        yield x, y


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, x):
        return self.head(self.emb(x))


def one_step(layout, counts):
    "Loss and gradients of a step whose micro-batches have so many targets that count; all replicas' together in counts"
    run = Parallel(Tiny(), layout + ',precision=fp32', len(counts) // (2 if 'dp2' in layout else 1))
    batches = list(masked_batches(counts))
    mine = batches[run.at['dp'] :: 2] if 'dp2' in layout else batches
    loss = run.step(mine).item()
    grads = [getattr(p.grad, 'full_tensor', lambda p=p: p.grad)() for p in run.parameters()]
    return loss, [g.tolist() for g in grads], run.evaluate(mine)


@settings(max_examples=6)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=6).filter(lambda c: sum(c) and len(c) % 2 == 0))
def test_every_target_counts_as_much_wherever_it_is(counts):
    model = Tiny()
    x, y = (torch.cat(t) for t in zip(*masked_batches(counts)))
    want = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    want.backward()
    for layout in ('dp1', 'dp2', 'dp2,zero=2'):
        found = [one_step(layout, counts)] if layout == 'dp1' else on_ranks(one_step, 2, layout, counts)
        for loss, grads, (mean, n) in found:
            assert abs(loss - want.item()) < 1e-5 and abs(mean - want.item()) < 1e-5 and n == sum(counts), layout
            for g, p in zip(grads, model.parameters()):
                torch.testing.assert_close(torch.tensor(g), p.grad, rtol=1e-4, atol=1e-6)


def test_a_step_in_which_nothing_counts_changes_nothing():
    loss, grads, (mean, n) = one_step('dp1', [0, 0])
    assert loss == 0 and n == 0 and not any(torch.tensor(g).any() for g in grads)


# ---- recomputation ----


class Checkpointed(nn.Module):
    "A block as timm and transformers recompute it"

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.reentrant, self.on = (
            nn.Linear(4, 4),
            nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
            reentrant,
            False,
        )
        self.register_buffer('untouched', torch.ones(2))

    def set_grad_checkpointing(self):
        self.on = True

    def forward(self, x):
        h = self.first(x)
        return (
            torch.utils.checkpoint.checkpoint(self.block, h, use_reentrant=self.reentrant) if self.on else self.block(h)
        )


@pytest.mark.parametrize('reentrant', [True, False])
def test_recomputation_counts_a_batch_once(reentrant):
    plain, again = Checkpointed(reentrant), Checkpointed(reentrant)
    _recompute(again, 'full')
    buffers = {n: id(b) for n, b in again.named_buffers()}
    for s in range(3):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(s))
        for m in (plain, again):
            m(x).square().sum().backward()
    assert again.on and again.block[1].num_batches_tracked == 3
    for (n, a), b in zip(plain.named_buffers(), again.buffers()):
        assert torch.equal(a, b), n
    for a, b in zip(plain.parameters(), again.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    assert {n: id(b) for n, b in again.named_buffers()} == buffers  # the same tensors, not copies
    again.eval()
    again(torch.ones(8, 4)).sum().backward()
    assert again.block[1].num_batches_tracked == 3


def test_recomputation_in_the_trainer(tmp_path):
    config = TrainConfig('test_resnet', data='synthetic:images', image_size=32, global_batch=8, steps=3, lr=1e-3)
    plain, again = fit(config), fit(config.replace(layout='dp1,recompute=full'))
    assert apart(losses(again), losses(plain)) < 1e-5 and abs(again[-1]['eval_loss'] - plain[-1]['eval_loss']) < 1e-4


# ---- tokens ----


def tokenizers_of_all_kinds():
    lines = [
        'the quick brown fox jumps over the lazy dog',
        ' it  has   spaces',
        'wörld 漢字 and 😀 signs',
        'x' * 30,
        '\t tabs\r',
    ]
    train = lambda tok, kind, **kw: tok.train_from_iterator(lines * 20, kind(vocab_size=400, show_progress=False, **kw))
    bytes_, metaspace, whole, piece, uni = (
        Tokenizer(m)
        for m in (
            models.BPE(),
            models.BPE(unk_token='?'),
            models.BPE(unk_token='?'),
            models.WordPiece(unk_token='[UNK]'),
            models.Unigram(),
        )
    )
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    train(bytes_, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
    train(metaspace, trainers.BpeTrainer, special_tokens=['?'])
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )  # as Llama 2: no words at all
    whole.pre_tokenizer = pre_tokenizers.Split('\n', 'isolated')
    train(whole, trainers.BpeTrainer, special_tokens=['?'])
    whole.pre_tokenizer = pre_tokenizers.Sequence([])
    piece.normalizer, piece.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    train(piece, trainers.WordPieceTrainer, special_tokens=['[UNK]'])
    uni.normalizer, uni.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    train(uni, trainers.UnigramTrainer, special_tokens=['<unk>'], unk_token='<unk>')
    return dict(bytes=bytes_, metaspace=metaspace, whole=whole, wordpiece=piece, unigram=uni)


KINDS = tokenizers_of_all_kinds()


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(
            ['the quick ', 'fox', ' ', '  ', '\n', '\n\n', '\r\n', 'wörld', '漢', '😀', 'x', 'dog.\n', '\t', ',']
        ),
        max_size=200,
    ).map("".join),
    st.integers(64, 200),
)
def test_pieces_have_the_tokens_of_the_whole(kind, text, size):
    tok = KINDS[kind]
    pieces = iter([text[i : i + size] for i in range(0, len(text), size)])
    got = [i for part in _encoded(pieces, tok, context=64) for i in part.tolist()]
    assert got == tok.encode(text, add_special_tokens=False).ids


def test_no_space_before_a_piece_of_a_file(tmp_path, monkeypatch):
    tok = KINDS['whole']
    tok.save(str(tmp_path / 't.json'))
    text = 'the quick brown fox jumps over the lazy dog\n' * 60_000
    (tmp_path / 't.txt').write_text(text)
    assert len(text) > 2 * 2**20
    assert (
        open_data(tmp_path / 't.txt', tokenizer=tmp_path / 't.json', holdout=0)[0].tokens.tolist()
        == tok.encode(text, add_special_tokens=False).ids
    )


# ---- files ----


def packed(path, data):
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('a', data)


@pytest.mark.parametrize(
    'name, write, says',
    [
        ('t.txt.gz', lambda p, d: p.write_bytes(gzip.compress(d)), 'gzip: gunzip it'),
        ('t.txt', lambda p, d: p.write_bytes(gzip.compress(d)), 'gzip'),
        ('t.bz2', lambda p, d: p.write_bytes(bz2.compress(d)), 'bzip2'),
        ('t.xz', lambda p, d: p.write_bytes(lzma.compress(d)), 'xz'),
        ('t.zip', packed, 'zip archive: unzip'),
        ('t.zst', lambda p, d: p.write_bytes(b'\x28\xb5\x2f\xfd' + d), 'Zstandard'),
        ('t.txt', lambda p, d: pq.write_table(pa.table(dict(text=['a'])), p), 'Parquet: rename it'),
    ],
)
def test_packed_files_are_named(tmp_path, name, write, says):
    write(tmp_path / name, b'some text ' * 100)
    KINDS['bytes'].save(str(tmp_path / 't.json'))
    for tok in (None, tmp_path / 't.json'):
        with pytest.raises(ValueError, match=says):
            open_data(tmp_path / name, tokenizer=tok)


def test_other_encodings_are_named_where_they_matter(tmp_path):
    KINDS['bytes'].save(str(tmp_path / 't.json'))
    for data, says in (
        ('café '.encode('latin-1') * 99, 'Latin-1.*iconv -f WINDOWS-1252'),
        ('café '.encode('utf-16') * 99, 'UTF-16.*iconv -f UTF-16'),
    ):
        (tmp_path / 't.txt').write_bytes(data)
        assert open_data(tmp_path / 't.txt')[0].vocab == 256  # bytes are bytes
        with pytest.raises(ValueError, match=says):
            open_data(tmp_path / 't.txt', tokenizer=tmp_path / 't.json')
    (tmp_path / 't.txt').write_bytes('\ufeffthe quick fox'.encode() * 1 + b' dog' * 40)
    assert (
        open_data(tmp_path / 't.txt', tokenizer=tmp_path / 't.json', holdout=0, seq=2)[0].tokens.tolist()
        == KINDS['bytes'].encode('the quick fox' + ' dog' * 40, add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    'kind',
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
)
def test_columns_of_text_of_all_types(tmp_path, kind):
    column = (
        pa.array(['one', None, 'two'] * 20, pa.string()).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(['one', None, 'two'] * 20).dictionary_encode().cast(kind)
    )
    pq.write_table(pa.table(dict(n=range(60), text=column)), tmp_path / 't.parquet', row_group_size=25)
    got = open_data(tmp_path / 't.parquet', holdout=0, seq=4)[0].tokens
    assert bytes(got).decode() == '\0'.join(['one', 'two'] * 20)


# ---- folders and photographs ----


def picture(path, seed=0, size=(12, 8), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path, **kw)


def fill(top, tree):
    for folder, n in tree.items():
        for i in range(n):
            picture(top / folder / f'{i}.png', i)


@pytest.mark.parametrize(
    'first, held', [('train', 'val'), ('training', 'validation'), ('Train', 'Test'), ('train', 'valid')]
)
def test_folders_that_are_splits(tmp_path, first, held):
    fill(tmp_path, {f'{first}/cat': 3, f'{first}/dog': 4, f'{held}/dog': 2})
    train_on, other = open_data(tmp_path, size=8)
    assert (train_on.classes, len(train_on), len(other), train_on.augment, other.augment) == (
        ['cat', 'dog'],
        7,
        2,
        True,
        False,
    )
    assert {other.sample(i)[1] for i in range(2)} == {1}  # numbered as in the folder to train on
    assert all(f'/{first}/' in str(p) for p, _ in train_on.items) and all(f'/{held}/' in str(p) for p, _ in other.items)


def test_splits_and_what_only_looks_like_them(tmp_path):
    fill(tmp_path / 'a', {'train/cat': 6, 'val/cat': 2, 'test/cat': 9})
    assert list(map(len, open_data(tmp_path / 'a', size=8))) == [6, 2]  # the test set is left alone
    fill(tmp_path / 'b', {'train/cat': 10})
    assert list(map(len, open_data(tmp_path / 'b', size=8))) == [9, 1]
    fill(tmp_path / 'c', {'train': 3, 'plane': 3, 'boat': 3})  # vehicles
    assert open_data(tmp_path / 'c', size=8)[0].classes == ['boat', 'plane', 'train']
    fill(tmp_path / 'd', {'train': 3, 'test': 3})  # pictures in the folders themselves
    with pytest.raises(ValueError, match='test, train, are named like splits, not like classes'):
        open_data(tmp_path / 'd', size=8)
    fill(tmp_path / 'e', {'train/cat': 6, 'val/cow': 2})
    with pytest.raises(ValueError, match="class in .*val.*cow"):
        open_data(tmp_path / 'e', size=8)


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / 'far', {'cats/more': 3, 'dogs': 2})
    (tmp_path / 'near').mkdir()
    (tmp_path / 'near' / 'cat').symlink_to(tmp_path / 'far' / 'cats')
    (tmp_path / 'near' / 'dog').mkdir()
    (tmp_path / 'near' / 'dog' / 'deep').symlink_to(tmp_path / 'far' / 'dogs')
    (tmp_path / 'near' / 'dog' / 'loop').symlink_to(tmp_path / 'near' / 'dog')
    (tmp_path / 'near' / 'dog' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    data, _ = open_data(tmp_path / 'near', size=8, holdout=0)
    assert [c for _, c in data.items] == [0, 0, 0, 1, 1]


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    upright = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3))
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for n, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = n
        (upright.transpose(turn) if turn is not None else upright).save(tmp_path / f'{n}.png', exif=exif)
        assert np.array_equal(read_image(tmp_path / f'{n}.png'), upright), n


@pytest.mark.parametrize(
    'layout',
    ['dp2,precision=bf16', 'dp2,precision=amp_bf16', 'dp2,zero=2,precision=bf16', 'dp2,zero=3,precision=amp_bf16'],
)
def test_batch_norm_in_low_precision_over_ranks(mine, layout):
    c = run(model='brought_here:normed', steps=4)
    low, full = on_ranks(fit, 2, c.replace(layout=layout), timeout=200)[0], fit(c)
    assert apart(losses(low), losses(full)) < 0.05 and low[-1]['loss'] < low[0]['loss']
