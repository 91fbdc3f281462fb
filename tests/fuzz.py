"""Coverage-guided fuzzing of everything that reads a file: it is read, or refused in one line, in bounded memory.

    python -m venv fuzz && fuzz/bin/pip install atheris
    PYTHONPATH=.venv/lib/python3.11/site-packages fuzz/bin/python -m tests.fuzz idx --seconds 60

The targets: idx, csv, npz, image, checkpoint, configuration, weights. Atheris (libFuzzer for Python) changes sound
files towards code that has not yet run; it ends with exit code 0 when the time is up, and otherwise leaves the input
that did it in a file `crash-…`. Its last lines tell how many inputs were tried.
"""

import argparse
import gzip
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["job", "PIL", "yaml"]):
    import yaml
    from PIL import Image

    from job import config, images
    from job.data import formats
    from job.errors import InputError
    from job.run import checkpoints

MEMORY = 1024
"""Megabytes that a process may take, and a quarter of which one allocation may: an honest file needs far less."""
Target = tuple[Callable[[Path], object], str, list[bytes]]


def idx() -> Target:
    """Images in IDX, plain and gzipped."""
    plain = (0x803).to_bytes(4) + (2).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(2 * 784)
    return formats.read_idx_images, "idx", [plain, gzip.compress(plain)]


def csv() -> Target:
    """Kaggle's CSV."""
    head = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
    return formats.read_csv, "csv", [f"{head}\n3{',7' * 784}\n".encode()]


def npz() -> Target:
    """Keras's npz, stored and compressed."""
    arrays: dict[str, Any] = {"x_train": np.zeros((2, 28, 28), np.uint8), "y_train": np.arange(2, dtype=np.uint8)}
    arrays |= {"x_test": np.zeros((1, 28, 28), np.uint8), "y_test": np.zeros(1, np.int64)}
    seeds = []
    for save in (np.savez, np.savez_compressed):
        save(file := io.BytesIO(), **arrays)
        seeds.append(file.getvalue())
    return formats.read_npz, "npz", seeds


def image() -> Target:
    """PNG and JPEG, in several modes."""
    seeds = []
    for mode in ("L", "RGBA", "P", "I;16", "1"):
        Image.new(mode, (30, 20)).save(file := io.BytesIO(), "PNG")
        seeds.append(file.getvalue())
    Image.new("RGB", (30, 20)).save(file := io.BytesIO(), "JPEG")
    return images.read_image, "png", [*seeds, file.getvalue()]


def checkpoint() -> Target:
    """A checkpoint whose name has the right checksum, so that damage gets as far as the parser."""
    position = {"position": json.dumps(asdict(checkpoints.Position(epoch=1)))}
    data = checkpoints.safetensors.numpy.save({"model 0000": np.arange(6.0).reshape(2, 3)}, metadata=position)

    def read(path: Path) -> None:
        named = path.with_name(f"step-1.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.safetensors")
        path.rename(named)
        try:
            checkpoints.read(named)
        # What `Checkpoints` expects of a damaged file.
        except ValueError as error:
            raise InputError(str(error)) from None
        finally:
            named.unlink()

    return read, "safetensors", [data]


def configuration() -> Target:
    """A YAML file of options."""
    text = yaml.safe_dump(config.plain(config.Config()) | {"stages": [[0.4, 32]]})
    return lambda path: config.resolve([config.read_yaml(path)]), "yaml", [text.encode(), b"epochs: 3\nflip: false\n"]


def weights() -> Target:
    """A weights file, for a network of two layers."""
    import keras

    from job.model.weights import load_imagenet

    layers = [keras.layers.Conv2D(2, 3, use_bias=False, name="conv1"), keras.layers.BatchNormalization(name="conv1_bn")]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.weights.h5"
        model.save_weights(path)
        return lambda path: load_imagenet(model, path), "h5", [path.read_bytes()]


TARGETS = {made.__name__: made for made in (idx, csv, npz, image, checkpoint, configuration, weights)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of the changes")
    options = parser.parse_args()
    read, suffix, seeds = TARGETS[options.target]()
    # In memory where there is such a folder: thousands of small files a second.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)

        def once(data: bytes) -> None:
            path = Path(folder) / f"input.{suffix}"
            path.write_bytes(data)
            try:
                read(path)
            except InputError as refusal:
                assert "\n" not in str(refusal), f"more than a line: {refusal}"

        limits = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-timeout=20", "-max_len=20000"]
        limits += [f"-rss_limit_mb={MEMORY}", f"-malloc_limit_mb={MEMORY // 4}", "-print_final_stats=1"]
        if options.target == "weights":
            limits[-3] = "-rss_limit_mb=3000"  # TensorFlow is loaded
        atheris.Setup([sys.argv[0], *limits, str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
