"""Tests of the harness of `make bench-tiers`. Nothing here is timed, and no rival, engine or daemon is needed."""

from __future__ import annotations

import sys
from pathlib import Path

TIERS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TIERS), str(TIERS.parent / "peers"), str(TIERS.parents[1] / "tests" / "vllm")]
