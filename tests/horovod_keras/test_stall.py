"""A rank whose process lives but whose work stands still, at the package's own limits."""

from pathlib import Path

import pytest

# The same exchange again and again is in Horovod's cache, which is the slowest case.
SCRIPT = """
import time
import horovod_keras

ranks = horovod_keras.join()
for step in range(20):
    ranks.gather(step, "step")
if ranks.rank == 1:
    time.sleep(300)
start = time.monotonic()
try:
    ranks.gather(20, "step")
finally:
    print(f"ended after {time.monotonic() - start:.0f} s", flush=True)
"""


@pytest.mark.slow
def test_the_others_end_within_a_minute(launch, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch(2, script)
    assert done.returncode == 1
    seconds = float(done.stdout.partition("ended after ")[2].split()[0])
    assert 39 < seconds < 58
