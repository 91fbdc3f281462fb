"""The model of cost against ranks: by hand, at its limits, and against points that it made itself."""

import json
from pathlib import Path

import pytest

from benchmarks.cost_model import RANKS, Link, Network, check, exchange, fit, markdown, parser, ring, step, stops

LINK = Link(latency=20e-6, bandwidth=2e9)
FLAT = Network(link=LINK, start=1e-3)
SIZE, MESSAGES = 12.9e6, 10
ROOT = Path(__file__).parents[2]


def made_record(overlap: float) -> dict:
    """What benchmarks.scaling would have written on a machine that is as the model says."""
    messages = [
        {"ranks": ranks, "bytes": size, "best_ms": 1e3 * (1e-3 + ring(ranks, size, 1, LINK))}
        for ranks in (2, 4)
        for size in (1 << 10, 1 << 16, 1 << 22, 1 << 26)
    ]
    steps = [{"ranks": 0, "batch": 64, "exchange": "as it is", "best_ms": 60.0}]
    for ranks, batch in ((2, 32), (2, 64), (4, 16), (4, 64)):
        alone = ranks * batch / 1e3
        whole = step(alone, exchange(ranks, SIZE, MESSAGES, FLAT), overlap)
        steps.append({"ranks": ranks, "batch": batch, "exchange": "none", "best_ms": 1e3 * alone})
        steps.append({"ranks": ranks, "batch": batch, "exchange": "messages", "best_ms": 1e3 * whole})
    facts = {"gradients": {"bytes": SIZE, "messages": MESSAGES}, "date": "2026-11-24", "cpu": "made up"}
    return {"messages": messages, "steps": steps, **facts}


def test_ring_by_hand():
    # 4 ranks: six rounds, each of one hop for either message and a quarter of the bytes.
    assert ring(4, 8e6, 2, LINK) == pytest.approx(6 * (2 * 20e-6 + 2e6 / 2e9))


def test_a_rank_alone_exchanges_nothing():
    assert exchange(1, SIZE, MESSAGES, FLAT) == 0


def test_a_flat_ring_never_moves_twice_the_bytes_but_pays_for_every_hop():
    free = Network(link=Link(latency=0, bandwidth=1e9), start=0)
    assert exchange(1024, 1e9, MESSAGES, free) == pytest.approx(2, rel=2e-3)
    many, few = (exchange(ranks, SIZE, MESSAGES, FLAT) for ranks in (1024, 512))
    assert many - few == pytest.approx(2 * 512 * MESSAGES * LINK.latency, rel=0.01)


def test_hierarchical_by_hand_and_within_one_host():
    fast = Link(latency=1e-6, bandwidth=100e9)
    levels = Network(link=LINK, start=1e-3, local=8, fast=fast)
    assert exchange(8, SIZE, MESSAGES, levels) == pytest.approx(1e-3 + ring(8, SIZE, MESSAGES, fast))
    expected = 1e-3 + ring(8, SIZE, MESSAGES, fast) + ring(16, SIZE, MESSAGES, LINK)
    assert exchange(128, SIZE, MESSAGES, levels) == pytest.approx(expected)
    assert expected < exchange(128, SIZE, MESSAGES, FLAT)


def test_one_ring_over_hosts_is_fast_within_one_and_pays_for_the_network_beyond():
    fast = Link(latency=1e-6, bandwidth=100e9)
    one_ring = Network(link=LINK, start=1e-3, local=8, fast=fast, hierarchical=False)
    assert exchange(8, SIZE, MESSAGES, one_ring) == pytest.approx(1e-3 + ring(8, SIZE, MESSAGES, fast))
    mean = Link(latency=(20e-6 + 7e-6) / 8, bandwidth=2e9)
    assert exchange(16, SIZE, MESSAGES, one_ring) == pytest.approx(1e-3 + ring(16, SIZE, MESSAGES, mean))


def test_no_more_is_hidden_than_the_backward_pass_is_long():
    assert step(0.3, 0.1, 0.0) == pytest.approx(0.4)
    assert step(0.3, 0.1, 1.0) == pytest.approx(0.3)
    assert step(0.3, 1.0, 1.0) == pytest.approx(0.3 + 1.0 - 0.2)


def test_fit_finds_what_the_points_were_made_of():
    start, link = fit(made_record(0)["messages"])
    assert start == pytest.approx(1e-3)
    assert link.latency == pytest.approx(LINK.latency)
    assert link.bandwidth == pytest.approx(LINK.bandwidth)


def test_fit_gives_nothing_negative():
    # Larger messages that are quicker: no link is like that, and the best that is possible takes no time for a byte.
    points = [{"ranks": 2, "bytes": 1 << 10, "best_ms": 2.0}, {"ranks": 2, "bytes": 1 << 20, "best_ms": 1.0}]
    start, link = fit(points)
    assert min(start, link.latency) >= 0 and link.bandwidth == float("inf")


@pytest.mark.parametrize("overlap", [0.0, 0.6])
def test_points_that_follow_the_model_are_predicted(overlap: float):
    _, found, points = check(made_record(overlap))
    assert found == pytest.approx(overlap)
    assert [(point.ranks, point.batch) for point in points] == [(2, 32), (2, 64), (4, 16), (4, 64)]
    for point in points:
        assert point.modelled == pytest.approx(point.measured)


def test_scaling_stops_where_efficiency_first_falls_below_the_limit():
    assert stops(lambda ranks: 1 / ranks**0.5, 0.5) == 8
    assert stops(lambda ranks: 1.0, 0.5) is None


def test_table_goes_to_1024_and_says_that_it_is_a_model():
    text = markdown(made_record(0.5), parser().parse_args(["--record", "x"]))
    assert "A model, not a measurement" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "%" in line and "under" not in line]
    assert [row.split(" | ")[0] for row in rows[-len(RANKS) :]] == [f"| {ranks:,}" for ranks in RANKS]
    assert "| under 80 % from |" in text and "| under 50 % from |" in text


def test_more_work_between_exchanges_scales_further():
    text = markdown(made_record(0.5), parser().parse_args(["--record", "x"]))
    last = next(line for line in text.splitlines() if line.startswith("| 1,024 |"))
    flat, hierarchical, larger, accumulated = (int(cell.split()[0]) for cell in last.split(" | ")[2:6])
    assert flat < hierarchical < min(larger, accumulated)


def test_the_document_holds_what_the_command_prints():
    record = ROOT / "benchmarks/records/scaling.json"
    if not record.exists():
        pytest.skip("benchmarks/records/scaling.json has not been made yet")
    text = markdown(json.loads(record.read_text()), parser().parse_args(["--record", str(record)]))
    assert text in (ROOT / "docs/performance.md").read_text()
