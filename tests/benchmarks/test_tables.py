"""The pages show what the records hold."""

from typing import Any

import pytest

from benchmarks import tables
from job.config import plain, resolve
from job.errors import RunError


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_a_page_s_tables_are_those_of_the_records(page: Any) -> None:
    text = page.read_text()
    assert "\n<!-- /" in text
    assert tables.filled(text, tables.made()) == text


def test_every_table_has_its_place() -> None:
    pages = "".join(page.read_text() for page in tables.PAGES)
    assert [name for name in tables.made() if f"<!-- {name} -->\n" not in pages] == []


def test_a_table_without_its_end_is_told() -> None:
    assert tables.filled("a\n<!-- x -->\nold\n<!-- /x -->\nb", {"x": "new"}) == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(RunError, match="<!-- /x -->"):
        tables.filled("<!-- x -->\nold\n", {"x": "new"})


def test_a_seed_that_is_never_there_counts_as_the_slowest() -> None:
    def runs(*seconds: float | None) -> list[dict[str, Any]]:
        usual: dict[str, Any] = {"recipe": "fast", "precision": "float32", "protocol": "honest", "ranks": 1}
        usual |= {"environment": {"processor": "A", "cores": 2}, "weights": "w.h5"}
        usual |= {"values": plain(resolve([{"recipe": "fast"}]))}
        return [usual | {"seconds_to_94_5": value} for value in seconds]

    stock: dict[str, Any] = {"processor": "A", "cores": 2}
    stock |= {"seconds_for_20_epochs_extrapolated": 1200.0, "seconds_for_20_epochs_by_median_turns": 2400.0}
    shared = "The same in all rows: processor: A, 2 cores; weights: w.h5."

    def row(*seconds: float | None) -> str:
        found, empty, told = tables.speed(runs(*seconds), [stock]).splitlines()[2:]
        assert (empty, told) == ("", shared)
        return found

    assert row(90.0, None, 100.0, 110.0, 101.0) == (
        "| fast | 4 of 5 seeds | 101 | 1,200 (1/11.9, 2 of 5 seeds within 1/12) | "
        "2,400 (1/23.8, 4 of 5 seeds within 1/12) |"
    )
    within = "1 of 3 seeds within 1/12"
    assert row(90.0, None, None) == f"| fast | 1 of 3 seeds | – | 1,200 ({within}) | 2,400 ({within}) |"
    assert len(tables.speed(runs(90.0), [stock | {"processor": "B"}]).splitlines()) == 2
