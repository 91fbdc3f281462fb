"""Processes of ranks, as a launcher sees them."""

import os
import time

import pytest

from horovod_keras import ranks
from horovod_keras.ranks import RankExit, Ranks
from tests.horovod_keras.pods import script, until


@pytest.mark.parametrize(
    ("code", "told"), [(0, "ended with 0"), (75, "ended with 75"), (-9, "was killed by SIGKILL"), (-40, "by signal 40")]
)
def test_how_a_rank_ended_can_be_said_of_any_code(code: int, told: str) -> None:
    assert str(RankExit(3, code, asked=False)).startswith("rank 3 ") and told in str(RankExit(3, code, asked=False))


def test_a_rank_that_cannot_be_killed_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = ranks._signal_group
    monkeypatch.setattr(ranks, "LEFT_BEHIND", 0.3)
    monkeypatch.setattr(ranks, "_signal_group", lambda *_: None)  # as if it waited for a device that is broken
    command = script("trap '' TERM; while true; do sleep 0.1; done")
    group = Ranks(command, [os.environ | {"HOROVOD_RANK": "0"}], label=False)
    (process,) = group._running.values()
    try:
        time.sleep(0.3)  # until it ignores SIGTERM
        group.ask_to_end(0.2)
        assert group.running and not group.poll()
        until("it is left behind", lambda: not group.poll() and not group.running, 5)
        assert process.poll() is None
    finally:
        kill(process, ranks.signal.SIGKILL)
        process.wait(timeout=5)


def test_a_rank_that_has_ended_by_itself_was_not_asked_to() -> None:
    group = Ranks(script("exit 2"), [os.environ | {"HOROVOD_RANK": "0"}], label=False)
    (process,) = group._running.values()
    process.wait(timeout=5)
    assert not group.ask_to_end(1.0)
    assert group.exits == [RankExit(0, 2, asked=False)]
