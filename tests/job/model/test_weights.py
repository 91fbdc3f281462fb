"""Weights files: what loads, and what is refused in one line."""

import contextlib
import os
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from job.errors import InputError
from job.model import mobilenet, weights
from job.model.weights import imagenet_weights, load_imagenet


@pytest.fixture
def stock() -> keras.Model:
    return keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
    )


def _publish(model: keras.Model, path: Path) -> None:
    """Write Keras' older layout, as the published files have it."""
    layers = [layer for layer in model.layers if layer.weights]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                group[name] = variable.numpy()


@pytest.mark.parametrize("name", ["published.h5", "keras3.weights.h5"])
def test_files_of_both_layouts_load_into_both_backbones(
    way: str, stock: keras.Model, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    _publish(stock, path) if name == "published.h5" else stock.save_weights(path)
    for fast in (True, False):
        backbone = mobilenet.backbone(alpha=0.25, fast=fast)
        load_imagenet(backbone, path)
        for mine, theirs in zip(backbone.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist: received .*none\.h5"):
        load_imagenet(mobilenet.backbone(alpha=0.25), tmp_path / "none.h5")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(InputError, match="is not HDF5"):
        load_imagenet(mobilenet.backbone(alpha=0.25), path)


@pytest.mark.parametrize("name", ["published.h5", "keras3.weights.h5"])
def test_another_width_multiplier_is_refused_by_layer(stock: keras.Model, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _publish(stock, path) if name == "published.h5" else stock.save_weights(path)
    backbone = mobilenet.backbone(alpha=0.5)
    before = backbone.get_weights()
    with pytest.raises(InputError, match=r"layer conv1 .*\(3, 3, 3, 8\).*alpha"):
        load_imagenet(backbone, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.get_weights(), strict=True))


def test_a_file_that_lacks_a_layer_is_refused_by_its_name(stock: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    _publish(stock, path)
    with h5py.File(path, "a") as file:
        del file["conv_pw_7"]
    with pytest.raises(InputError, match="lacks layer conv_pw_7"):
        load_imagenet(mobilenet.backbone(alpha=0.25), path)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_damaged_file_is_refused_or_loads_and_nothing_else(stock: keras.Model, tmp_path: Path, cut: float) -> None:
    whole = tmp_path / "whole.weights.h5"
    stock.save_weights(whole)
    data = bytearray(whole.read_bytes())
    backbone = mobilenet.backbone(alpha=0.25)
    path = tmp_path / "damaged.h5"
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(InputError, match="damaged"):
        load_imagenet(backbone, path)
    numbers = np.random.default_rng(int(cut * 10))
    for _ in range(20):
        flipped = data.copy()
        for place in numbers.integers(0, min(len(data), 20_000), 40):
            flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        with contextlib.suppress(InputError):
            load_imagenet(backbone, path)


def test_weights_that_are_not_numbers_are_refused_by_layer(stock: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    _publish(stock, path)
    with h5py.File(path, "a") as file:
        group = file["conv_pw_3"]
        group[next(iter(group.attrs["weight_names"]))][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="conv_pw_3 hold NaN"):
        load_imagenet(mobilenet.backbone(alpha=0.25), path)


@pytest.mark.parametrize("how", ["large pieces", "another file"])
def test_a_layer_that_takes_more_than_its_shape_says_is_refused(stock: keras.Model, tmp_path: Path, how: str) -> None:
    path = tmp_path / "weights.h5"
    _publish(stock, path)
    with h5py.File(path, "a") as file:
        group = file["conv1"]
        name = next(iter(group.attrs["weight_names"]))
        shape = group[name].shape
        del group[name]
        if how == "large pieces":
            chunks = (2**16, *shape[1:])
            group.create_dataset(
                name, shape, np.float32, maxshape=(None, *shape[1:]), chunks=chunks, compression="gzip"
            )
        else:
            group.create_dataset(name, shape, np.float32, external=[("/etc/passwd", 0, 4 * int(np.prod(shape)))])
    with pytest.raises(InputError, match="layer conv1 lie in other files or in too large pieces"):
        load_imagenet(mobilenet.backbone(alpha=0.25), path)


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/conv_pw_3")])
def test_links_in_a_weights_file_are_not_followed(stock: keras.Model, tmp_path: Path, link: object) -> None:
    path = tmp_path / "weights.h5"
    _publish(stock, path)
    with h5py.File(path, "a") as file:
        del file["conv_pw_7"]
        file["conv_pw_7"] = link
    os.mkfifo(tmp_path / "other.h5")  # reading it would never end
    with pytest.raises(InputError, match="lacks layer conv_pw_7"):
        load_imagenet(mobilenet.backbone(alpha=0.25), path)


def test_cached_weights_that_were_cut_off_are_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w") as file:
        file["x"] = np.zeros(1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache/fashion-job/weights/mobilenet_1_0_224_tf_no_top.h5"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(whole.read_bytes()[:3000])

    def retrieve(*_: object, path: Path, fname: str, **__: object) -> str:
        assert not kept.exists()
        return str(shutil.copy(whole, path / fname))

    monkeypatch.setattr(weights.pooch, "retrieve", retrieve)
    assert imagenet_weights() == kept and kept.read_bytes() == whole.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o644


def test_no_network_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"--weights FILE.*--weights none"):
        imagenet_weights()
