"""After everything else of this part: no process, mount, port or file of the tests is left"""
from pathlib import Path
import pytest
from .conftest import leftovers, mounts, scratch


def test_no_process_mount_or_file_is_left():
    if not scratch: pytest.skip('no test has started a cluster or a container')
    for folder in scratch:
        assert not leftovers(folder) and not mounts(folder) and not Path(folder).exists(), folder
