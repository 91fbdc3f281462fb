"""The training job as people start it: real processes, real `horovodrun`, real files."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import yaml

from job.run.checkpoints import read

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset", "garments", "--weights", "none", "--limit-train", "160", "--limit-eval", "40"]
SMALL += ["--resolution", "32", "--global-batch", "16", "--epochs", "2"]

# In float64 rounding is far below what any mistake in shares, statistics, dropout or order would make. In float32 it is
# not: Adam turns rounding of small gradients into steps of full length.
EXACT = ["--precision", "float64", "--sync-batch-norm"]
TOLERANCE = 1e-8


def train(launch, ranks: int, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return launch(ranks, "-m", "job.train", *SMALL, "--run", run, *options)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def final_weights(run: Path) -> dict[str, np.ndarray]:
    arrays, _ = read(sorted((run / "checkpoints").glob("step-*"))[-1])
    return {name: value for name, value in arrays.items() if name.startswith("model")}


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory) -> dict[int, Path]:
    """Finished runs by number of ranks (0: without a launcher), equal but for that."""
    result = {}
    for ranks in (0, 2, 4):
        result[ranks] = tmp_path_factory.mktemp("run") / str(ranks)
        done = train(launch, ranks, result[ranks], *EXACT)
        assert done.returncode == 0, done.stdout + done.stderr
        (result[ranks].parent / "output").write_text(done.stdout + done.stderr)
    return result


def test_a_run_leaves_everything_in_its_folder(runs) -> None:
    run = runs[2]
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "checkpoints",
        "model.keras",
        "report.html",
        "tensorboard",
    }
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "done"
    assert result["ranks"] == 2
    assert result["epochs"] == 2
    assert {"val_accuracy", "test_accuracy", "test_loss", "seconds"} <= result.keys()
    for number, line in enumerate(metrics(run), start=1):
        assert line["epoch"] == number
        assert {
            "loss",
            "accuracy",
            "val_loss",
            "val_accuracy",
            "learning_rate",
            "images_per_second",
            "seconds",
        } <= line.keys()
    assert yaml.safe_load((run / "config.yaml").read_text())["resolution"] == 32
    assert json.loads((run / "environment.json").read_text())["libraries"]["keras"].startswith("3.")
    assert len(list((run / "checkpoints").iterdir())) == 3
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("ranks", [2, 4])
def test_more_ranks_at_equal_global_batch_end_with_the_same_weights(runs, ranks) -> None:
    alone, together = final_weights(runs[0]), final_weights(runs[ranks])
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=0, atol=TOLERANCE)
    assert metrics(runs[0])[-1]["loss"] == pytest.approx(metrics(runs[ranks])[-1]["loss"], abs=2e-6)


def test_a_finished_run_is_not_trained_again(launch, runs) -> None:
    before = (runs[2] / "model.keras").stat().st_mtime_ns
    done = train(launch, 2, runs[2], *EXACT)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert (runs[2] / "model.keras").stat().st_mtime_ns == before


def test_the_model_loads_in_plain_keras_and_takes_raw_images(runs) -> None:
    script = """
import sys
sys.modules["job"] = sys.modules["horovod"] = sys.modules["horovod_keras"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype="uint8")
probabilities = model.predict(images, verbose=0)
assert probabilities.shape == (3, 10) and abs(probabilities.sum(1) - 1).max() < 1e-5
"""
    subprocess.run([sys.executable, "-P", "-c", script, runs[4] / "model.keras"], cwd="/", check=True)


def test_another_option_in_the_same_folder_is_refused_with_both_values(launch, runs) -> None:
    done = train(launch, 0, runs[0], *EXACT, "--dropout", "0.3")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "--dropout is 0.5 there, 0.3 now" in done.stderr


def test_a_stopped_run_goes_on_and_ends_bit_identical(launch, tmp_path) -> None:
    assert train(launch, 0, tmp_path / "whole", "--deterministic").returncode == 0
    run = tmp_path / "stopped"
    command = [sys.executable, "-m", "job.train", *SMALL, "--run", str(run), "--deterministic"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "environment.json").exists():  # written just before the first step
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "the same command goes on" in output
    assert not (run / "result.json").exists()

    done = train(launch, 0, run, "--deterministic")
    assert done.returncode == 0, done.stderr
    stopped, whole = final_weights(run), final_weights(tmp_path / "whole")
    assert all(np.array_equal(stopped[name], whole[name]) for name in whole)
    assert [line["loss"] for line in metrics(run)] == [line["loss"] for line in metrics(tmp_path / "whole")]


def test_the_configuration_of_a_run_and_the_printed_one_can_be_given_again(launch, runs, tmp_path) -> None:
    printed = launch(0, "-m", "job.train", "--config", runs[0] / "config.yaml", "--dropout", "0.25", "--print-config")
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "printed.yaml").write_text(printed.stdout)
    again = launch(0, "-m", "job.train", "--config", tmp_path / "printed.yaml", "--run", "x", "--print-config")
    first, second = yaml.safe_load(printed.stdout), yaml.safe_load(again.stdout)
    assert first["dropout"] == 0.25 and first["limit_train"] == 160
    assert {**first, "run": "x"} == second
    # Printing is asked for once: the file that was printed trains.
    done = launch(0, "-m", "job.train", "--config", tmp_path / "printed.yaml", "--epochs", "1", "--run", tmp_path / "r")
    assert done.returncode == 0 and (tmp_path / "r/result.json").exists(), done.stderr


def test_original_protocol_says_what_it_does(launch, tmp_path) -> None:
    options = ["--protocol", "original", "--epochs", "1"]
    done = train(launch, 0, tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["protocol"] == "original"
    assert result["val_accuracy"] == pytest.approx(metrics(tmp_path / "run")[-1]["val_accuracy"], abs=1e-6)
    assert "chosen on the test images" in done.stdout
    shown = re.sub(r"<[^>]*>|\s+", " ", (tmp_path / "run/report.html").read_text())
    assert re.search(r"Protocol\s+original", shown)


def test_half_precision_trains_on_two_ranks(launch, tmp_path) -> None:
    done = train(launch, 2, tmp_path / "run", "--precision", "float16", "--epochs", "1", "--limit-train", "48")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[0]["loss"] < 10


def test_the_configuration_is_printed_by_one_of_two_ranks(launch) -> None:
    done = launch(2, "-m", "job.train", "--print-config")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learning_rate:") == 1


def processor_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    return set(path.read_text().split()) if path.exists() else set()


@pytest.mark.skipif("avx512_bf16" not in processor_flags(), reason="this processor multiplies no bfloat16")
def test_bfloat16_is_what_products_are_of_and_not_what_is_saved(launch, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("FASHION_KERNELS", raising=False)
    options = ["--deterministic", "--epochs", "1", "--limit-train", "48"]
    for precision in ("float32", "bfloat16"):
        done = train(launch, 0, tmp_path / precision, "--precision", precision, *options)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "bfloat16"
    used = json.loads((run / "environment.json").read_text())["kernels"]
    assert re.match(r"C\+\+ kernels for (amx|avx512bf16) ", used), used
    # Equal in every bit, if nothing but the name were another.
    exact, rounded = metrics(tmp_path / "float32")[0]["loss"], metrics(run)[0]["loss"]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.2)

    arrays: list[np.ndarray] = []
    with zipfile.ZipFile(run / "model.keras") as archive:
        assert "bfloat16" not in archive.read("config.json").decode()
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
            file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    floats = [array for array in arrays if array.dtype.kind == "f" and array.ndim]
    assert {array.dtype.name for array in floats} == {"float32"}
    # Nor are they numbers of bfloat16 in a wider dress.
    assert all((array.view(np.uint32) & 0xFFFF).any() for array in floats if array.ndim > 1)


def test_progressive_resizing_changes_the_resolution_between_epochs(launch, tmp_path) -> None:
    options = ["--resolution", "40", "--stages", "[[0.5,32]]"]
    assert train(launch, 0, tmp_path / "run", *options).returncode == 0
    assert [line["resolution"] for line in metrics(tmp_path / "run")] == [32, 40]


@pytest.mark.slow
def test_a_rank_with_other_kernels_is_named_and_a_profile_of_too_few_steps_too(launch, tmp_path) -> None:
    script = "import os, runpy; os.environ['FASHION_KERNELS'] = ('', 'off')[int(os.environ['HOROVOD_RANK'])]; "
    script += "runpy.run_module('job.train', run_name='__main__')"
    done = launch(
        2, "-c", script, *SMALL, "--epochs", "1", "--limit-train", "48", "--run", tmp_path / "run", "--profile"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 ranks don't compute as rank 0. Rank 0: C++ kernels for " in done.stdout
    assert " Rank 1: TensorFlow's own operations (FASHION_KERNELS=off)." in done.stdout
    assert "--profile will write nothing: it begins with step 10, and 3 step(s) are left" in done.stdout


@pytest.mark.slow
def test_xla_compiles_the_step_of_one_process(launch, tmp_path) -> None:
    done = train(launch, 0, tmp_path / "run", "--xla", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "XLA" in json.loads((tmp_path / "run/environment.json").read_text())["kernels"]


def test_xla_on_two_ranks_is_refused_in_one_line(launch, tmp_path) -> None:
    done = train(launch, 2, tmp_path / "run", "--xla")
    lines = [line for line in done.stderr.splitlines() if "error: " in line and "--xla" in line]
    assert len(lines) == 1 and "2 ranks" in lines[0]
    assert "Exit code: 2" in done.stderr


def test_nan_loss_ends_all_ranks_with_one_line(launch, tmp_path) -> None:
    done = train(launch, 2, tmp_path / "run", "--learning-rate", "1e38")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "error: the loss became" in line]
    assert len(lines) == 1 and "between steps" in lines[0]
    # What horovodrun itself prints, without a rank's number before it, is not ours to change.
    assert not [line for line in done.stderr.splitlines() if line.startswith("[") and "Traceback" in line]


def test_a_killed_rank_ends_the_others_with_one_line(tmp_path) -> None:
    run = tmp_path / "run"
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", sys.executable]
    command = [*launcher, "-m", "job.train", *SMALL, "--run", str(run), "--epochs", "1000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    ranks = {
        int(child.environ()["HOROVOD_RANK"]): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline()[1:3] == ["-m", "job.train"]
    }
    assert ranks.keys() == {0, 1}
    ranks[1].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: rank 0 on" in errors and "lost another rank while it waited for" in errors, errors
    assert not [line for line in errors.splitlines() if line.startswith("[") and "Traceback" in line]
    assert not any(child.is_running() for child in ranks.values())


BAD = {
    "unknown option": (["--colour", "red"], "--colour"),
    "resolution under 32": (["--resolution", "16"], "resolution"),
    "no data there": (["--dataset", "fashion-mnist", "--data-dir", "/nowhere"], "/nowhere"),
    "weights file missing": (["--weights", "/nowhere.h5"], "/nowhere.h5"),
    "run folder is a file": (["--run", "/etc/hostname"], "/etc/hostname"),
    "configuration file missing": (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    "protocol of 2017 without its choice": (["--protocol", "original", "--recipe", "fast"], "--select best"),
    "yes for a number": (["--config", "BOOLEAN"], "accumulate"),
    "weight decay without adamw": (["--weight-decay", "0.1"], "adamw"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_exit_code_2(launch, tmp_path, case) -> None:
    options, named = BAD[case]
    (tmp_path / "yes.yaml").write_text("accumulate: true\n")
    options = [str(tmp_path / "yes.yaml") if word == "BOOLEAN" else word for word in options]
    done = train(launch, 0, tmp_path / "run", *options)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("options", "named"), [(["--global-batch", "15"], "--global-batch"), (["--foo"], "--foo")])
def test_two_ranks_print_a_configuration_error_once(launch, tmp_path, options, named) -> None:
    done = train(launch, 2, tmp_path / "run", *options)
    assert done.returncode == 1  # horovodrun turns every exit code but 0 into 1
    errors = [line for line in done.stderr.splitlines() if "error: " in line and named in line]
    assert len(errors) == 1
    assert "Exit code: 2" in done.stderr


def test_ranks_that_were_given_different_options_are_refused(launch, tmp_path) -> None:
    script = "import os, runpy, sys; sys.argv += ['--seed', os.environ['HOROVOD_RANK']]; "
    script += "runpy.run_module('job.train', run_name='__main__')"
    done = launch(2, "-c", script, *SMALL, "--run", tmp_path / "run")
    assert "error: the ranks were given different values of seed: received 1 on rank 1, 0 on rank 0." in done.stderr
    assert "Exit code: 2" in done.stderr and not (tmp_path / "run").exists()


def test_a_refused_run_leaves_its_folder_to_the_corrected_command(launch, tmp_path) -> None:
    assert train(launch, 0, tmp_path / "run", "--weights", "/nowhere.h5").returncode == 2
    done = train(launch, 0, tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_help_lists_every_option_and_needs_no_tensorflow(launch) -> None:
    start = time.monotonic()
    done = launch(0, "-X", "importtime", "-m", "job.train", "--help")
    assert done.returncode == 0 and time.monotonic() - start < 60
    for option in ("--data-dir", "--recipe", "--global-batch", "--deterministic", "--limit-train"):
        assert option in done.stdout
    assert "tensorflow" not in done.stderr
