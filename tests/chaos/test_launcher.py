"""The launcher's faults, over network namespaces (`python -m tests.chaos.launcher` makes a table of them)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import launcher
from tests.horovod_keras.pods import Network

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", launcher.FAULTS, ids=lambda fault: fault.__name__)
def test_the_world_goes_on_or_ends_with_the_right_code(
    fault: Callable[[launcher.World], launcher.Outcome], tmp_path: Path
) -> None:
    if reason := Network.why_not():
        pytest.skip(reason)
    outcome = launcher.run(fault, tmp_path)
    # Six seconds are for TensorFlow's start on two cores; the rest of the bound is the limits' own.
    assert outcome.ended is None or outcome.ended < launcher.HEARTBEAT + launcher.STALL + 15
    assert outcome.back is not None and outcome.back < launcher.START + 60
