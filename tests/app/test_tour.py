"""A tour that is killed goes on, and says what stops it."""
import os
import signal
import subprocess
import sys
import time

import pytest

from fsdl_tools.app.tour import Tour, tour

COMMAND = [sys.executable, '-W', 'ignore', '-c', 'import sys; from fsdl_tools.app.tour import Tour, tour; tour(sys.argv[1], Tour(steps=8))']


def test_settings_are_checked_before_anything_is_written(tmp_path):
    for bad in (dict(gpus=0), dict(steps=-1), dict(tokens='many'), dict(budget='[red]')):
        with pytest.raises(ValueError): tour(tmp_path/'t', Tour(**bad))
    assert not (tmp_path/'t').exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError): tour(tmp_path/'file')
    assert (tmp_path/'file').read_text() == ''


def test_a_model_that_is_none_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match='no-such-model'): tour(tmp_path/'t', Tour(model='no-such-model'))
    assert not (tmp_path/'t'/'report.html').exists()


def killed_after(folder, seconds):
    process = subprocess.Popen([*COMMAND, str(folder)], start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(.6)                  # ranks follow their parent within a quarter of a second


@pytest.mark.slow
def test_killed_at_any_moment_the_report_is_the_same(tmp_path):
    whole = tour(tmp_path/'whole', Tour(steps=8)).read_text()
    for seconds in (2, 5, 9, 14, 20): killed_after(tmp_path/'killed', seconds)
    assert tour(tmp_path/'killed', Tour(steps=8)).read_text() == whole
