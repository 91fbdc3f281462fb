"""Groups and searches on a cluster of two nodes, both of them on this machine."""

import logging
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from tune.group import Member, ProcessGroup


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def ranks_and_sum(member: Member) -> list[float]:
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    total = float(hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum))
    found = [total, hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_size()]
    hvd.shutdown()
    return found


def test_local_and_cross_ranks_follow_the_nodes(two_nodes: str) -> None:
    ray.init(address=two_nodes, log_to_driver=False, logging_level=logging.ERROR)
    try:
        bundles = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        ray.get(bundles.ready())
        group = ProcessGroup(bundles, ranks=2)
        group.run(ranks_and_sum)
        while not group.finished:
            group.poll(1.0)
        assert group.results == [[3.0, 0, 2, 0, 1, 2], [3.0, 1, 2, 0, 1, 2]]
        group.shutdown()
        remove_placement_group(bundles)
    finally:
        ray.shutdown()
