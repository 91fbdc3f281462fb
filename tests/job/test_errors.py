"""How commands end."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import InputError, run_main


def ended(main, capsys, **options):
    with pytest.raises(SystemExit) as end:
        run_main(main, **options)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_code_that_main_returns_is_the_exit_code(code, capsys):
    assert ended(lambda: code, capsys) == (code, "")


def test_an_input_error_is_one_line_and_two(capsys):
    assert ended(raising(InputError("a:\n  received b.")), capsys) == (2, "error: a: received b.\n")


QUIET = """
from job import errors
def main():
    print("begun", flush=True)
    raise errors.InputError("a")
errors.OTHERS_TURN = {seconds}
errors.run_main(main, quiet=True)
"""


@pytest.mark.parametrize(("seconds", "expected"), [(60, (-signal.SIGTERM, "")), (0.5, (2, "error: a\n"))])
def test_a_quiet_rank_leaves_the_line_to_another_that_is_slower_and_tells_it_if_there_is_none(seconds, expected):
    command = [sys.executable, "-c", QUIET.format(seconds=seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        if seconds > 1:
            process.terminate()
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == expected


def test_an_interrupt_is_130_without_a_word(capsys):
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "")


def test_a_full_disk_and_a_refused_permission_are_one_line(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/model.keras")
    code, line = ended(raising(full), capsys)
    assert code == 1 and line.startswith("error: No space left on device: runs/a/model.keras. Free some space")
    refused = PermissionError(errno.EACCES, "Permission denied", "runs")
    code, line = ended(raising(refused), capsys)
    assert code == 2 and line.startswith("error: Permission denied: runs. Change its permissions")


def test_an_impossible_path_is_one_line(capsys):
    code, line = ended(lambda: bool(Path("x" * 300).read_text()), capsys)
    assert code == 2 and line.startswith("error: File name too long: xxx") and line.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a"), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_every_other_exception_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_main(raising(error))
