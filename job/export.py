"""Write the model that a run left in another format, and prove that it gives the same answers.

    python -m job.export RUN --format saved_model|onnx|litert [--out PATH]

An export takes what the model takes, uint8 [B, 28, 28], and gives what it gives, probabilities [B, 10]. It is run
beside the model on drawn garments before it gets its name: where they differ by more than 0.0001, there is no export.
"""

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job import quiet
from job.command_line import Parser
from job.errors import InputError, run_main

TOLERANCE = 1e-4
"""The largest difference of a probability that passes."""
_IMAGES = 20


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing a model."""

    keras_name: str
    """What `keras.Model.export` calls it."""
    file_name: str
    """The export's usual name."""
    needs: tuple[str, ...]
    """Modules that training doesn't need."""
    run: Callable[[Path, NDArray[np.uint8]], NDArray[np.float32]]
    """Runs an export on images with the format's own runtime."""


def main(argv: list[str] | None = None) -> int:
    """Export what the command line names (`sys.argv` by default) and return the exit code."""
    options = _parser().parse_args(argv)
    wanted = FORMATS[options.format]
    missing = [module for module in wanted.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"--format {options.format} needs packages that aren't here: {', '.join(missing)}. "
            "Install them, not in an image: pip install --require-hashes -r requirements/export.txt"
        )
    folder = options.run if options.run.is_dir() else options.run.parent
    out: Path = options.out or folder / "export" / wanted.file_name
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} is there already and stays as it is. Remove it, or name another place with --out.")
    difference = export(options.run, wanted, out)
    within = difference <= TOLERANCE
    print(
        f"{out if within else 'no export'}: largest difference from the model {difference:.1e} "
        f"on {_IMAGES} images (limit {TOLERANCE:.0e})",
        file=sys.stdout if within else sys.stderr,
    )
    return 0 if within else 1


def export(run: Path, wanted: Format, out: Path) -> float:
    """Export a run's model to `out`, which appears whole, and only if it gives the model's answers.

    Returns:
        The largest absolute difference of a probability; NaN if one isn't a number.

    Raises:
        InputError: there is no model, or it is damaged.
    """
    from job.data import garments

    quiet.import_tensorflow()
    from job.run.saved import load_model, probabilities

    model = load_model(run)
    images = garments.draw(train=_IMAGES, test=_IMAGES).test_images
    # Before the export: Keras can't write a model as ONNX that has never been called.
    expected = probabilities(model, images)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent} can't be made: {error.strerror}. Name another place with --out.") from None
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        partial = Path(folder) / wanted.file_name
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.export(partial, format=wanted.keras_name, verbose=False)
        difference = float(np.abs(wanted.run(partial, images) - expected).max())
        if difference <= TOLERANCE:
            partial.rename(out)
    return difference


def _run_saved_model(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return loaded.serve(images).numpy()


def _run_onnx(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def _run_litert(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(taken, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken, images)
    interpreter.invoke()
    return interpreter.get_tensor(given)


FORMATS = {
    "saved_model": Format("tf_saved_model", "saved_model", (), _run_saved_model),
    "onnx": Format("onnx", "model.onnx", ("tf2onnx", "onnxruntime"), _run_onnx),
    "litert": Format("litert", "model.tflite", ("ai_edge_litert",), _run_litert),
}


def _parser() -> Parser:
    parser = Parser("python -m job.export", description="Write a run's model in another format.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run, or a model.keras")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    names = ", ".join(each.file_name for each in FORMATS.values())
    parser.add_argument("--out", metavar="PATH", type=Path, help=f"where to write it (default: RUN/export/ {names})")
    return parser


if __name__ == "__main__":
    run_main(main)
