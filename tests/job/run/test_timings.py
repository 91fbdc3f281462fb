"""Where a run's time went adds up."""

import subprocess
import sys
import time

from job.run.timings import Timings


def test_time_inside_other_work_is_counted_once():
    timings = Timings(since_process_start=False)
    with timings.of("steps"):
        time.sleep(0.02)
        with timings.of("saving"):
            time.sleep(0.03)
        timings.add("all_reduce", 0.01)
    parts = timings.seconds
    assert parts["saving"] >= 0.03 and parts["all_reduce"] == 0.01
    # Each second once: what is counted in all can't be more than has passed.
    assert 0.05 - 0.01 <= parts["steps"] + parts["saving"] <= timings.elapsed() - 0.01


def test_only_the_first_step_is_the_first():
    timings = Timings(since_process_start=False)
    assert timings.to_first_step is None
    timings.stepped()
    first = timings.to_first_step
    time.sleep(0.01)
    timings.stepped()
    assert timings.to_first_step == first


def test_elapsed_goes_on_where_an_earlier_part_ended_and_counts_it_once():
    timings = Timings(since_process_start=False)
    timings.went_before(100.0)
    timings.went_before(130.0)  # of ranks that met anew: this process's own time is in it
    assert 100 <= timings.elapsed() < 105
    assert timings.seconds["earlier"] == 100


def test_the_start_of_a_process_counts_where_it_began_for_the_run():
    script = """
import time
time.sleep(0.3)
from job.run.timings import Timings
whole, part = Timings(since_process_start=True), Timings(since_process_start=False)
assert whole.seconds["import"] > 0.3 and part.seconds == {}, whole.seconds
assert part.start - whole.start > 0.3
"""
    subprocess.run([sys.executable, "-c", script], check=True)
