"""What the tests of the model share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Iterator
from types import ModuleType

import keras
import pytest

from job.errors import InputError
from job.model import kernels
from job.model.kernels import library
from job.model.kernels.build import build


@pytest.fixture(scope="session")
def compiled() -> None:
    """The C++ kernels, compiled unless the cache or the image has them."""
    if not library.built():
        build()


@pytest.fixture(params=["kernels", "tensorflow"])
def way(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which the training layers work."""
    monkeypatch.setenv("FASHION_KERNELS", "" if request.param == "kernels" else "off")
    assert (kernels.load() is None) == (request.param == "tensorflow")
    return request.param


@pytest.fixture(params=library.variants())
def operations(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The C++ operations on the kernels of every variant that runs on this processor."""
    monkeypatch.setenv("FASHION_KERNELS", request.param)
    try:
        found = kernels.load()
    except InputError as error:
        pytest.skip(str(error))
    assert found is not None
    assert request.param in kernels.status()
    return found


@pytest.fixture(autouse=True)
def same_beginning() -> Iterator[None]:
    keras.utils.set_random_seed(2017)
    yield
    keras.config.set_dtype_policy("float32")
