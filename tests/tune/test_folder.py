"""A search's folder: one search in it, one process at a time, and how it says what made it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from job.errors import InputError
from tests.tune.books import make_folder
from tune import folder
from tune.folder import (
    WINNER,
    claim,
    command,
    complete,
    decided,
    described,
    has_state,
    held,
    keep_state,
    put_back,
    storage,
    won,
)
from tune.settings import parse


def test_a_folder_of_another_search_is_refused_and_left_alone(tmp_path: Path) -> None:
    make_folder(tmp_path)
    before = (tmp_path / "sweep.yaml").read_bytes()
    same = ["--out", str(tmp_path), "--vary", "global_batch=64,128", "--vary", "resolution=32..96", "--epochs", "6"]
    claim(parse([*same, "--trials", "24"]))
    for argv, named in (
        (["--trials", "4"], "trials is 24 there, 4 now"),
        (["--trials", "24", "--vary", "dropout=0..0.1"], "dropout is '0..0.8' there"),
        (["--trials", "24", "--dataset", "garments"], "dataset is None there, 'garments' now"),
    ):
        with pytest.raises(InputError, match=named):
            claim(parse([*same, *argv]))
    assert (tmp_path / "sweep.yaml").read_bytes() == before


def test_a_search_that_never_began_makes_room_for_a_corrected_one(tmp_path: Path) -> None:
    claim(parse(["--out", str(tmp_path), "--trials", "3"]))
    claim(parse(["--out", str(tmp_path), "--trials", "4"]))
    assert yaml.safe_load((tmp_path / "sweep.yaml").read_text())["trials"] == 4
    (tmp_path / "search" / "experiment_state-1.json").write_text("{}")
    with pytest.raises(InputError, match="trials is 4 there, 5 now"):
        claim(parse(["--out", str(tmp_path), "--trials", "5"]))


def test_resume_reads_the_same_search_back_and_takes_few_options(tmp_path: Path) -> None:
    values = ["--vary", "input_range=0..1,-1..1", "--vary", "stages=[],[[0.4,32]]", "--vary", "flip=true,false"]
    argv = ["--out", str(tmp_path), *values, "--limit-train", "100", "--epochs", "3", "--address", "head:6379"]
    claim(parse(argv))
    again = parse(["--resume", str(tmp_path), "--max-failures", "5"])
    claim(again)
    assert again.identity() == parse([*argv, "--max-failures", "5"]).identity()
    assert again.settings.max_failures == 5 and again.settings.address == "head:6379"
    for wrong, message in (
        (["--trials", "9"], "received --trials with --resume"),
        (["--out", "elsewhere"], "received --out with --resume"),
        (["--max-failures", "x"], "option max_failures"),
    ):
        with pytest.raises(InputError, match=message):
            parse(["--resume", str(tmp_path), *wrong])
    (tmp_path / "sweep.yaml").write_text("trials: 3\n")
    with pytest.raises(InputError, match="lacks `space` or `job`"):
        parse(["--resume", str(tmp_path)])


def test_sweep_yaml_is_plain_yaml(tmp_path: Path) -> None:
    claim(parse(["--out", str(tmp_path), "--data-dir", str(tmp_path)]))
    kept = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert kept["space"]["learning_rate"] == "0.0001..0.01 log"
    assert kept["job"]["data_dir"] == str(tmp_path)


def test_one_search_at_a_time_works_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(folder, "LOST_LOCK", 0.2)
    with held(tmp_path / "s"), pytest.raises(InputError, match="in use by another search"), held(tmp_path / "s"):
        pass
    assert "is in use; trying for 0 s: a lost machine may have held it" in capsys.readouterr().out
    with held(tmp_path / "s"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be used"), held(tmp_path / "file"):
        pass


def test_storage_that_cannot_be_used_and_a_damaged_state_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "nothing://here"):
        with pytest.raises(InputError, match="the storage can't be used") as raised:
            has_state(parse(["--out", str(tmp_path), "--storage", place]).settings, "search")
        assert "\n" not in str(raised.value)
    settings = parse(["--out", str(tmp_path)]).settings
    assert not has_state(settings, "search")
    (tmp_path / "search" / "experiment_state-1.json").write_text("{}")
    assert has_state(settings, "search")
    put_back(settings, "search")
    assert (tmp_path / "search" / "experiment_state-1.json").read_text() == "{}"
    (tmp_path / ".search-state.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"\.search-state\.zip is damaged"):
        put_back(settings, "search")


def test_tune_finds_its_state_as_it_was_kept_whatever_became_of_its_notes(tmp_path: Path) -> None:
    settings = parse(["--out", str(tmp_path)]).settings
    kinds = ("experiment_state-{}.json", "search_gen_state-{}.json", "searcher-state-{}.pkl")
    staging, there = tmp_path / "staging", tmp_path / "search"
    staging.mkdir()
    for session in ("2026-01-01_10-00-00", "2026-01-02_09-00-00"):
        for kind in kinds:
            (staging / kind.format(session)).write_text(session)
        (staging / f".0-tmp-{kinds[1].format(session)}").write_text("half")
        keep_state(settings, "search", str(staging), session)
    assert not has_state(settings, "search")  # nothing has reached the storage
    (there / kinds[0].format("2026-01-03_00-00-00")).write_text('{"trial_data": [')
    (there / kinds[2].format("2026-01-02_09-00-00")).write_text("older")
    assert has_state(settings, "search")
    put_back(settings, "search")
    put_back(settings, "search")
    for kind in kinds:  # Tune takes the last by name
        assert max(there.glob(kind.format("*"))).read_text() == "2026-01-02_09-00-00"
    assert not list(there.glob(".0-tmp*"))


def test_each_part_of_a_search_says_how_it_was_made_and_how_long_it_took(tmp_path: Path) -> None:
    settings = parse(["--out", str(tmp_path)]).settings
    with pytest.raises(KeyboardInterrupt), described(settings):
        raise KeyboardInterrupt
    with described(settings):
        pass
    with described(settings):
        parts = json.loads((tmp_path / "environment.json").read_text())
        assert parts[-1]["seconds"] is None  # as it stays if the process is killed
        assert command(tmp_path) == parts[0]["command"]
    parts = json.loads((tmp_path / "environment.json").read_text())
    assert len(parts) == 3 and all(part["seconds"] >= 0 for part in parts)
    assert all({"command", "commit", "processor", "cores", "libraries", "seconds"} <= part.keys() for part in parts)


def test_each_search_has_a_folder_of_its_own_in_a_shared_storage(tmp_path: Path) -> None:
    shared = ["--storage", str(tmp_path / "shared")]
    one, two = (parse(["--out", str(tmp_path / place / "s"), *shared]) for place in ("a", "b"))
    places: list[str] = []
    for search in (one, two, one):
        if search is one and places:  # its folder is removed, and the same search begun anew
            shutil.rmtree(search.settings.out)
        search.settings.out.mkdir(parents=True)
        claim(search)
        places.append(storage(search.settings))
        Path(places[-1], "search").mkdir(parents=True)
        Path(places[-1], "search/experiment_state-1.json").write_text("{}")
        claim(search)
        assert storage(search.settings) == places[-1]
    assert len({*places}) == 3 and all(place.startswith(f"{tmp_path}/shared/s-") for place in places)


@pytest.mark.parametrize("removed", ["trials.parquet", "sweep.yaml"])
def test_another_search_in_the_folder_of_one_that_was_removed_has_none_of_its_results(
    tmp_path: Path, removed: str
) -> None:
    make_folder(tmp_path)
    (tmp_path / ".search-state.zip").write_bytes(b"of the one before")
    settings = parse(["--out", str(tmp_path)]).settings
    decided(tmp_path, WINNER, lambda: "search-1")
    assert complete(settings)
    (tmp_path / removed).unlink()
    claim(parse(["--out", str(tmp_path)]))
    (tmp_path / "trials.parquet").write_bytes(b"")
    assert not complete(settings) and not (tmp_path / ".search-state.zip").exists()
    # Where there is no sign of a search, `best.yaml` may be somebody's own.
    assert (tmp_path / "best.yaml").exists() == (removed == "sweep.yaml")


def test_what_was_decided_once_stays_decided_until_another_search_begins(tmp_path: Path) -> None:
    claim(parse(["--out", str(tmp_path)]))
    assert not won(tmp_path)
    assert decided(tmp_path, WINNER, lambda: "a") == "a" == decided(tmp_path, WINNER, lambda: "b")
    assert won(tmp_path)
    (tmp_path / f".{WINNER}.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        decided(tmp_path, WINNER, lambda: "c")
    claim(parse(["--out", str(tmp_path), "--trials", "3"]))
    assert decided(tmp_path, WINNER, lambda: "d") == "d"
