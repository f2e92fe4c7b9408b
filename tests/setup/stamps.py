"""Stamps: a part is there when the hash of all that went into it was written down after it was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A hash over texts, bytes and the contents of files and folders, with their names."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for path in sorted(_files(part)):
                _add(state, path.relative_to(part.parent).as_posix().encode())
                _add(state, path.read_bytes())
        else:
            _add(state, part if isinstance(part, bytes) else part.encode())
    return state.hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    """Whether the part of this stamp was made from exactly this."""
    try:
        return stamp.read_text().strip() == wanted
    except FileNotFoundError:
        return False


def clear(stamp: Path) -> None:
    """Says that the part is about to change: from here to :func:`write` it counts as absent."""
    stamp.unlink(missing_ok=True)


def write(stamp: Path, made: str) -> None:
    """Says that the part is whole."""
    partial = stamp.with_name(f"{stamp.name}.{os.getpid()}")
    partial.write_text(f"{made}\n")
    partial.replace(stamp)


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        yield place
        return
    for path in place.rglob("*"):
        # What a build or an interpreter leaves beside the sources is no source.
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".so"}:
            yield path


def _add(state: hashlib._Hash, data: bytes) -> None:
    # The length in front keeps two lists of parts with the same concatenation apart.
    state.update(len(data).to_bytes(8, "little"))
    state.update(data)
