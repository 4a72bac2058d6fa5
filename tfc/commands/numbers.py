"""Words of a command line -> whole numbers, or a usage error that names the word."""

from collections.abc import Mapping

import click

__all__ = ["whole_numbers"]


def whole_numbers(words: Mapping[str, str]) -> dict[str, int]:
    """`{"T": "1_024"}` -> {"T": 1024}. Raises click.UsageError for what is no whole number, or negative."""
    out = {}
    for name, word in words.items():
        try:
            out[name] = int(word)
        except ValueError:
            raise click.UsageError(f"--shape {name}={word}: `{word}` is no whole number") from None
        if out[name] < 0:
            raise click.UsageError(f"--shape {name}={word}: a length is not negative")
    return out
