"Where something is done in parts, or done again: texts of one letter in pieces, norms under recomputation"

import numpy as np
import pytest

torch = pytest.importorskip('torch')
tokenizers = pytest.importorskip('tokenizers')
import torch.nn.functional as F
from fsdl_tools.training.corpora import _encoded
from fsdl_tools.training.speedups import DigitNet

torch.set_num_threads(1)


def doubling(*merges):
    "A tokenizer that joins equal letters"
    joined = [a + b for a, b in merges]
    return tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(['a', 'b', *joined])}, merges=list(merges))
    )


@pytest.mark.parametrize(
    'merges', [[('a', 'a')], [('a', 'a'), ('aa', 'a')], [('a', 'a'), ('aa', 'aa')]], ids=['2', '3', '4']
)
@pytest.mark.parametrize('size', [256, 257, 258, 259])
@pytest.mark.parametrize('context', [61, 64])
def test_a_run_of_one_letter_has_no_seam(merges, size, context):
    "However pieces and tokens fall together, no letter is lost and none is there twice"
    tok, text = doubling(*merges), 'a' * 1500 + 'b' + 'a' * 1501
    got = np.concatenate(list(_encoded(iter([text[i : i + size] for i in range(0, len(text), size)]), tok, context)))
    assert got.tolist() == tok.encode(text, add_special_tokens=False).ids


def test_a_word_longer_than_what_is_looked_at_is_one_token():
    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel({'ab': 0, '[UNK]': 1}, unk_token='[UNK]'))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    text = ('x' * 1500 + ' ') * 5 + 'ab'
    got = np.concatenate(list(_encoded(iter([text[i : i + 1000] for i in range(0, len(text), 1000)]), tok, 100)))
    assert got.tolist() == [1] * 5 + [0]


def test_recomputed_norms_count_a_batch_once():
    def statistics(recompute):
        torch.manual_seed(0)
        m, x = DigitNet(recompute=recompute).train(), torch.randn(8, 1, 16, 16)
        for _ in range(2):
            F.cross_entropy(m(x), torch.zeros(8, dtype=torch.long)).backward()
        return dict(m.named_buffers()), {n: p.grad for n, p in m.named_parameters()}

    for plain, again in zip(statistics(False), statistics(True), strict=True):
        assert plain and all(torch.equal(again[k], v) for k, v in plain.items())
