"""`python -m job.fetch`: the options that `make train` adds to the user's own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from job.data import garments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fetch(tmp_path):
    """Run the command on a machine with an empty cache and no network."""
    environment = {name: value for name, value in os.environ.items() if name != "FASHION_MNIST_DIR"}
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment |= proxy | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "job.fetch", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_without_data_and_weights_it_says_so_loudly_and_adds_what_works(fetch):
    done = fetch()
    assert done.stdout.split() == ["--recipe", "fast", "--epochs", "3", "--dataset", "garments", "--weights", "none"]
    assert "*\nTHIS IS NOT FASHION-MNIST" in done.stderr and "*\nNO IMAGENET WEIGHTS" in done.stderr


def test_what_the_user_chose_stays(fetch, tmp_path):
    (tmp_path / "c.yaml").write_text("recipe: best\nepochs: 2\n")
    chosen = ["--config", "c.yaml", "--weights", "none", "--dataset", "garments"]
    assert fetch(*chosen).stdout.split() == []
    assert fetch("--recipe", "best", "--weights", "none", "--dataset", "garments").stdout.split() == []
    assert fetch("--epochs", "7", "--weights=none", "--dataset", "garments").stdout.split() == ["--recipe", "fast"]


def test_the_users_own_data_are_used_and_a_wrong_folder_is_no_reason_for_others(fetch, tmp_path):
    data = garments.draw(train=20, test=10)
    np.savez(tmp_path / "data.npz", x_train=data.train_images, y_train=data.train_labels,
             x_test=data.test_images, y_test=data.test_labels)  # fmt: skip
    done = fetch("--data-dir", "data.npz", "--weights", "none")
    assert done.stdout.split() == ["--recipe", "fast", "--epochs", "3"], done.stderr
    refused = fetch("--data-dir", "/nowhere", "--weights", "none")
    assert (refused.returncode, refused.stdout) == (2, "") and "/nowhere" in refused.stderr


@pytest.mark.parametrize(
    ("named", "missing"),
    [
        ("--weights imagenet --dataset garments", "ImageNet weights could not"),
        ("--weights none --dataset fashion-mnist", "Fashion-MNIST could not"),
    ],
)
def test_what_is_named_and_cannot_be_had_is_an_error(fetch, named, missing):
    done = fetch(*named.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {missing}")


def test_options_are_checked_with_the_recipe_that_make_train_adds(fetch):
    there = ["--weights", "none", "--dataset", "garments"]
    done = fetch("--weight-decay", "0.01", *there)
    assert done.stdout.split() == ["--recipe", "fast", "--epochs", "3"], done.stderr
    refused = fetch("--protocol", "original", *there)
    assert refused.returncode == 2 and "--select best" in refused.stderr


def test_help_is_not_taken_for_options(fetch):
    done = fetch("--help")
    assert (done.returncode, done.stdout) == (0, "") and "--learning-rate" in done.stderr


def test_a_mistake_is_told_before_anything_is_fetched(fetch, tmp_path):
    done = fetch("--resolution", "16")
    assert done.returncode == 2 and done.stderr.startswith("error: option resolution")
    assert not (tmp_path / "cache").exists()
