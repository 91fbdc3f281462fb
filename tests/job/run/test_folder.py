"""The run folder after something was cut off while it was written."""

import pytest

from job.config import resolve
from job.environment import environment
from job.errors import InputError
from job.run.checkpoints import Position
from job.run.folder import RunFolder


def begun(path) -> RunFolder:
    """A run that has a checkpoint."""
    folder = RunFolder(resolve([{"run": path}]), "data")
    folder.checkpoints.save({}, Position(epoch=1))
    folder.checkpoints.wait()
    return folder


def test_a_line_of_metrics_that_was_cut_is_dropped(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    folder.append_metrics({"epoch": 1})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "lo')
    folder.keep_metrics_before(2)
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"epoch": "x"}', b'{"epoch": Infinity}', b"[" * 100_000])
def test_lines_of_metrics_that_nobody_wrote_are_dropped(tmp_path, line) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / "metrics.jsonl").write_bytes(line + b'\n{"epoch": 1}\n')
    folder.keep_metrics_before(2)
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [("result.json", "[1]"), ("result.json", '{"a": 1}'), ("result.json", "\xff"), ("halvings.json", "5")],
)
def test_a_file_that_holds_something_else_is_named_with_what_to_do(tmp_path, name, text) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"{name} is damaged: .* remove it to go on without"):
        folder.result() if name == "result.json" else folder.halvings()


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, name) -> None:
    folder = begun(tmp_path / "run")
    path = folder.path
    (path / name).write_text('{"status": [')
    with pytest.raises(InputError, match=name) as raised:
        if name == "result.json":
            folder.result()
        else:
            del folder  # its lock
            RunFolder(resolve([{"run": path}]), "data")
    assert "\n" not in str(raised.value)


def test_another_run_is_refused_only_where_there_is_something_to_lose(tmp_path) -> None:
    path = tmp_path / "run"
    RunFolder(resolve([{"run": path}]), "data")
    folder = RunFolder(resolve([{"run": path, "dropout": 0.3}]), "data")
    folder.checkpoints.save({}, Position(epoch=1))
    folder.checkpoints.wait()
    del folder
    with pytest.raises(InputError, match=r"--dropout is 0\.3 there, 0\.5 now"):
        RunFolder(resolve([{"run": path}]), "data")


def test_halvings_of_a_run_without_a_checkpoint_do_not_reach_another(tmp_path) -> None:
    path = tmp_path / "run"
    RunFolder(resolve([{"run": path, "learning_rate": 10.0}]), "data").note_halving({"epoch": 1})
    with pytest.raises(InputError, match=r"--learning-rate is 10\.0 there, 0\.001 now"):
        RunFolder(resolve([{"run": path}]), "data")


@pytest.mark.parametrize("name", ["result.json", "halvings.json", "metrics.jsonl"])
def test_a_file_of_any_size_takes_no_memory(tmp_path, name) -> None:
    folder = begun(tmp_path / "run")
    with (folder.path / name).open("wb") as file:
        file.truncate(1 << 40)
    read = {"result.json": folder.result, "halvings.json": folder.halvings}
    with pytest.raises(InputError, match=f"{name} is damaged: it has more than"):
        read.get(name, lambda: folder.keep_metrics_before(1))()


def test_a_folder_that_cannot_be_made_is_an_input_error() -> None:
    with pytest.raises(InputError, match="can't be used"):
        RunFolder(resolve([{"run": "/proc/x"}]), "data")


def test_the_configuration_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("site: mine\n")
    with pytest.raises(InputError, match=r"config.yaml of something else. Choose another with --run"):
        RunFolder(resolve([{"run": tmp_path}]), "data")
    assert (tmp_path / "config.yaml").read_text() == "site: mine\n"


def test_a_finished_run_whose_configuration_is_gone_is_not_taken_for_this_one(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    folder.write_json("result.json", {"status": "done"})
    path = folder.path
    del folder  # and its lock
    (path / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"lacks the config.yaml of its run"):
        RunFolder(resolve([{"run": path}]), "data")


def test_a_machine_without_git_has_no_commit_to_note(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FASHION_REVISION", raising=False)  # an image has it
    assert environment(ranks=1, threads=1, kernels="")["commit"] is None
