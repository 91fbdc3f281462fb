"""The books of a search: who has which number, which settings, and which seeds belong together."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from job.errors import InputError
from tests.tune.books import epochs
from tune import records
from tune.records import Journal, groups_of_seeds, summaries, told

POINT = {"learning_rate": 1e-3, "dropout": 0.0, "resolution": 64}


def trial(name: str, **config: Any) -> Any:
    return SimpleNamespace(trial_id=name, config=config, last_result=None)


def test_a_trial_keeps_its_number_when_tune_lists_it_elsewhere(tmp_path: Path) -> None:
    path, (a, b, c) = tmp_path / "trials.parquet", map(trial, "abc")
    journal = Journal(path, "search")
    journal.on_trial_result(1, [a, b], b, {"epoch": 1})
    journal.on_trial_result(2, [a, b], a, {"epoch": 1})
    resumed = Journal(path, "search")
    resumed.on_trial_result(1, [c, b, a], b, {"epoch": 2})
    resumed.on_trial_result(2, [c, b, a], c, {"epoch": 1})
    assert {t.trial: t.number for t in summaries(resumed.rows, "search")} == {"a": 1, "b": 2, "c": 3}
    other = Journal(path, "confirm")
    other.on_trial_result(1, [c], c, {"epoch": 1})
    assert [t.number for t in summaries(other.rows, "confirm")] == [1]


def test_an_epoch_is_booked_with_the_settings_that_it_was_trained_with(tmp_path: Path) -> None:
    journal, copied = Journal(tmp_path / "trials.parquet", "search"), trial("a", dropout=0.9)
    journal.on_trial_result(1, [copied], copied, {"epoch": 1, "config": {"dropout": 0.1}})
    assert json.loads(journal.rows[0]["settings"]) == {"dropout": 0.1}


def test_a_trial_that_goes_back_loses_the_epochs_that_it_gave_up(tmp_path: Path) -> None:
    journal, one = Journal(tmp_path / "trials.parquet", "search"), trial("a")
    for epoch in (1, 2, 3):
        journal.on_trial_result(epoch, [one], one, {"epoch": epoch, "score": epoch / 10})
    journal.on_trial_result(4, [one], one, {"epoch": 2, "score": 0.9})
    (found,) = summaries(Journal(tmp_path / "trials.parquet", "search").rows, "search")
    assert (found.epochs, found.score) == (2, 0.9)


def test_trials_that_tune_has_lost_are_forgotten_or_refused_where_all_that_ended_are(tmp_path: Path) -> None:
    journal, ended, begun = Journal(tmp_path / "trials.parquet", "search"), trial("a"), trial("b")
    journal.on_trial_result(1, [ended, begun], ended, {"epoch": 1, "status": "done"})
    journal.on_trial_result(2, [ended, begun], begun, {"epoch": 1})
    resumed = Journal(tmp_path / "trials.parquet", "search")
    resumed.on_step_begin(1, [ended])
    assert {row["trial"] for row in resumed.rows} == {"a"}
    with pytest.raises(InputError, match="1 ended trial"):
        Journal(tmp_path / "trials.parquet", "search").on_step_begin(1, [trial("c")])


def test_confirmed_settings_stand_by_their_mean_over_all_seeds_and_their_first_seed() -> None:
    lucky, steady = POINT | {"dropout": 0.1}, POINT | {"dropout": 0.2}
    rows = epochs("confirm", 9, {**lucky, "seed": 2}, 3, "done", 0.5)  # its other seed diverged
    for seed in (2, 1):
        rows += epochs("confirm", seed, {**steady, "seed": seed}, 3, "done", 0.01 * seed)
    groups = groups_of_seeds(summaries(rows, "confirm"))
    assert [[t.settings["seed"] for t in group] for group in groups] == [[1, 2], [2]]
    scores = [t.score for t in groups[0]]
    assert scores[0] < scores[1]
    assert told(groups[0]) == f"{sum(scores) / 2:.4f} ± {0.01 / 2**0.5:.4f} over 2 seeds"
    assert told(groups[1]) == f"{groups[1][0].score:.4f}"


def test_a_trial_without_a_whole_epoch_is_not_confirmed() -> None:
    rows = epochs("confirm", 1, {**POINT, "seed": 1}, 1, "done")
    rows[0] |= {"epoch": 0, "problem": "no epoch ended in time"}
    assert groups_of_seeds(summaries(rows, "confirm")) == []


def test_a_failed_trial_that_is_tried_again_has_not_ended(tmp_path: Path) -> None:
    path, one = tmp_path / "trials.parquet", trial("a")
    (tmp_path / "error.txt").write_text("Traceback …\nOSError: the disk is gone\n")
    one.error_file, one.last_result = str(tmp_path / "error.txt"), {"epoch": 1}
    journal = Journal(path, "search")
    journal.on_trial_result(1, [one], one, {"epoch": 1, "score": 0.5})
    journal.on_trial_error(2, [one], one)
    (row,) = Journal(path, "search").rows
    assert (row["status"], row["problem"], row["score"]) == ("failed", "OSError: the disk is gone", 0.5)
    resumed = Journal(path, "search")
    resumed.on_trial_start(1, [one], one)
    (row,) = Journal(path, "search").rows
    assert (row["status"], row["problem"], row["score"]) == ("running", None, 0.5)


def test_books_that_cannot_be_written_are_no_trial_s_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, one = Journal(tmp_path / "trials.parquet", "search"), trial("a")
    one.last_result = {"epoch": 1, "status": "done"}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", full)
        journal.on_trial_result(1, [one], one, {"epoch": 1, "status": "done"})
        journal.on_trial_complete(1, [one], one)
        with pytest.raises(OSError, match="No space left"):
            journal.on_step_begin(2, [one])
    journal.on_trial_complete(2, [one], one)
    journal.on_step_begin(3, [one])
    assert [row["status"] for row in Journal(journal.path, "search").rows] == ["done"]
