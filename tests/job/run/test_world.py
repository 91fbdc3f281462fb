"""How ranks are set up, and refused."""

import pytest

from job.config import resolve
from job.errors import InputError
from job.run import world


def test_a_gpu_that_is_asked_for_and_not_seen_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setenv("FASHION_NEEDS_GPU", "1")
    with pytest.raises(InputError, match="sees no GPU here, and FASHION_NEEDS_GPU=1 asks for one"):
        world.join(resolve([{}]))
