"""Measure the model that a run left on images that it was not trained on.

    python -m job.evaluate RUN
    python -m job.evaluate runs/fast --split validation --flip-tta --json

The data set, the splits and their limits are those of the run's `config.yaml`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import quiet
from job.command_line import Parser
from job.errors import InputError, run_main

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from job.run.scores import Scores


@dataclass(frozen=True, slots=True)
class Split:
    """The images to measure on."""

    images: "NDArray[np.uint8]"
    """[N, 28, 28]."""
    labels: "NDArray[np.uint8]"
    """[N]."""
    places: "NDArray[np.int64]"
    """[N], in the data set's file of training or test images."""
    protocol: str
    """Of the run."""


def main(argv: list[str] | None = None) -> int:
    """Evaluate what the command line names (`sys.argv` by default) and return the exit code."""
    options = _parser().parse_args(argv)
    split = _load(options.run, options.data_dir, options.split)
    quiet.import_tensorflow()
    from job.run.saved import load_model, probabilities
    from job.run.scores import score

    model = load_model(options.run)
    found = probabilities(model, split.images)
    scores = {"as they are": score(split.labels, found)}
    if options.flip_tta:
        mirrored = probabilities(model, split.images[:, :, ::-1])
        scores["with mirror images"] = score(split.labels, (found + mirrored) / 2)
    if options.json:
        plain, *rest = [_record(each) for each in scores.values()]
        found_in = {"split": options.split, "protocol": split.protocol}
        print(json.dumps({**found_in, **plain, "flip_tta": rest[0] if rest else None}, indent=2))
    else:
        what = f"{options.split} images"
        if split.protocol == "original":
            what = "test images (protocol original chose the epoch by them)"
        for name, each in scores.items():
            print(
                f"{what} {name}: accuracy {100 * each.accuracy:.2f} % ± {100 * each.standard_error:.2f}"
                f" (standard error, {each.count:,} images), loss {each.loss:.4f}"
            )
    if options.report:
        from job.data.arrays import CLASS_NAMES
        from job.run.report import write_report

        page = write_report(
            options.run,
            images=split.images,
            places=split.places,
            labels=split.labels,
            probabilities=found,
            class_names=CLASS_NAMES,
            split_name="test" if split.protocol == "original" else options.split,
        )
        print(f"report: {page}", file=sys.stderr)
    return 0


def _load(run: Path, data_dir: Path | None, name: str) -> Split:
    if not (run / "config.yaml").is_file():
        raise InputError(f"no run there: received {run}, in which there is no config.yaml. Name a run folder.")
    from job.config import read_options, resolve
    from job.data.arrow import dataset
    from job.data.splits import splits
    from job.run.folder import trained_on

    config = resolve([read_options(run / "config.yaml")])
    data = dataset(config.dataset, data_dir or config.data_dir)
    if trained_on(run) not in (None, data.digest):
        print(f"warning: {data.source} holds other images than the run was trained with", file=sys.stderr)
    chosen = getattr(splits(data, limit_eval=config.limit_eval, protocol=config.protocol), name)
    return Split(data.images[chosen], data.labels[chosen], data.places(chosen), config.protocol)


def _record(scores: "Scores") -> dict[str, Any]:
    names = ("count", "accuracy", "standard_error", "loss")
    return {"images" if name == "count" else name: getattr(scores, name) for name in names}


def _parser() -> Parser:
    parser = Parser("python -m job.evaluate", description="Measure a run's model on unseen images.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where Fashion-MNIST is (default: as the run had it)"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which images (default: test)")
    parser.add_argument(
        "--flip-tta", action="store_true", help="also average each image's and its mirror image's result"
    )
    parser.add_argument("--report", action="store_true", help="write the run's report.html anew from this split")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


if __name__ == "__main__":
    run_main(main)
