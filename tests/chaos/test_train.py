"""Faults against the training job: a few of each sort; `python -m tests.chaos` makes a table of many."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import Suite, chains
from tests.chaos.faults import KINDS, Fault, Outcome, draw, left_out
from tests.chaos.job import AFTER, STEPS, Attempt, Site

pytestmark = pytest.mark.timeout(1800)


def wrong(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.fault}: {outcome.wrong}" for outcome in outcomes if outcome.wrong]


def test_a_run_that_is_struck_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    faults = [
        Fault(kind="SIGKILL rank", ranks=2, victim=1, moment="mid-epoch"),
        Fault(kind="SIGTERM rank", ranks=2, victim=0, moment="writing a checkpoint"),
        Fault(kind="data changed", ranks=2),
        Fault(kind="checkpoint flipped", ranks=2, seed=1),
    ]
    with Site(tmp_path) as site:
        outcomes = Suite(site).run(faults)
    assert not wrong(outcomes)
    assert [outcome.went_on for outcome in outcomes] == [False, False, False, True]


@pytest.mark.parametrize(
    ("where", "wrong"),
    [("; going on after step 5 of epoch 2", False), ("; going on after epoch 1", True), ("", True)],
)
def test_an_attempt_that_did_not_go_on_from_what_was_saved_is_noticed(tmp_path: Path, where: str, wrong: bool) -> None:
    attempt = object.__new__(Attempt)  # no job is needed to read what one has said
    attempt.site, attempt.size, attempt.saved, attempt._from = Site(tmp_path), 2, STEPS + 5, 0
    attempt.site.log.write_text("")
    assert not attempt.began_elsewhere()
    attempt.site.log.write_text(f"[0]<stdout>:training in runs on 2 rank(s), images{where}\n")
    assert bool(attempt.began_elsewhere()) == wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_loses_a_run_or_hangs_it(tmp_path: Path, kind: str) -> None:
    with Site(tmp_path) as site:
        drawn = draw(len(KINDS), 11, site)
        faults = [fault for fault in drawn + left_out(drawn)[-1:] if fault.kind == kind]
        if not faults:
            pytest.skip("a disk can't be mounted or a network made here: needs root")
        outcomes = [outcome for chain in chains(faults) for outcome in Suite(site).run(chain)]
    assert not wrong(outcomes)


def test_each_signal_strikes_at_each_moment_and_who_writes_while_he_writes(tmp_path: Path) -> None:
    drawn = draw(40, 3, Site(tmp_path))
    faults = drawn + left_out(drawn)
    assert not left_out(faults[:-1])[:-1]
    assert {f.moment for f in faults if f.kind == "SIGKILL launcher"} == set(AFTER)
    assert any((f.kind, f.moment, f.victim) == ("SIGKILL rank", "writing a checkpoint", 0) for f in faults)


def test_the_same_seed_draws_the_same_faults_and_every_kind_is_among_them(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.mounted = True
    faults = draw(60, 3, site)
    assert faults == draw(60, 3, site) != draw(60, 4, site)
    assert {fault.kind for fault in faults} >= {kind for kind, (_, often) in KINDS.items() if often} - {"network cut"}
    assert sorted(str(fault) for chain in chains(faults) for fault in chain) == sorted(map(str, faults))
    assert all(len({fault.ranks for fault in chain}) == 1 for chain in chains(faults))
