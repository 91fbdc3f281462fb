"""Command lines of the small commands: argparse, with mistakes told in one line as everywhere else."""

import argparse
from typing import NoReturn

from job.errors import InputError


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
