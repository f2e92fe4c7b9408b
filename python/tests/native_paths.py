"""Where the native module and the daemon are, for tests that need them; None where they were not built."""

import os
import pathlib
import site

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent
BUILT = HERE.parent.parent / "target"


def python_path():
    """What a fresh interpreter needs to import the tests and a kvferry that has its native module."""
    for entry in (str(SOURCE), *site.getsitepackages()):
        if list((pathlib.Path(entry) / "kvferry").glob("_native.*.so")):
            return [str(HERE), entry]
    return None


def daemon():
    """The daemon's binary: KVFERRY_BIN, or the newest that cargo built."""
    named = os.environ.get("KVFERRY_BIN")
    built = [pathlib.Path(named)] if named else [BUILT / profile / "kvferry" for profile in ("debug", "release")]
    there = [path for path in built if path.exists()]
    return max(there, key=lambda path: path.stat().st_mtime, default=None)
