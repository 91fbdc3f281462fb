"""The page of a search, from its books alone."""

import html.parser
import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import InputError
from job.run.report import duration
from tests.tune.books import epochs, make_folder
from tests.tune.searches import ROOT
from tune.charts import pareto
from tune.folder import claim
from tune.records import candidates, ranked, summaries, write
from tune.report import importance, write_report
from tune.settings import parse


class Page(html.parser.HTMLParser):
    """What a test asks a page: its ids, its pictures' descriptions, what it would load, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.pictures: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-label" and dict(attrs).get("role") == "img":
                self.pictures.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_all_that_was_asked_and_asks_for_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert len(page.ids) == len(set(page.ids)) and not page.loads
    for wanted in (
        "against learning_rate",
        "against resolution",
        "against global_batch",
        "Parallel coordinates",
        "against cost; on the front",
        "stopped early; best",
        "Importance of each parameter",
        "Means over seeds",
    ):
        assert any(wanted in picture for picture in page.pictures), wanted
    assert "diverged: the loss became nan" in page.text
    assert "90.12" in page.text


def test_a_search_that_has_barely_begun_has_a_page_too(tmp_path: Path) -> None:
    rows = make_folder(tmp_path, confirmed=0)
    write(tmp_path / "trials.parquet", [row for row in rows if row["number"] == 1])
    assert "Best validation accuracy" in Page(write_report(tmp_path).read_text()).text


def test_no_epoch_and_no_search_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no search there"):
        write_report(tmp_path)
    rows = make_folder(tmp_path)
    write(tmp_path / "trials.parquet", [row for row in rows if row["epoch"] == 0])
    with pytest.raises(InputError, match="has finished an epoch"):
        write_report(tmp_path)


def test_damaged_books_are_refused_in_one_line(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "trials.parquet").write_bytes(b"PAR1 no more")
    command = [sys.executable, "-m", "tune.report", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_the_front_holds_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    trials = summaries(make_folder(tmp_path), "search")
    front = pareto(trials)
    assert [t.cost for t in front] == sorted(t.cost for t in front)
    for trial in trials:
        beaten = any(o.cost <= trial.cost and o.score >= trial.score and o.trial != trial.trial for o in trials)
        assert (trial in front) is not beaten


def test_the_winner_is_one_that_used_its_whole_budget(tmp_path: Path) -> None:
    trials = summaries(make_folder(tmp_path), "search")
    lucky = summaries(epochs("search", 99, dict(trials[0].settings), 2, "stopped", plus=0.5), "search")
    assert ranked([*trials, *lucky])[0].status == "done"
    assert ranked(lucky)[0] is lucky[0]


def test_values_that_are_lists_or_hold_dollars_are_reported(tmp_path: Path) -> None:
    weights = "/data/a$1_$b.h5"
    argv = ["--vary", "stages=[],[[0.4,32]]", "--vary", f"weights=none,{weights}", "--trials", "12", "--epochs", "6"]
    search = parse([*argv, "--out", str(tmp_path)])
    claim(search)
    points = search.space.random_points(12, seed=5)
    write(
        tmp_path / "trials.parquet",
        [row for number, point in enumerate(points) for row in epochs("search", number, point, 6, "done")],
    )
    text = Page(write_report(tmp_path).read_text()).text
    assert weights in text and "What matters" in text


def test_a_confirmed_winner_is_marked_and_its_cost_counts(tmp_path: Path) -> None:
    rows = make_folder(tmp_path)
    page = write_report(tmp_path).read_text()
    assert page.partition('id="trials"')[2].count('class="best"') == 1
    both = [t for phase in ("search", "confirm") for t in summaries(rows, phase)]
    assert duration(sum(t.cost for t in both)) in Page(page).text


def test_more_are_confirmed_than_used_their_whole_budget(tmp_path: Path) -> None:
    trials = summaries(make_folder(tmp_path), "search")
    whole = sum(t.whole for t in trials)
    chosen = candidates(ranked(trials), whole + 3)
    assert len(chosen) == whole + 3
    assert chosen[:whole] == candidates([t for t in ranked(trials) if t.whole], whole)


def test_importance_finds_the_parameter_that_decides(tmp_path: Path) -> None:
    space = parse(["--vary", "global_batch=64,128", "--vary", "resolution=32..96"]).space
    rows = [
        row
        for number, point in enumerate(space.random_points(60, seed=2))
        for row in epochs("search", number, {**point, "dropout": 0.0, "resolution": 96}, 6, "done")
    ]
    trials = summaries(rows, "search")
    points = space.random_points(60, seed=2)
    for trial, point in zip(trials, points, strict=True):
        trial.settings.update(point)  # type: ignore[attr-defined]
    found = importance(trials, list(space.parameters), space)
    assert max(found, key=lambda name: found[name]) == "learning_rate"
    assert sum(found.values()) == pytest.approx(1)
    assert importance(trials[:5], list(space.parameters), space) == {}
