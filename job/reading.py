"""Reading files that anyone may have written: bounded, nothing executed, refused in one line."""

import os
import reprlib
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20
"""The largest YAML file that is read: configurations have some hundred lines."""
MOST_OF_A_RUN = 1 << 28
"""The largest of a run's other files that is read, in bytes: a checkpoint of MobileNet has 39 million."""

# What PyYAML's safe loader raises for hostile scalars and depths, beside its own YAMLError.
_RAISED = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few lines of aliases of aliases stand for gigabytes, as soon as someone prints them.
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def parsed(text: str) -> Any:
    """The value that a YAML text stands for. Raises ValueError, in one line."""
    try:
        return yaml.load(text, _Loader)
    except _RAISED as error:
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from None


def yaml_file(path: Path) -> Any:
    """The value that a YAML file stands for. Raises ValueError, in one line, or OSError."""
    return parsed(bounded(path, MOST_BYTES).decode())


def bounded(path: Path, most: int = MOST_OF_A_RUN) -> bytes:
    """The content of a file of at most so many bytes. Raises ValueError, in one line, or OSError."""
    with path.open("rb") as file:
        # A file with holes claims any size without taking room.
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return file.read(most)


def shortened(value: Any) -> str:
    """`repr`, cut to a part of a line before it is made."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = 80
    try:
        return cut.repr(value)
    except ValueError:  # Python writes no integers of so many digits
        return "a number of thousands of digits"
