"""The launcher as a command: options, places of ranks, lines of output. Quick commands in place of training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_keras.launch import main, parse
from tests.horovod_keras.pods import ROOT, Pods, free_port, script


def test_each_rank_knows_its_place(pods: Pods) -> None:
    names = ["RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"]
    pods.start_all(script("echo place " + " ".join(f"$HOROVOD_{n}" for n in names)), "--ranks-per-pod", "2")
    assert pods.codes(10) == [0, 0]
    places = re.findall(r"^\[(\d)\] place (.*)$", pods.log(0) + pods.log(1), re.MULTILINE)
    assert sorted(places) == [
        ("0", "0 4 0 2 0 2"), ("1", "1 4 1 2 0 2"), ("2", "2 4 0 2 1 2"), ("3", "3 4 1 2 1 2"),
    ]  # fmt: skip


def test_pods_with_different_numbers_of_ranks_form_one_world(pods: Pods) -> None:
    command = script("echo place $HOROVOD_RANK $HOROVOD_LOCAL_SIZE $HOROVOD_CROSS_SIZE")
    pods.start(0, command, "--ranks-per-pod", "1")
    pods.start(1, command, "--ranks-per-pod", "2")
    assert pods.codes(10) == [0, 0]
    assert sorted(re.findall(r"place (.*)", pods.log(0) + pods.log(1))) == ["0 1 2", "1 2 2", "2 2 1"]


def test_lines_are_labelled_by_rank_and_those_of_a_single_rank_pass_unchanged(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "horovod_keras.launch"]
    say = ["--", "sh", "-c", "echo out; echo err >&2; printf unfinished"]
    many = subprocess.run([*run, "--ranks-per-pod", "2", *say], capture_output=True, text=True, cwd=ROOT)
    one = subprocess.run([*run, *say], capture_output=True, text=True, cwd=ROOT)
    lines = ["[0] out", "[0] unfinished", "[1] out", "[1] unfinished"]
    assert (many.returncode, sorted(many.stdout.splitlines())) == (0, lines)
    assert {"[0] err", "[1] err"} <= set(many.stderr.splitlines())
    assert (one.returncode, one.stdout) == (0, "out\nunfinished")


def test_what_a_rank_has_started_ends_with_it(pods: Pods) -> None:
    pods.start_all(script("sleep 1000 & sleep 0.2"))
    assert pods.codes(8) == [0, 0]


def test_starting_takes_no_tensorflow() -> None:
    code = "import sys, horovod_keras.launch as l; sys.exit(l.main(['--', 'true']) or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no command"),
        (["--pods", "2", "--", "true"], "--pod-index is missing"),
        (["--pods", "2", "--pod-index", "2", "--", "true"], "--pod-index must be from 0 to 1"),
        (["--pods", "2", "--pod-index", "1", "--", "true"], "--coordinator is missing"),
        (["--pods", "2", "--pod-index", "1", "--coordinator", "a", "--", "true"], "at least 16 bytes"),
        (["--pods", "0", "--", "true"], "--pods must be at least 1"),
        (["--pods", "many", "--", "true"], "invalid int value"),
        (["--ranks-per-pod", "0", "--", "true"], "--ranks-per-pod must be"),
        (["--interface", "none0", "--", "true"], "none0"),
        (["--address", "192.0.2.1", "--", "true"], "192.0.2.1"),
        (["--grace", "nan", "--", "true"], "--grace must be"),
        (["--port", "70000", "--", "true"], "--port must be"),
        (["--secret-file", "/no", "--pods", "2", "--pod-index", "0", "--address", "127.0.0.1", "--", "true"], "/no"),
        (["--address", "fd00::1", "--", "true"], "must be an IPv4 address"),
        (["--heartbeat-timeout", "1", "--", "true"], "three heart-beats"),
        (["--", "/no/such/command"], "can't run '/no/such/command'"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_2_and_one_line(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in os.environ if n.startswith("HOROVOD_")]:
        monkeypatch.delenv(name)
    assert main(arguments) == 2
    errors = [text for text in capfd.readouterr().err.splitlines() if "error: " in text]
    assert len(errors) == 1 and line in errors[0]


def test_an_interface_is_of_the_ranks_and_of_the_address_if_none_is_given() -> None:
    given = ["--interface", "lo", "--", "true"]
    assert (parse(given, {}).interface, parse(given, {}).address) == ("lo", "127.0.0.1")
    both = parse(["--address", "10.1.2.3", *given], {})
    assert (both.interface, both.address) == ("lo", "10.1.2.3")  # as in a pod with a second network


def test_a_secret_is_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(bytes(range(128, 160)) + b"\n")
    options = ["--pods", "2", "--pod-index", "0", "--address", "127.0.0.1", "--secret-file", str(file), "--", "true"]
    assert parse(options, {}).secret == bytes(range(128, 160))


def test_options_come_from_a_kubernetes_job_too(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "JOB_COMPLETION_INDEX": "0",
        "HOROVOD_LAUNCH_PODS": "1",
        "HOROVOD_LAUNCH_RANKS_PER_POD": "3",
        "HOROVOD_LAUNCH_ADDRESS": "127.0.0.1",
        "HOROVOD_LAUNCH_PORT": str(port),
        "HOROVOD_LAUNCH_JOB_UID": "d8a1c1de-0000-4000-8000-000000000000",
    }
    command = [sys.executable, "-m", "horovod_keras.launch", "--", "sh", "-c", "env | grep ADDR"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0 and run.stdout.count(f"127.0.0.1:{port + 1}/") == 3


def test_a_job_s_pod_may_train_on_its_own_whatever_its_number() -> None:
    job = {"JOB_COMPLETION_INDEX": "3"}
    assert parse(["--", "true"], job).pod_index == 0
    several = ["--pods", "4", "--coordinator", "a", "--", "true"]
    assert parse(several, job | {"HOROVOD_LAUNCH_SECRET": "0123456789abcdef"}).pod_index == 3


def test_an_interface_that_the_user_has_set_for_nccl_counts_where_none_is_given() -> None:
    environment = os.environ | {"NCCL_SOCKET_IFNAME": "ib0"}
    for options, found in (([], "ib0 lo\n"), (["--interface", "lo"], "lo lo\n")):
        command = [sys.executable, "-m", "horovod_keras.launch", *options, "--"]
        command += ["sh", "-c", "echo $NCCL_SOCKET_IFNAME $HOROVOD_GLOO_IFACE"]
        assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment).stdout == found
