"""What benchmarks.accuracy and benchmarks.ablation say of runs, and a real one that is stopped and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation, accuracy, tables
from job.config import plain, resolve
from job.environment import processor
from job.errors import RunError

ROOT = Path(__file__).parents[2]
EPOCH = {"seconds": 60.0, "accuracy": 0.9, "resolution": 48}


def run(seed: int, test: float, recipe: str = "fast", **other: Any) -> dict[str, Any]:
    usual = {"recipe": recipe, "precision": "float32", "protocol": "honest", "values": values(recipe), "seconds": 120.0}
    usual |= {"environment": {"processor": "A", "cores": 2}, "weights": "w.h5", "ranks": 1}
    accuracies = {"val_accuracy": 0.95, "test_accuracy": test, "test_accuracy_with_flips": test}
    return usual | accuracies | {"seed": seed, "seconds_to_94_5": 90.0} | other


def values(recipe: str, **changed: Any) -> dict[str, Any]:
    """What a run's line of the record holds of its configuration."""
    return plain(resolve([{"recipe": recipe}])) | changed


def left_by(folder: Path, *, seconds: list[float], accuracies: list[float]) -> Path:
    folder.mkdir()
    lines = [
        json.dumps(EPOCH | {"elapsed": elapsed, "val_accuracy": reached})
        for elapsed, reached in zip(seconds, accuracies, strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    result: dict[str, Any] = {"val_accuracy": 0.95, "test_accuracy": 0.94, "test_accuracy_with_flips": 0.94}
    result |= {"seconds_to_first_step": 7.0, "peak_memory_mib": 1000, "best_epoch": 2, "halvings": []}
    (folder / "result.json").write_text(json.dumps(result | {"seconds": seconds[-1], "epochs": 2, "ranks": 1}))
    environment: dict[str, Any] = {
        "command": "/secret/place",
        "kernels": "of C++ (/there)",
        "processor": "A",
        "cores": 2,
    }
    environment["earlier"] = [{"command": "/secret/too", "processor": "B"}]
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def test_a_run_s_line_tells_what_was_changed_and_no_path(tmp_path: Path) -> None:
    folder = left_by(tmp_path / "run", seconds=[70.0, 131.5], accuracies=[0.944, 0.945])
    config = resolve([{"recipe": "fast", "weights": "/some/where/w.h5", "epochs": 2, "threads": 1, "run": str(folder)}])
    line = accuracy.summary(config, folder, "…")
    assert (line["seconds_to_94_5"], line["weights"], accuracy.changed(line)) == (131.5, "w.h5", {"epochs": 2})
    assert accuracy.kind(line) == ("fast, epochs 2", "B, 2 cores, then A, 2 cores", "w.h5")
    larger = resolve([{"recipe": "fast", "resolution": 56, "stages": [[0.5, 48]], "epochs": 2}])
    assert accuracy.summary(larger, folder, "")["seconds_to_94_5"] is None  # it was there at another resolution alone
    assert "/some" not in json.dumps(line) and "/secret" not in json.dumps(line)


@pytest.mark.parametrize("place", ["/some/where", "../some/where"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_run_s_command_tells_the_names_of_files_alone(place: str, joined: bool) -> None:
    given = [f"--weights={place}/w.h5"] if joined else ["--weights", f"{place}/w.h5"]
    found = accuracy.without_folders([*given, "--precision", "bfloat16", "--data-dir", place])
    assert found == [*(["--weights=w.h5"] if joined else ["--weights", "w.h5"]), *found[len(given) :]]
    assert found[-4:] == ["--precision", "bfloat16", "--data-dir", "where"]


def test_an_option_that_came_after_a_run_was_neutral_in_it() -> None:
    before = {name: value for name, value in values("best").items() if name not in ("erase", "seed", "recipe")}
    assert accuracy.changed(run(1, 0.95, recipe="best", values=before)) == {"erase": 0.0}
    assert accuracy.changed(run(1, 0.95, recipe="best", values=before | {"erase": 0.5, "forgotten": 7})) == {}


def test_runs_of_other_threads_or_operations_are_lines_of_their_own() -> None:
    environment: dict[str, Any] = {
        "processor": "A",
        "cores": 2,
        "threads_per_rank": 2,
        "kernels": "C++ kernels for avx512",
    }
    others: list[dict[str, Any]] = [{}, {"threads_per_rank": 1}, {"kernels": "TensorFlow's own operations"}]
    names = [accuracy.kind(run(1, 0.94, environment=environment | other))[0] for other in others]
    assert names == ["fast", "fast, 1 thread(s) each", "fast, TensorFlow's operations"]


def test_the_protocol_of_2017_has_no_validation_split_to_be_at_94_5_percent_on(tmp_path: Path) -> None:
    folder = left_by(tmp_path / "run", seconds=[70.0, 131.5], accuracies=[0.944, 0.96])
    line = accuracy.summary(resolve([{"recipe": "original", "protocol": "original"}]), folder, "")
    assert line["seconds_to_94_5"] is None
    chosen = "| – (best epoch, by flipped test images: 95.00) | 94.00 (of that epoch) | 94.00 (of that epoch) |"
    for text in (accuracy.table([line]), tables.each_run([line])):
        row, _, shared = text.splitlines()[2:]
        assert row.startswith("| original, protocol original |") and chosen in row and row.endswith("| – |")
        assert shared == "The same in all rows: processor: B, 2 cores, then A, 2 cores; weights: imagenet."
    plainly = accuracy.table([line | {"values": line["values"] | {"flip": False}}])
    assert "by the test images: 95.00" in plainly


def test_runs_of_other_precisions_protocols_and_options_are_lines_of_their_own() -> None:
    others: list[dict[str, Any]] = [
        {"precision": "bfloat16"},
        {"protocol": "original"},
        {"values": values("fast", epochs=9)},
    ]
    others += [
        {"ranks": 2},
        {"environment": {"processor": "B", "cores": 2}},
        {"environment": {"processor": "A", "cores": 4}},
    ]
    others += [{"weights": "others.h5"}]
    runs = [run(1, 0.94), run(2, 0.95), *(run(1, 0.93, **other) for other in others)]
    kinds = [line.split(" | ")[:2] for line in accuracy.table(runs).splitlines()[2:]]
    names = ["fast", "fast, bfloat16", "fast, protocol original", "fast, epochs 9", "fast, 2 ranks"]
    elsewhere = [["| fast", place] for place in ("B, 2 cores", "A, 4 cores", "A, 2 cores")]
    assert kinds == [*([f"| {name}", "A, 2 cores"] for name in names), *elsewhere]
    assert "| fast | A, 2 cores | 2 | 95.00 ± 0.00 | 94.50 ± 0.71 |" in accuracy.table(runs)


def test_recipes_are_compared_on_the_seeds_that_both_have() -> None:
    runs = [run(1, 0.940), run(2, 0.942), run(3, 0.5), run(1, 0.95, recipe="best"), run(2, 0.954, recipe="best")]
    line, _, shared = accuracy.paired(runs).splitlines()[2:]
    assert line == "| best | fast | 2 | +1.10 ± 0.14 |" and "processor: A, 2 cores; weights: w.h5" in shared
    assert accuracy.paired(runs[2:4]) == ""
    chosen = [line | {"protocol": "original"} for line in runs[:2]]
    assert accuracy.paired([*runs[3:], *chosen]) == ""  # by the test images themselves
    elsewhere = [line | {"environment": {"processor": "B", "cores": 2}} for line in runs[:2]]
    assert accuracy.paired([*runs[3:], *elsewhere]) == ""


def test_a_change_is_compared_with_the_recipe_seed_by_seed() -> None:
    rows = [
        {"variant": name, "seed": seed, "val_accuracy": value, "train_accuracy": 0.9, "seconds": 60.0}
        for name, seed, value in [
            ("as it is", 1, 0.94),
            ("as it is", 2, 0.95),
            ("cosine", 1, 0.945),
            ("cosine", 2, 0.955),
        ]
    ]
    lines = ablation.table(rows).splitlines()[2:]
    assert lines[0].startswith("| as it is | 2 | 94.50 ± 0.71 | – |")
    assert lines[1].startswith("| cosine | 2 | 95.00 ± 0.71 | +0.50 ± 0.00 (2) |")
    assert "| 94.75 ± 0.35 | +0.50 (1) |" in ablation.table(
        [rows[0], *rows[2:3], rows[2] | {"seed": 3, "val_accuracy": 0.95}]
    )


def test_an_ablation_s_record_keeps_other_variants_and_seeds() -> None:
    def rows(*measured: tuple[str, int], commit: str) -> list[dict[str, Any]]:
        return [{"variant": name, "seed": seed, "commit": commit} for name, seed in measured]

    earlier = rows(("a former variant", 1), ("cosine", 1), ("as it is", 1), commit="old")
    now = rows(("cosine", 1), ("no dropout", 2), commit="new")
    found = ablation.together(earlier, now, ["as it is", "no dropout", "cosine"])
    assert [(row["variant"], row["commit"]) for row in found] == [
        ("as it is", "old"),
        ("no dropout", "new"),
        ("cosine", "new"),
        ("a former variant", "old"),
    ]
    assert ablation.together([], now, ["no dropout", "cosine"]) == [now[1], now[0]]


def test_an_ablation_of_other_values_does_not_go_into_a_record(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    settings = {"processor": processor(), "recipe": "fast", "values": {"epochs": 9}}
    record.write_text(json.dumps(settings | {"rows": [{"variant": "cosine"}]}))
    command = ["benchmarks.ablation", "--recipe", "fast", "--weights", "none", "--json", str(record)]
    assert "was made with other values. Name another file" in refused(command)
    assert json.loads(record.read_text())["rows"] == [{"variant": "cosine"}]


def test_a_record_takes_the_place_of_the_same_runs_alone() -> None:
    earlier = [run(1, 0.94), run(2, 0.94), run(1, 0.95, recipe="best"), run(1, 0.94, ranks=2)]
    found = accuracy.together(earlier, [run(2, 0.96), run(3, 0.94)])
    told = [(line["recipe"], line["ranks"], line["seed"], line["test_accuracy"]) for line in found]
    assert told == [
        ("fast", 1, 1, 0.94),
        ("fast", 1, 2, 0.96),
        ("fast", 1, 3, 0.94),
        ("fast", 2, 1, 0.94),
        ("best", 1, 1, 0.95),
    ]


def test_the_picture_shows_recipes_as_they_are(tmp_path: Path) -> None:
    epochs = [{"elapsed": 60.0 * n, "val_accuracy": 0.9, "resolution": size} for n, size in ((1, 32), (2, 48))]
    runs = [
        run(1, 0.94, history=epochs),
        run(1, 0.94, values=values("fast", epochs=9)),
        run(1, 0.9, protocol="original"),
    ]
    accuracy.draw(runs, tmp_path / "picture.png")  # those that aren't shown have no history
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_of_metrics_that_was_cut_short_is_no_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": ')
    assert accuracy.history(tmp_path) == [{"epoch": 1}]
    assert accuracy.history(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not there. Make it"),
        ("{", "is no record: "),
        ("[]", "is no record with runs: received []"),
        ('{"runs": [{"recipe": "fast"}]}', "holds something that is no run of a recipe: KeyError("),
    ],
)
def test_a_record_that_is_none_is_told_before_anything_is_trained(
    content: str | None, told: str, tmp_path: Path
) -> None:
    record = tmp_path / "record.json" if content else tmp_path / "nowhere/record.json"
    if content:
        record.write_text(content)
    assert told in refused(["benchmarks.accuracy", "--recipe", "fast", "--json", str(record)])


def test_a_run_that_a_signal_killed_is_told_of_and_is_no_odd_exit_code() -> None:
    assert [accuracy.ended(code) for code in (0, 2, 75)] == [0, 2, 75]
    with pytest.raises(RunError, match="killed by signal 9"):
        accuracy.ended(-9)


@pytest.mark.parametrize("command", [["benchmarks.accuracy", "--recipe", "fast", "--", "--seed", "3"],
                                     ["benchmarks.accuracy", "--recipe", "fast", "--", "--print-config"],
                                     ["benchmarks.accuracy", "--recipe", "no such"],
                                     ["benchmarks.accuracy", "--recipe", "fast", "--seeds", "0"],
                                     ["benchmarks.ablation", "--recipe", "original"]])  # fmt: skip
def test_wrong_options_are_told_in_one_line(command: list[str]) -> None:
    refused(command)


def refused(command: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["benchmarks.accuracy", "benchmarks.ablation"])
def test_a_stopped_command_stops_its_run_which_goes_on_when_it_is_repeated(module: str, tmp_path: Path) -> None:
    record, runs = tmp_path / "record.json", tmp_path / "runs"
    command = [sys.executable, "-m", module, "--recipe", "fast", "--seeds", "1", "--json", str(record)]
    command += ["--folder", str(runs)]
    if module == "benchmarks.accuracy":
        small = ["--dataset", "garments", "--limit-train", "2000", "--limit-eval", "100", "--epochs", "2"]
        command += ["--", "--weights", "none", *small]
    else:
        command += ["--weights", "none", "--epochs", "1", "--variant", "as it is"]
        if not os.environ.get("FASHION_MNIST_DIR"):
            pytest.skip("an ablation is made on the real data: set FASHION_MNIST_DIR")
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/environment.json")):
        assert time.monotonic() < deadline, "no run has begun"
        time.sleep(0.1)
    time.sleep(3)  # into the first epoch, of which it is to lose nothing
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    if module == "benchmarks.accuracy":  # an epoch of the other takes minutes
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        (line,) = json.loads(record.read_text())["runs"]
        assert line["seconds"] > line["history"][-1]["elapsed"] > sum(epoch["seconds"] for epoch in line["history"][1:])
