"""What is printed must not end a run."""

import subprocess
import sys

SPEAKS = """
import sys, time
from job import quiet
quiet.tell("first")
sys.stdin.read()
quiet.tell("second")
quiet.tell("third")
print("still here", file=sys.stderr)
"""


def test_a_run_whose_output_nobody_reads_any_more_goes_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b"still here\n"
    process.stderr.close()
