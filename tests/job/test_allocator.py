"""glibc's allocator keeps what is freed once it is told to."""

import platform
import subprocess
import sys

import pytest

GROWTH = """
import sys, numpy as np, psutil
from job.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
process = psutil.Process()
before = process.memory_info().rss
array = np.ones(25 << 20)
del array
print((process.memory_info().rss - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(("choice", "kept"), [("keep", True), ("leave", False)])
def test_freed_memory_is_kept_when_asked_for(choice: str, kept: bool) -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH, choice], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 150) == kept
