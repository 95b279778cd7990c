"""Lets the tests of the parsers import `turns`, their common ground."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
