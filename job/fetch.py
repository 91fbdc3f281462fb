"""Get the real data and the ImageNet weights where they can be had, and print the options for what there is.

    python -m job.fetch [--data-dir DIR]

One line on stdout, for `job.train`: nothing where both are there, else `--dataset garments` or `--weights none`, each
with a warning on stderr that can't be missed. `make train` begins with it.
"""

import argparse
import os
import sys
from pathlib import Path

from job.errors import InputError, run_main


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m job.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("FASHION_MNIST_DIR"))
    args = parser.parse_args()
    from job.data import fashion_mnist
    from job.model.weights import imagenet_weights

    options = []
    try:
        print(f"data: {fashion_mnist.find(args.data_dir).description}", file=sys.stderr)
    except InputError as error:
        if args.data_dir:  # whoever names a folder means it
            raise
        warn("THIS IS NOT FASHION-MNIST: training on garments drawn by this project's own code.", error)
        options.append("--dataset garments")
    try:
        print(f"weights: {imagenet_weights(1.0)}", file=sys.stderr)
    except InputError as error:
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
