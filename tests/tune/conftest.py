"""A Ray cluster of this machine's own, for tests of groups and searches."""

import logging
import os
import secrets
from collections.abc import Iterator

import pytest
import ray

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# With a token given, Ray writes none into the user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """Ray on this machine, with two CPUs whatever there is."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
