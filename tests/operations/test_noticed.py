"What a change of one sign or number would break without any other test seeing it (benchmarks/mutation.py)"
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsdl_tools.operations import tracking_read
from fsdl_tools.operations.sinks import JsonLines
from fsdl_tools.operations.wandb_files import pieces


def record(content, kind=1, claims=None):
    crc = zlib.crc32(bytes([kind]) + content)
    return struct.pack('<IHB', crc, len(content) if claims is None else claims, kind) + content


@pytest.mark.parametrize('claims, word', [(40, None), (41, 'where the file has 40'), (400, 'where the file has 40'), (32768, 'where its block has')])
def test_a_piece_that_claims_more_than_the_file_has_is_named(claims, word):
    b, said = b'\0'*7 + record(b'a'*9) + record(b'b'*40, claims=claims), []
    got = list(pieces(b, said.append))
    assert [content for _, content in got] == [b'a'*9] + [b'b'*40]*(word is None) and (not said if word is None else word in said[0])


@pytest.mark.parametrize('step, whole, noted', [(3, 3, 0), (3., 3, 0), (3.7, 3, 1), (float('nan'), 0, 1), (float('inf'), 0, 1), ('4', 0, 1)])
def test_steps_are_whole_numbers(step, whole, noted, tmp_path):
    sink = JsonLines(tmp_path, {}, {}, {})
    assert sink.whole(step) == whole and sink.lost['decimal steps were rounded down'] == noted



def test_what_a_comet_run_says_of_itself():
    about = tracking_read._comet_about(SimpleNamespace(path=Path('x/run.zip')), dict(project_name='digits', start_time=2000, stop_time=5000))
    assert about == dict(id='run', project='digits', started=2., ended=5., status='finished')
    assert tracking_read._comet_about(SimpleNamespace(path=Path('x/run.zip')), {}) == dict(id='run', project='', started=0., ended=0.)
