"""What a container leaves of the machine, told by files as Linux has them."""

import os

import psutil
import pytest

from job.machine import usable_cores, usable_memory


@pytest.fixture
def root(tmp_path):
    """Writes files under a root of its own."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 1",
        },
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/pod\n0::/\n",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_a_quota_counts_wherever_it_is(root, files):
    assert usable_cores(root(**files)) == 0.5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_without_a_quota_the_cpu_set_counts(root, files):
    assert usable_cores(root(**files)) == CORES


def test_memory_is_what_a_limit_leaves(root):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "3000000",
        "sys/fs/cgroup/memory.current": "1000000",
    }
    assert usable_memory(root(**files)) == 2_000_000
    assert usable_memory(root(**files | {"sys/fs/cgroup/memory.current": "4000000"})) == 0
    assert usable_memory(root(**files | {"sys/fs/cgroup/memory.max": "max"})) > 2_000_000
    # Files that are cached go when room is needed.
    cached = {"sys/fs/cgroup/memory.stat": "anon 100\nactive_file 300000\ninactive_file 500000\n"}
    assert usable_memory(root(**files | cached)) == 2_800_000


def test_this_machine_has_something():
    assert 0 < usable_cores() <= CORES
    assert 0 < usable_memory() <= psutil.virtual_memory().total
