"""Say what is on pictures, with the model that a run left.

    python -m job.predict RUN IMAGE...
    python -m job.predict runs/fast boot.png photos/*.jpg --json

Pictures are PNG or JPEG files of any size and colour. The model knows light garments on black; a picture with a light
border is inverted first, and the output says so.
"""

import json
from pathlib import Path

import numpy as np

from job import quiet
from job.command_line import Parser
from job.data.arrays import CLASS_NAMES
from job.errors import run_main
from job.images import GreyImage, read_image

_SHOWN = 3


def main(argv: list[str] | None = None) -> int:
    """Predict what the command line names (`sys.argv` by default) and return the exit code."""
    options = _parser().parse_args(argv)
    # Before TensorFlow is imported: a wrong file is told at once.
    images = [read_image(path, invert=options.invert) for path in options.images]
    quiet.import_tensorflow()
    from job.run.saved import load_model, probabilities

    found = probabilities(load_model(options.run), np.stack([image.pixels for image in images]))
    if options.json:
        print(json.dumps([_record(*each) for each in zip(options.images, images, found, strict=True)], indent=2))
        return 0
    width = max(len(str(path)) for path in options.images)
    for path, image, row in zip(options.images, images, found, strict=True):
        best = np.argsort(-row, kind="stable")[:_SHOWN]
        said = "   ".join(f"{CLASS_NAMES[place]} {100 * row[place]:.1f} %" for place in best)
        print(f"{path!s:<{width}}   {said}{'   (inverted: light border)' if image.inverted else ''}")
    return 0


def _record(path: Path, image: GreyImage, row: np.ndarray) -> dict[str, object]:
    order = np.argsort(-row, kind="stable")
    return {
        "image": str(path),
        "inverted": image.inverted,
        "class": CLASS_NAMES[order[0]],
        "probabilities": {CLASS_NAMES[place]: float(row[place]) for place in order},
    }


def _parser() -> Parser:
    parser = Parser("python -m job.predict", description="Say what is on pictures.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run, or a model.keras")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="PNG or JPEG file of any size and colour")
    parser.add_argument(
        "--no-invert", dest="invert", action="store_false", help="take pictures with a light border as they are"
    )
    parser.add_argument("--json", action="store_true", help="print all probabilities as JSON")
    return parser


if __name__ == "__main__":
    run_main(main)
