"""The state that outlives a change of ranks, in a single process; `tests/job/test_elastic.py` changes real worlds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import horovod_keras
from horovod_keras.elastic import HostsChangedError, KerasState, is_lost_rank, run
from horovod_keras.environment import TUNABLE_DEFAULTS, set_defaults


@pytest.fixture
def state() -> KerasState:
    ranks = horovod_keras.join()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model.compile(horovod_keras.distribute(keras.optimizers.Adam(0.1), ranks), "mse")
    model.optimizer.build(model.trainable_variables)
    return KerasState(ranks, model, epoch=0)


def train(state: KerasState) -> None:
    assert state.model is not None
    inputs = np.random.default_rng(0).normal(size=(8, 3))
    state.model.fit(inputs, inputs[:, :2], verbose=0)
    state.values["epoch"] += 1


def everything(state: KerasState) -> list[np.ndarray]:
    assert state.model is not None
    return [np.array(v) for v in [*state.model.variables, *state.model.optimizer.variables]]


def test_restore_undoes_what_was_trained_since_the_last_save(state: KerasState) -> None:
    train(state)
    state.sync()
    saved = everything(state)
    train(state)
    assert state.values == {"epoch": 2}
    assert not np.array_equal(everything(state)[0], saved[0])
    state.restore()
    assert state.values == {"epoch": 1}
    for found, expected in zip(everything(state), saved, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_restore_without_a_save_leaves_all_as_it_is(state: KerasState) -> None:
    train(state)
    before = everything(state)
    state.restore()
    assert state.values == {"epoch": 1}
    np.testing.assert_array_equal(everything(state)[0], before[0])


def test_commit_saves_and_then_tells_of_new_hosts(state: KerasState) -> None:
    train(state)
    state.commit()
    state.on_hosts_updated(0.0, None)
    train(state)
    with pytest.raises(HostsChangedError):
        state.commit()
    assert state.saved is not None and state.saved[1] == {"epoch": 2}


def test_without_an_elastic_launcher_errors_pass_through(state: KerasState) -> None:
    def lose() -> None:
        raise tf.errors.UnknownError(None, None, "Horovod has been shut down")

    with pytest.raises(tf.errors.UnknownError) as raised:
        run(lose, state)
    assert is_lost_rank(raised.value)
    assert run(lambda: 5, state) == 5


def test_elastic_ranks_are_not_given_what_their_second_meeting_would_crash_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    environment = {"HOROVOD_CYCLE_TIME": "5"}
    set_defaults(environment)
    assert "HOROVOD_GLOO_TIMEOUT_SECONDS" in environment
    assert not environment.keys() & set(TUNABLE_DEFAULTS)


@pytest.mark.parametrize(("check", "shutdown"), [(None, "40"), ("7", "40"), ("60", "60")])
def test_a_stall_ends_the_ranks_no_sooner_than_the_user_wants_to_be_warned(check: str | None, shutdown: str) -> None:
    environment = {"HOROVOD_STALL_CHECK_TIME_SECONDS": check} if check else {}
    set_defaults(environment)
    assert environment["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == shutdown
    own = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "60", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0"}
    set_defaults(own)
    assert own["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == "0"
