"""A run that was interrupted at any step, at two ranks, is the run that was not."""

import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.job import EPOCHS, LONGEST, STEPS, Site
from tests.horovod_keras.pods import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def losses(site: Site) -> list[float]:
    return [json.loads(line)["loss"] for line in (site.run / "metrics.jsonl").read_text().splitlines()]


def interrupted(site: Site, ranks: int, seed: int) -> int:
    """Stop a run after a random part of it, and return the steps that it has made."""
    least = site.saved() + random.Random(seed).randrange(1, STEPS)
    attempt = site.start(ranks)

    def far_enough() -> bool:
        assert attempt.process.poll() is None, attempt.output()
        return site.newest() >= least

    until(f"step {least}", far_enough, LONGEST)
    attempt.ranks()[0].send_signal(signal.SIGTERM)
    attempt.wait(LONGEST)
    assert not site.finished()
    return site.saved()


@pytest.mark.parametrize(("seed", "options"), [(0, []), (1, []), (2, ["--resolution", "40", "--stages", "[[0.5,32]]"])])
def test_interrupted_three_times_and_resumed_is_bit_identical(tmp_path: Path, seed: int, options: list[str]) -> None:
    with Site(tmp_path) as site:
        site.options = options
        assert site.start(2).wait(LONGEST) == 0
        whole, expected = site.weights(), losses(site)
        site.run.rename(site.disk / "whole")
        made = [interrupted(site, 2, 10 * seed + part) for part in range(3)]
        assert 0 < made[0] < made[-1] <= STEPS * EPOCHS
        assert site.start(2).wait(LONGEST) == 0
        found = site.weights()
        assert all(np.array_equal(found[name], whole[name]) for name in whole)
        assert losses(site) == pytest.approx(expected, rel=1e-6)


def test_the_number_of_ranks_may_change_between_the_parts_of_a_run(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        made = [interrupted(site, ranks, ranks) for ranks in (2, 3, 1)]
        assert made == sorted(set(made))
        assert site.start(4).wait(LONGEST) == 0
        assert json.loads((site.run / "result.json").read_text())["ranks"] == 4
        assert len(losses(site)) == EPOCHS
