"""Looking inside a run: profile, timeline, and what its time went on."""

import json
import re
from pathlib import Path

import pytest

SMALL = ["--dataset", "garments", "--weights", "none", "--limit-train", "160", "--limit-eval", "40"]
SMALL += ["--resolution", "32", "--global-batch", "16", "--epochs", "2"]


@pytest.fixture(scope="module")
def looked_into(launch, tmp_path_factory) -> Path:
    """A run on two ranks with a profile and a timeline, beside it `timeline.json` and what was said."""
    folder = tmp_path_factory.mktemp("inside")
    options = ["--profile", "--timeline", folder / "timeline.json", "--run", folder / "run"]
    done = launch(2, "-m", "job.train", *SMALL, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_profile_shows_the_steps_that_were_asked_for(looked_into: Path) -> None:
    (profile,) = (looked_into / "run/tensorboard/plugins/profile").glob("*/*.xplane.pb")
    content = profile.read_bytes()
    assert b"FashionPointwise" in content or b"MatMul" in content
    assert b"train" in content


def test_timeline_shows_every_exchange(looked_into: Path) -> None:
    events = json.loads((looked_into / "timeline.json").read_text())
    names = {event["args"].get("name", "") for event in events if event.get("name") == "process_name"}
    assert any("Allreduce" in name for name in names), names
    steps = 20
    assert [event.get("name") for event in events].count("NEGOTIATE_ALLREDUCE") > steps


def test_timeline_without_horovod_is_refused_in_one_line(launch, tmp_path) -> None:
    done = launch(0, "-m", "job.train", *SMALL, "--run", tmp_path / "run", "--timeline", tmp_path / "timeline.json")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--timeline" in line and "horovodrun" in line


def test_timeline_that_cannot_be_written_is_refused_in_one_line(launch, tmp_path) -> None:
    done = launch(1, "-m", "job.train", *SMALL, "--run", tmp_path / "run", "--timeline", "/nowhere/timeline.json")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "error: --timeline" in line]
    assert "/nowhere/timeline.json can't be written" in line


def test_a_run_tells_what_its_time_went_on(looked_into: Path) -> None:
    result = json.loads((looked_into / "run/result.json").read_text())
    spent = result["timings"]
    assert spent.keys() == {"import", "data", "model", "tracing", "steps", "all_reduce", "evaluation", "saving"}
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) <= result["seconds"]
    before = sum(spent[part] for part in ("import", "data", "model", "tracing"))
    assert before <= result["seconds_to_first_step"] + 0.01 < result["seconds"]
    assert result["peak_memory_mib"] > 100


def test_the_report_shows_where_the_time_went(looked_into: Path) -> None:
    page = re.sub(r"<[^>]*>|\s+", " ", (looked_into / "run/report.html").read_text())
    page = " ".join(page.split())
    for part in (
        "Start: importing libraries",
        "Start: reading the data",
        "Start: making the model",
        "Tracing and compiling",
        "Training steps",
        "Waiting for the exchange of gradients",
        "Evaluation",
        "Saving",
        "Everything else",
    ):
        assert part in page
    assert re.search(r"The first step was done \d+\.\d s after the start", page)


@pytest.mark.slow
def test_horovods_autotuning_finds_free_what_it_tunes(launch, tmp_path, monkeypatch) -> None:
    log = tmp_path / "autotune.csv"
    monkeypatch.setenv("HOROVOD_AUTOTUNE", "1")
    monkeypatch.setenv("HOROVOD_AUTOTUNE_LOG", str(log))
    monkeypatch.setenv("HOROVOD_AUTOTUNE_WARMUP_SAMPLES", "1")
    monkeypatch.setenv("HOROVOD_AUTOTUNE_STEPS_PER_SAMPLE", "3")
    done = launch(2, "-m", "job.train", *SMALL, "--epochs", "6", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    header, *lines = log.read_text().splitlines()
    thresholds = {line.split(",")[header.split(",").index("tensor_fusion_threshold")] for line in lines}
    assert len(thresholds) > 1
