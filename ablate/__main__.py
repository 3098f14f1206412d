"""`python -m ablate`, and `python ablate` in a clone, as W&B's default command runs it."""

import sys
from pathlib import Path

# `python ablate` would let this folder's modules stand in for others of the same name.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ablate.cli import main

sys.exit(main())
