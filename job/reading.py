"""Reading files that anyone may have written: bounded, nothing executed, refused in one line."""

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20
"""The largest YAML file that is read: configurations have some hundred lines."""
MOST_OF_A_RUN = 1 << 28
"""The largest of a run's other files that is read, in bytes: a checkpoint of MobileNet has 39 million."""

# What PyYAML's safe loader raises for hostile scalars and depths, beside its own YAMLError.
_RAISED = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


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
    # Opening a pipe would wait for someone to write to it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        # A file with holes claims any size without taking room.
        if status.st_size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return file.read(most)


def json_value(text: str | bytes) -> Any:
    """The value that a JSON text stands for. Raises ValueError or RecursionError."""
    # An integer of a thousand digits is a number until someone computes with it.
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


def shortened(value: Any) -> str:
    """`repr`, cut to a part of a line before it is made."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = 80
    try:
        return cut.repr(value)
    except ValueError:  # Python writes no integers of so many digits
        return "a number of thousands of digits"
