"""Tests of the harness of `make bench-peers`. Nothing here is timed and no rival is needed."""

from __future__ import annotations

import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PEERS), str(PEERS / "ends")]
