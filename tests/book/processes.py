"""What tests ask of the processes of this machine"""

import subprocess


def sleepers(seconds):
    "The commands that sleep for this many seconds: each test has a number of its own"
    return [
        p
        for p in subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout.splitlines()
        if p == f'sleep {seconds}'
    ]
