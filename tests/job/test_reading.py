"""Configuration files from strangers: refused in one line, whatever is in them."""

import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from job import reading
from job.config import parse, read_options, resolve
from job.errors import InputError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

HUGE = [f"epochs: 0x{'f' * 10_000}", f"0x{'f' * 10_000}", "epochs: 4000000000", "accumulate: 4000000000"]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab:[]{}!&*-|>?#'\"\n \t%@`0123.~_"), max_size=60))
@example(text="epochs: 2026-13-01")
@example(text="epochs: !!int x")
@example(text="epochs: !!int ''")
@example(text="flip: !!bool x")
@example(text="epochs: !!timestamp x")
@example(text="[" * 600)
@example(text=BOMB)
@example(text="!!python/object/apply:os.system ['true']")
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    try:
        reading.parsed(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize("text", [BOMB, "epochs: !!int x", "[" * 600, "- 1", "epochs: [" + "1, " * 9999 + "1]", *HUGE])
def test_a_configuration_of_that_kind_is_refused_in_one_short_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        parse(["--config", str(path)])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(50 << 30)
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        read_options(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    with pytest.raises(InputError, match="no regular file"):
        read_options(path)


def test_a_run_s_own_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"stages": [[0.4, 32]], "weights": "none"}))
    assert resolve([read_options(path)]).stages == ((0.4, 32),)
