"""The pods of one world, and the promise that nothing of it is left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.horovod_keras.pods import Pods, until


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path) as made:
        yield made
    until("all processes of the world are gone", lambda: not made.running(), 3)
