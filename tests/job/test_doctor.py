"""`python -m job.doctor`."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from job import doctor
from tests.horovod_keras.pods import processes_in, until


@pytest.mark.usefixtures("own_cache")
def test_a_machine_that_can_train_is_told_healthy(finished_run, tmp_path, capsys):
    code = doctor.main(["--data-dir", str(finished_run / "data.npz"), "--runs", str(tmp_path / "runs"), "--json"])
    told = json.loads(capsys.readouterr().out)
    found = {each["subject"]: each for each in told["findings"]}
    assert {name for name, each in found.items() if each["status"] == "fail"} == set()
    assert (code, told["healthy"]) == (0, True)
    assert found["Two-rank all-reduce"]["found"] == "right"
    assert metadata.version("horovod") in found["Horovod"]["found"]
    assert "gloo yes" in found["Horovod"]["found"]
    assert found["keras"]["found"] == metadata.version("keras")
    assert found["Fashion-MNIST"]["found"].startswith("1,200 + 100 images in ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("own_cache")
def test_data_that_are_named_but_not_there_fail_and_say_what_to_do(tmp_path):
    finding = doctor.check_data(tmp_path)
    assert finding.status == "fail"
    assert str(tmp_path) in finding.found
    assert "--data-dir" in finding.remedy


@pytest.mark.usefixtures("own_cache")
def test_data_that_nobody_named_are_a_warning():
    assert doctor.check_data(None).status == "warn"


def test_a_folder_that_can_not_be_written_fails_with_the_option_that_mends_it():
    finding = doctor.check_folder("Run folder", doctor.Path("/proc/none"), needed=1, option="--run")
    assert finding.status == "fail"
    assert "--run" in finding.remedy


def test_too_little_disk_is_a_warning(tmp_path):
    finding = doctor.check_folder("Run folder", tmp_path / "new" / "runs", needed=2**60, option="--run")
    assert (finding.status, list(tmp_path.iterdir())) == ("warn", [])


def test_a_command_without_end_is_ended_with_all_its_children(tmp_path):
    child = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(600)"
    options = f"cwd={str(tmp_path)!r}, start_new_session=True"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], {options})"
    begun = time.monotonic()
    assert doctor.run_bounded([sys.executable, "-c", parent], 5) == "no end within 5 s"
    assert time.monotonic() - begun < 20
    assert (tmp_path / "begun").exists()
    # A killed process runs on for a moment, until the kernel has taken it apart.
    until("the child's end", lambda: not processes_in(tmp_path), 10)


def test_a_command_that_fails_is_told_by_its_error():
    problem = doctor.run_bounded([sys.executable, "-c", "print('a'); raise RuntimeError('no network'); print('b')"], 20)
    assert problem == "exit code 1: RuntimeError: no network"
    assert doctor.run_bounded([sys.executable, "-c", ""], 20) is None


def test_a_tensorflow_that_can_not_be_imported_is_a_finding_and_not_a_traceback(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "job.doctor", "--json", "--runs", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = {each["subject"]: each for each in json.loads(done.stdout)["findings"]}
    assert "libcudart.so.12" in found["TensorFlow's import"]["found"]
    assert found["C++ compiler"]["status"] == "ok" and "Memory" in found


@pytest.mark.parametrize(("settings", "status"), [({"FASHION_KERNELS": "off"}, "ok"), ({}, "warn")])
def test_operations_that_are_not_built_are_a_warning_unless_nobody_wants_them(settings, status, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"} | settings
    script = """
from job import doctor
from job.model.kernels import library
library.SHIPPED = library.SOURCES / "none"  # as in a clone, not as in an image
found = doctor._kernels()
print(found.status, found.found)
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{status} TensorFlow's own operations")


def test_the_table_shows_square_brackets_and_the_way_out(capsys):
    finding = doctor.Finding("GPUs", "warn", "1 in the machine", "Install tensorflow[and-cuda].")
    doctor.Console(width=100).print(doctor.table_of([finding]))
    printed = capsys.readouterr().out
    assert "warn" in printed
    assert "→ Install tensorflow[and-cuda]." in printed
