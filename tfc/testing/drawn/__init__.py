"""Strategies that write whole specs as text, a file for each concept of the language."""

from tfc.testing.drawn.models import MODES, Drawn, numbered, specs
from tfc.testing.drawn.writer import Mode

__all__ = ["MODES", "Drawn", "Mode", "numbered", "specs"]
