"""Get the real data and the ImageNet weights where they can be had, and print the options for what there is.

    python -m job.fetch [options of job.train]
    python -m job.fetch --dataset fashion-mnist --weights imagenet    # both, or an error: a cluster's download

One line on stdout, for `job.train`: a short `--recipe fast` where no recipe is given, and, for what is not there,
`--dataset garments` or `--weights none`, each with a warning on stderr that can't be missed. `make train` begins so.
What the options name must be there.
"""

import contextlib
import sys
from pathlib import Path

from job.config import parse_flags, read_options, resolve
from job.errors import InputError, run_main


def main() -> int:
    with contextlib.redirect_stdout(sys.stderr):  # help is no option for job.train
        flags = parse_flags(sys.argv[1:], "python -m job.fetch")
    given = read_options(Path(flags["config"])) | flags if "config" in flags else flags
    short = {} if "recipe" in given else {"recipe": "fast", "epochs": 3}
    config = resolve([short, given])  # a mistake is told here, before any rank is started
    from job import quiet
    from job.data import fashion_mnist

    options = [f"--{name} {value}" for name, value in short.items() if name not in given]
    if config.dataset == "fashion-mnist":
        try:
            print(f"data: {fashion_mnist.find(config.data_dir).description}", file=sys.stderr)
        except InputError as error:
            if config.data_dir or "dataset" in given:  # whoever names it means it
                raise
            warn("THIS IS NOT FASHION-MNIST: training on garments drawn by this project's own code.", error)
            options.append("--dataset garments")
    if config.weights == "imagenet":
        quiet.import_tensorflow()
        from job.model.weights import imagenet_weights

        try:
            print(f"weights: {imagenet_weights()}", file=sys.stderr)
        except InputError as error:
            if "weights" in given:
                raise
            warn("NO IMAGENET WEIGHTS: training starts from random ones and needs more epochs.", error)
            options.append("--weights none")
    print(" ".join(options))
    return 0


def warn(headline: str, error: InputError) -> None:
    """A warning that can't be missed, with its reason."""
    bar = "*" * len(headline)
    print(f"{bar}\n{headline}\n{bar}\nreason: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
