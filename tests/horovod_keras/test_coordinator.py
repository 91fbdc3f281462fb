"""What pod 0 decides between two beats, where real processes would hit the moment only now and then."""

from typing import Any

from horovod_keras.control import Beat
from horovod_keras.coordinator import Coordinator, Rules
from horovod_keras.rendezvous import Rendezvous


def beat(pod: int, number: int, **changes: Any) -> Beat:
    usual: dict[str, Any] = {
        "pods": 2, "life": str(pod), "name": f"host-{pod}", "address": "127.0.0.1", "ranks": 1, "generation": 0,
        "restarts": 0, "running": False, "exits": [], "leaving": False, "bye": False,
    }  # fmt: skip
    return Beat(pod=pod, number=number, **(usual | changes))


def test_pod_0_that_is_preempted_waits_for_a_pod_that_has_just_been_told_to_run() -> None:
    with Rendezvous("127.0.0.1") as rendezvous:
        coordinator = Coordinator(2, rendezvous, Rules(rejoin=True), lambda line: None)
        coordinator.answer(beat(0, 1))
        assert coordinator.answer(beat(1, 1)).kind == "run"
        # Pod 1 has started its ranks since, and not yet told so.
        assert coordinator.answer(beat(0, 2, leaving=True)).kind == "stop"
        assert coordinator.others_running
        assert coordinator.answer(beat(1, 2, generation=1, running=True)).kind == "stop"
        assert coordinator.others_running
        coordinator.answer(beat(1, 3, generation=1, exits=[(1, 75, True)]))
        assert not coordinator.others_running
