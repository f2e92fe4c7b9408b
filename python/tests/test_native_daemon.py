"""The native client against a real daemon, where both were built: what scheduler.py and worker.py take for granted."""

import os
import subprocess
import sys

import native_paths
import pytest


@pytest.mark.skipif(native_paths.python_path() is None, reason="the native module was not built")
@pytest.mark.skipif(native_paths.daemon() is None, reason="the daemon was not built")
def test_two_engines_over_one_daemon(tmp_path):
    config = tmp_path / "kvferry.toml"
    config.write_text(
        f'[attach]\ndirectory = "{tmp_path}"\n[peer]\nlisten = "127.0.0.1:0"\n[admin]\nlisten = "127.0.0.1:0"\n'
    )
    arguments = [str(native_paths.daemon()), str(config), str(tmp_path / "kvferry.sock")]
    program = str(native_paths.HERE / "native_engine.py")
    path = os.pathsep.join(native_paths.python_path())
    run = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split("\n") == [
        "unavailable",
        "refused",
        "delivered",
        "ended read",
        "forged",
        "expired",
        "restarted",
        "over",
        "",
    ]
