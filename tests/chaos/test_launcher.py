"""The launcher's faults, over network namespaces (`python -m tests.chaos.launcher` makes a table of them)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import launcher
from tests.chaos.launcher_faults import FAULTS
from tests.chaos.world import HEARTBEAT, STALL, START, Outcome, World
from tests.horovod_keras.pods import Network

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_world_goes_on_or_ends_with_the_right_code(fault: Callable[[World], Outcome], tmp_path: Path) -> None:
    if reason := Network.why_not():
        pytest.skip(reason)
    outcome = launcher.run(fault, tmp_path)
    # Six seconds are for TensorFlow's start on two cores; the rest of the bound is the limits' own.
    assert outcome.ended is None or outcome.ended < HEARTBEAT + STALL + 15
    assert outcome.back is not None and outcome.back < START + 60
