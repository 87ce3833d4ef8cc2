"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
import pytest

from fsdl_tools.core import fix_torchvision
from fsdl_tools.models import architectures, zoo

fix_torchvision()
from transformers import LlamaConfig    # noqa: E402


def test_licences_of_an_architecture_are_a_list_of_words():
    assert [zoo._licences(dict(licences=x)) for x in ('mit apache-2.0', 'mit', '', None)] == [['mit', 'apache-2.0'], ['mit'], [], []]


@pytest.mark.parametrize('hidden, heads', [(64, 4), (96, 8), (112, 7)])
def test_heads_that_were_left_open_divide_the_hidden_size(hidden, heads):
    config = LlamaConfig(hidden_size=hidden, num_attention_heads=heads)
    config.head_dim, config.num_key_value_heads = None, None
    architectures._fill(config)
    assert (config.head_dim, config.num_key_value_heads) == (hidden//heads, heads)
