"""A finished run in small, for the commands that use one."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from job.data import garments


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small model that has learned a little, and `data.npz` beside the configuration."""
    import keras

    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    data = garments.draw(train=1200, test=100)
    np.savez(
        folder / "data.npz",
        x_train=data.train_images,
        y_train=data.train_labels,
        x_test=data.test_images,
        y_test=data.test_labels,
    )
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 5, strides=4, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data.train_images, data.train_labels, epochs=3, verbose=0)
    model.save(folder / "model.keras")
    config = {"dataset": "fashion-mnist", "data_dir": str(folder / "data.npz"), "recipe": "fast"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
