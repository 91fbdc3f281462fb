"""The launcher's logic, with quick commands in place of training: several pods on this machine's loopback interface."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from horovod_keras.launch import main
from tests.horovod_keras.pods import ROOT, SECRET, Pods, free_port, until

FOREVER = ["sleep", "1000"]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path) as made:
        yield made
    until("all processes of the world are gone", lambda: not made.running(), 3)


def script(text: str) -> list[str]:
    return ["sh", "-c", text]


def first_time_only(what: str) -> list[str]:
    """Rank 1 does something in the first world only; else each rank works for a moment and ends well."""
    return script(f"if [ $HOROVOD_RANK = 1 ] && mkdir once 2>/dev/null; then sleep 0.7; {what}; fi; sleep 0.7")


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


@pytest.mark.parametrize("how", ["kill -9 $$", pytest.param("exit 1", marks=pytest.mark.slow)])
def test_after_a_lost_rank_the_world_forms_again_with_a_new_rendezvous(pods: Pods, how: str) -> None:
    command = first_time_only(how)
    command[-1] = "echo at $HOROVOD_GLOO_RENDEZVOUS_ADDR; " + command[-1]
    pods.start_all(command)
    assert pods.codes(10) == [0, 0]
    assert "rank 1 " in pods.log(0) and "(pod 1)" in pods.log(0) and "restart 1 of 3" in pods.log(0)
    addresses = re.findall(r"at (\S+)", pods.log(0))
    assert len(addresses) == 2 and addresses[0] != addresses[1]


def test_ranks_that_fail_each_time_end_with_1_after_the_last_restart(pods: Pods) -> None:
    pods.start_all(script("test $HOROVOD_RANK = 0 && sleep 1000"), "--max-restarts", "1")
    assert pods.codes(10) == [1, 1]
    assert pods.log(0).count("world ") - pods.log(0).count("stopping world ") == 2
    assert "all 1 restart(s) are used" in pods.log(0)


def test_exit_2_ends_all_at_once_and_without_a_restart_though_others_fail_of_it(pods: Pods) -> None:
    pods.start_all(
        script("test $HOROVOD_RANK = 1 && { touch bad; exit 2; }; until test -e bad; do sleep 0.01; done; exit 1")
    )
    assert pods.codes(8) == [2, 2]
    assert "restart" not in pods.log(0)


def test_exit_75_ends_all_with_75(pods: Pods) -> None:
    pods.start_all(script("test $HOROVOD_RANK = 1 && sleep 0.3; exit 75"))
    assert pods.codes(8) == [75, 75]


@pytest.mark.parametrize("pod", [0, 1])
def test_sigterm_to_one_launcher_lets_all_ranks_save_and_ends_all_with_75(pods: Pods, pod: int) -> None:
    pods.start_all(
        script("trap 'sleep 1; touch saved-$HOROVOD_RANK; exit 75' TERM; touch up-$HOROVOD_RANK; sleep 1000 & wait")
    )
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].terminate()
    assert pods.codes(8) == [75, 75]
    assert len(list(pods.folder.glob("saved-*"))) == 2


def test_sigterm_while_waiting_for_others_ends_with_75(pods: Pods) -> None:
    pods.start(0, FOREVER)
    until("it waits", lambda: "1 of 2 pods" in pods.log(0), 5)
    pods.processes[0].terminate()
    assert pods.code(0, 3) == 75


@pytest.mark.slow
def test_a_rank_that_ignores_sigterm_is_killed_when_the_grace_is_over(pods: Pods) -> None:
    pods.start_all(script("trap '' TERM; touch up-$HOROVOD_RANK; while :; do sleep 0.1; done"), "--grace", "1")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].terminate()
    assert pods.codes(8) == [75, 75]


@pytest.mark.parametrize("pod", [0, 1])
def test_a_preempted_pod_that_is_replaced_finds_the_others_waiting(pods: Pods, pod: int) -> None:
    command = script("trap 'exit 75' TERM; mkdir up-$HOROVOD_RANK || exit 0; sleep 1000 & wait")
    pods.start_all(command, "--rejoin", "--max-restarts", "0")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].terminate()
    assert pods.code(pod, 6) == 75
    time.sleep(1)
    assert pods.processes[1 - pod].poll() is None
    pods.start(pod, command, "--rejoin", "--max-restarts", "0")
    assert pods.codes(8) == [0, 0]


def test_a_preempted_pod_that_is_replaced_before_the_others_have_stopped_is_taken_in(pods: Pods) -> None:
    command = script(
        "trap 'test $HOROVOD_RANK = 1 || sleep 2; exit 75' TERM; mkdir up-$HOROVOD_RANK || exit 0; sleep 1000 & wait"
    )
    pods.start_all(command, "--rejoin")
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    # Rank 0 takes two seconds to save: pod 1's successor is there before that.
    pods.processes[1].terminate()
    assert pods.code(1, 1.5) == 75
    pods.start(1, command, "--rejoin")
    assert pods.codes(10) == [0, 0]


@pytest.mark.slow
def test_a_preempted_pod_that_is_not_replaced_lets_the_others_end_with_75(pods: Pods) -> None:
    pods.start_all(
        script("trap 'exit 75' TERM; touch up-$HOROVOD_RANK; sleep 1000 & wait"), "--rejoin", "--start-timeout", "3"
    )
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].terminate()
    assert pods.codes(10) == [75, 75]
    assert "waited 3 s for pod 1" in pods.log(0)


@pytest.mark.parametrize("pod", [0, 1])
def test_a_killed_pod_takes_its_ranks_along_and_its_successor_is_taken_in(pods: Pods, pod: int) -> None:
    command = script("mkdir up-$HOROVOD_RANK || exit 0; exec sleep 1000")
    pods.start_all(command)
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[pod].kill()
    until("its rank is gone", lambda: len(pods.ranks()) <= 1, 1)
    until("the other's rank is gone", lambda: not pods.ranks(), 8)
    pods.start(pod, command)
    assert pods.codes(10) == [0, 0]


@pytest.mark.parametrize("pod", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_pod_that_does_not_come_back_is_named_and_the_others_end_with_1(pods: Pods, pod: int) -> None:
    pods.start_all(FOREVER, "--start-timeout", "2.5")
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)
    pods.processes[pod].kill()
    assert pods.code(1 - pod, 12) == 1
    assert re.search(rf"waited [\d.]+ s for pod {pod}\b", pods.log(1 - pod))


def test_a_launcher_that_stood_still_is_taken_in_again(pods: Pods) -> None:
    pods.start_all(script("mkdir up-$HOROVOD_RANK || exit 0; exec sleep 1000"))
    until("both ranks run", lambda: len(list(pods.folder.glob("up-*"))) == 2, 8)
    pods.processes[1].send_signal(signal.SIGSTOP)
    until("it is missed", lambda: "has not been heard of" in pods.log(0), 6)
    pods.processes[1].send_signal(signal.SIGCONT)
    assert pods.codes(10) == [0, 0]


@pytest.mark.parametrize("late", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_pod_that_comes_late_is_waited_for(pods: Pods, late: int) -> None:
    pods.start(1 - late, ["true"])
    time.sleep(2)
    pods.start(late, ["true"])
    assert pods.codes(8) == [0, 0]


@pytest.mark.parametrize("absent", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_pod_that_never_comes_is_named(pods: Pods, absent: int) -> None:
    pods.start(1 - absent, ["true"], "--start-timeout", "2")
    assert pods.code(1 - absent, 8) == 1
    assert re.search(rf"waited \d s for pod {absent}", pods.log(1 - absent))


def test_a_name_that_does_not_resolve_is_named(pods: Pods) -> None:
    pods.start(1, ["true"], "--coordinator", "nowhere.invalid", "--start-timeout", "2")
    assert pods.code(1, 10) == 1
    assert "pod 0 at nowhere.invalid" in pods.log(1) and "resolve" in pods.log(1)


def test_a_wrong_secret_is_refused_and_never_shown(pods: Pods) -> None:
    pods.start(0, script("env"), "--start-timeout", "4")
    pods.start(1, script("env"), "--start-timeout", "3", secret="another-secret-0123456789")
    assert pods.codes(12) == [1, 2]
    assert "refused a request from 127.0.0.1" in pods.log(0)
    assert "refuses this launcher" in pods.log(1)


def test_the_secret_is_in_no_command_line_log_or_rank(pods: Pods) -> None:
    pods.start_all(script("env; exec sleep 1000"))
    until("both ranks show their environment", lambda: all("RANK" in pods.log(pod) for pod in range(2)), 8)
    shown = [" ".join(process.cmdline()) for process in pods.running()]
    for process in pods.ranks():
        shown += process.environ().values()
    shown += [pods.log(0), pods.log(1)]
    assert "HOROVOD_RANK" in pods.log(0) and not any(SECRET in text for text in shown)


def test_what_is_not_signed_or_without_the_token_is_refused(pods: Pods) -> None:
    pods.start_all(FOREVER)
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)

    def status(port: int, method: str, path: str, body: bytes = b"") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
        connection.request(method, path, body)
        return connection.getresponse().status

    assert status(pods.port, "POST", "/", b'{"pod": 1}') == 403
    assert status(pods.port, "POST", "/", b"") == 413
    for path in ("/global/0", "/0123456789abcdef/global/0", "//global/0"):
        assert status(pods.port + 1, "GET", path) == 403
        assert status(pods.port + 1, "PUT", path, b"evil") == 403
        assert status(pods.port + 1, "DELETE", path) == 403
    assert all(process.poll() is None for process in pods.processes.values())


def test_the_services_listen_on_their_own_interface_only(pods: Pods) -> None:
    pods.start_all(FOREVER)
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)
    listening = psutil.Process(pods.processes[0].pid).net_connections("tcp")
    assert {c.laddr for c in listening if c.status == "LISTEN"} == {
        ("127.0.0.1", pods.port), ("127.0.0.1", pods.port + 1),
    }  # fmt: skip


def test_a_pod_started_for_another_number_of_pods_is_turned_away(pods: Pods) -> None:
    pods.start(0, ["true"], "--start-timeout", "3")
    pods.start(1, ["true"], "--pods", "3")
    assert pods.code(1, 8) == 2
    assert "3 pods" in pods.log(1)


def test_a_world_of_another_size_than_wanted_ends_all_with_2(pods: Pods) -> None:
    pods.start_all(["true"], "--ranks-per-pod", "2", "--world-size", "8")
    assert pods.codes(8) == [2, 2]
    assert "bring 2, 2 rank(s), 4 in all" in pods.log(0)


def test_two_launchers_that_claim_to_be_the_same_pod(pods: Pods) -> None:
    pods.start_all(FOREVER)
    until("both ranks run", lambda: len(pods.ranks()) == 2, 8)
    first = pods.processes[1]
    pods.start(1, ["true"])
    assert first.wait(10) == 1
    assert "another launcher has come as pod 1" in pods.log(1)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with Pods(tmp_path / "a") as first, Pods(tmp_path / "b") as second:
        for pods in (first, second):
            pods.folder.mkdir()
        second.port = first.port
        first.start(0, ["true"])
        until("the first listens", lambda: "1 of 2 pods" in first.log(0), 5)
        second.start(0, ["true"])
        assert second.code(0, 5) == 1
        assert f"can't listen on ports {first.port}" in second.log(0)


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


@pytest.mark.slow
def test_ranks_that_do_not_end_after_the_first_has_ended_well_are_named(pods: Pods) -> None:
    options = ("--finish-timeout", "1", "--max-restarts", "0")
    pods.start_all(script("test $HOROVOD_RANK = 0 || sleep 1000"), *options)
    assert pods.codes(10) == [1, 1]
    assert re.search(r"rank 1 on \S+ \(pod 1\) did not end within 1 s", pods.log(0))


def test_starting_takes_no_tensorflow_and_less_than_a_second(tmp_path: Path) -> None:
    code = "import sys, horovod_keras.launch as l; l.main(['--', 'true']); sys.exit('tensorflow' in sys.modules)"
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert time.monotonic() - start < 2  # 0.3 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no command"),
        (["--pods", "2", "--", "true"], "--pod-index is missing"),
        (["--pods", "2", "--pod-index", "2", "--", "true"], "--pod-index must be from 0 to 1"),
        (["--pods", "2", "--pod-index", "1", "--", "true"], "--coordinator is missing"),
        (["--pods", "2", "--pod-index", "1", "--coordinator", "a", "--", "true"], "at least 16 characters"),
        (["--pods", "0", "--", "true"], "--pods must be at least 1"),
        (["--pods", "many", "--", "true"], "invalid int value"),
        (["--ranks-per-pod", "0", "--", "true"], "--ranks-per-pod must be"),
        (["--interface", "none0", "--", "true"], "none0"),
        (["--address", "192.0.2.1", "--", "true"], "192.0.2.1"),
        (["--grace", "nan", "--", "true"], "--grace must be"),
        (["--port", "70000", "--", "true"], "--port must be"),
        (["--secret-file", "/nowhere", "--pods", "2", "--pod-index", "0", "--address", "::", "--", "true"], "/nowhere"),
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
