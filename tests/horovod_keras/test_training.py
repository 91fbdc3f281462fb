"""Horovod for Keras 3 on real ranks: what each rank found (see world.py) at 1, 2 and 4 ranks and without a launcher."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORLD = Path(__file__).with_name("world.py")

# Sums over ranks are added up in another order than sums over a batch; ten steps multiply that rounding.
TOLERANCE = 2e-5

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def worlds(launch, tmp_path_factory) -> dict[int, Found]:
    """By number of ranks (0: without Horovod), what each rank found."""
    result = {}
    for ranks in (0, 1, 2, 4):
        folder = tmp_path_factory.mktemp(f"world{ranks}")
        done = launch(ranks, WORLD, folder)
        assert done.returncode == 0, done.stdout + done.stderr
        result[ranks] = [json.loads((folder / f"{r}.json").read_text()) for r in range(max(ranks, 1))]
        result[ranks][0]["folder"] = str(folder)
    return result


@pytest.mark.parametrize("what", ["adam", "sgd"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_ends_with_the_weights_of_a_single_process(worlds, what, ranks) -> None:
    np.testing.assert_allclose(worlds[ranks][0][what], worlds[0][0][what], rtol=0, atol=TOLERANCE)


def test_training_moved_the_weights_much_further_than_the_tolerance(worlds) -> None:
    distance = np.abs(np.subtract(worlds[0][0]["adam"], worlds[0][0]["sgd"])).max()
    assert distance > 1000 * TOLERANCE


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_started_differently_end_bit_identical(worlds, ranks) -> None:
    assert len({found["adam_digest"] for found in worlds[ranks]}) == 1


@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_accumulated_half_batches_equal_whole_batches(worlds, ranks) -> None:
    np.testing.assert_allclose(worlds[ranks][0]["accumulated"], worlds[ranks][0]["plain"], rtol=0, atol=TOLERANCE)


def test_half_precision_exchange_is_close_but_not_equal(worlds) -> None:
    found = worlds[2][0]
    difference = np.abs(np.subtract(found["fp16"], found["plain"])).max()
    assert 0 < difference < 1e-2


def test_moving_statistics_become_the_mean_over_ranks(worlds) -> None:
    mean = np.mean([found["own_statistics"] for found in worlds[4]], axis=0)
    assert np.abs(mean - worlds[4][0]["own_statistics"]).max() > 1e-3
    for found in worlds[4]:
        np.testing.assert_allclose(found["common_statistics"], mean, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_metrics_count_examples_and_not_ranks(worlds, ranks) -> None:
    seen = [i for found in worlds[ranks] for i in found["uneven"]]
    expected = np.mean([worlds[ranks][0]["correct"][i] for i in seen])
    for found in worlds[ranks]:
        assert found["history"]["accuracy"] == pytest.approx(expected)
        assert found["history"]["val_accuracy"] == pytest.approx(expected)
        assert found["history"]["loss"] == pytest.approx(found["history"]["val_loss"], rel=1e-5)


@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_all_ranks_stop_after_the_batch_in_which_one_asked(worlds, ranks) -> None:
    assert {found["batches_until_stop"] for found in worlds[ranks]} == {3}


@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_warm_up_ends_at_the_rate_times_the_ranks(worlds, ranks) -> None:
    rates = worlds[ranks][0]["rates"]
    full = 0.1 * max(ranks, 1)
    np.testing.assert_allclose(rates[:5], np.linspace(0.1, full, 5), rtol=1e-5)
    np.testing.assert_allclose(rates[4:], full, rtol=1e-5)


def test_a_saved_model_loads_where_neither_horovod_nor_this_package_is(worlds) -> None:
    found = worlds[2][0]
    script = """
import json, sys
sys.modules["horovod"] = sys.modules["horovod_keras"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
images = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
optimizer = model.optimizer
print(json.dumps([type(optimizer).__module__.split(".")[0], type(optimizer).__name__, optimizer.beta_1,
                  len(optimizer.variables), model.predict(images[:4], verbose=0).tolist()]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(Path(found["folder"]) / "model.keras")],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    module, name, beta_1, variables, predicted = json.loads(done.stdout.splitlines()[-1])
    assert (module, name, beta_1, variables) == ("keras", "Adam", 0.8, 2 + 2 * 7)
    np.testing.assert_allclose(predicted, found["saved"], atol=1e-6)
