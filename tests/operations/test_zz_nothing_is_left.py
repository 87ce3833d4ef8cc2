"""What looks, at the end of this part, for processes, mounts, files and ports of the tests: it sees each of them"""

import socket, subprocess, sys
import psutil
from .conftest import left


def test_what_is_left_is_found(tmp_path, small_disk):
    "And nothing else: after each is gone, it is no longer named"
    folder = tmp_path / 'scratch'
    folder.mkdir()
    with socket.create_server(('127.0.0.1', 0)) as s:
        port = s.getsockname()[1]
        p = subprocess.Popen(
            [sys.executable, '-c', 'import time; print(flush=True); time.sleep(60)', str(folder)],
            stdout=subprocess.PIPE,
        )
        p.stdout.readline()
        assert sorted(x.partition(':')[0] for x in left([str(folder)], [port])) == [
            'folder',
            f'port',
            f'process {p.pid}',
        ]
        p.kill()
        p.communicate()
    assert not psutil.pid_exists(p.pid)
    assert left([str(folder)], [port]) == [f'folder: {folder}']
    small_disk(folder / 'disk')
    assert any(x.startswith('mount: ') for x in left([str(folder)], []))
    assert left([str(tmp_path / 'none')], []) == []
