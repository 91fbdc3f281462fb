"""The GPU image as far as a machine without a GPU can tell: built, linked, imported, and run on processors."""

import json

import pytest

from tests.docker.containers import READ_ONLY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LARGEST = 6e9  # bytes
SITE = "/opt/job/lib/python3.11/site-packages"
QUESTIONS = """
import json, horovod.tensorflow as hvd, tensorflow as tf
built = {name: bool(getattr(hvd, f"{name}_built")()) for name in ("nccl", "cuda", "mpi", "gloo")}
built |= {"tensorflow": tf.test.is_built_with_cuda(), "gpus": len(tf.config.list_physical_devices("GPU"))}
print(json.dumps(built))
"""


def test_it_is_small_enough(podman, gpu_image) -> None:
    assert int(podman("image", "inspect", "--format", "{{.Size}}", gpu_image).stdout) <= LARGEST


def test_horovod_imports_without_a_driver_and_has_nccl(podman, gpu_image) -> None:
    done = podman("run", "--rm", *READ_ONLY, gpu_image, "python", "-c", QUESTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    built = dict.fromkeys(("nccl", "cuda", "mpi", "gloo", "tensorflow"), True)
    assert json.loads(done.stdout.splitlines()[-1]) == built | {"gpus": 0}


def test_horovod_finds_the_libraries_of_the_pip_packages(podman, gpu_image) -> None:
    """All of them, and every function in them, with TensorFlow's beside it as in a process that has imported it."""
    script = f"LD_LIBRARY_PATH={SITE}/tensorflow ldd -r {SITE}/horovod/tensorflow/mpi_lib*.so"
    said = podman("run", "--rm", gpu_image, "sh", "-c", script).stdout
    assert f"libnccl.so.2 => {SITE}/horovod/tensorflow/../../nvidia/nccl/lib/" in said
    assert "not found" not in said and "undefined symbol" not in said, said


def test_without_a_gpu_it_trains_on_processors(podman, gpu_image, runs) -> None:
    options = ["--recipe=fast", "--dataset=garments", "--weights=none", "--resolution=32", "--epochs=1"]
    command = ["train", "-np", "2", *options, "--limit-train=640", "--limit-eval=100", "--run=/runs/train"]
    done = podman("run", "--rm", *READ_ONLY, "--volume", f"{runs}:/runs", gpu_image, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs / "train/result.json").is_file()
