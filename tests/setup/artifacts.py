"""What is built from this repository: the daemon (target/release/kvferry) and the wheel, installed into target/vllm."""

from __future__ import annotations

from pathlib import Path

import stamps
from progress import SetupError, Step


def build_daemon(root: Path) -> None:
    """The release build. cargo knows what is up to date; this only shows it at work."""
    with Step("daemon: cargo build --release") as step:
        command = ["cargo", "build", "--release", "--locked", "--package", "kvferry"]
        step.run(command, log=root / "target" / "logs" / "daemon.log", cwd=root)


def build_wheel(root: Path) -> None:
    """The wheel `kvferry`, built by maturin when a source of it changed."""
    sources = [root / "Cargo.toml", root / "Cargo.lock", root / "crates", root / "proto", root / "python"]
    vllm = root / "target" / "vllm"
    # The stamp lies in the environment: a new environment needs the wheel again.
    stamp = vllm / ".wheel-stamp"
    wanted = stamps.digest(sources)
    if stamps.is_current(stamp, wanted):
        return
    place = root / "target" / "wheels" / "kvferry"
    logs = root / "target" / "logs"
    with Step("wheel: maturin build --release", place) as step:
        stamps.clear(stamp)
        python = vllm / "bin" / "python"
        tools = root / "target" / "tools" / "bin"
        manifest = root / "python" / "Cargo.toml"
        for stale in place.glob("*.whl"):
            stale.unlink()
        build: list[str | Path] = [tools / "maturin", "build", "--release", "--locked", "--manifest-path", manifest]
        step.run([*build, "--interpreter", python, "--out", place], log=logs / "wheel-build.log", cwd=root)
        wheels = list(place.glob("*.whl"))
        if len(wheels) != 1:
            raise SetupError(f"maturin left {len(wheels)} wheels in {place}; one was expected")
        install: list[str | Path] = [tools / "uv", "pip", "install", "--python", python, "--no-deps", "--reinstall"]
        step.run([*install, "--compile-bytecode", wheels[0]], log=logs / "wheel-install.log")
        stamps.write(stamp, wanted)
