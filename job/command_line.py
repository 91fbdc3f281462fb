"""Command lines, with mistakes told in one line: argparse for small commands, pydantic's where options have classes."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from job.errors import InputError
from job.reading import shortened


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are InputErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's own words and where help is."""
        raise InputError(f"{message}. `{self.prog} --help` lists the options.")


def count(text: str) -> int:
    """A whole number from 1 on, for the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on: received {text}")
    return int(text)


def read_flags(
    argv: Sequence[str], program: str, description: str, documented: Mapping[str, FieldInfo]
) -> dict[str, Any]:
    """Those of the documented options that a command line names, unchecked; ``--help`` prints and exits.

    Raises:
        InputError: an unknown flag, or one without its value.
    """
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in documented.items()}
    flags = create_model("Flags", __base__=BaseSettings, __doc__=description, **fields)
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            flags,
            cli_prog_name=program,
            cli_parse_args=list(argv),
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_exit_on_error=False,
        )
        return dict(source())
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        raise InputError(f"{message}. `{program} --help` lists the options.") from None


def refused(error: ValidationError, program: str) -> InputError:
    """The first of pydantic's complaints about options, in one line."""
    first = error.errors()[0]
    option = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return InputError(f"unknown option {option}. `{program} --help` lists the options.")
    hint = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    return InputError(f"option {option}: {hint}; received {shortened(first['input'])}.")
