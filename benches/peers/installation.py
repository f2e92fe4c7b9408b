"""Makes what the benchmarks run: rivals' environments, our C programs, Debian packages, and `kvferry` itself.

Everything but Debian packages goes under target/peers. What is there already is not made again. A rival that cannot be
installed is named and left out, and so is a limit whose program could not be built.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "target" / "peers"
PROGRAMS = ("raw_sockets", "block_copy", "ping_pong")
INTERVAL_S = 15.0
DOWNLOAD_LIMIT_S = 600.0
BUILD_LIMIT_S = 1500.0


@dataclass(frozen=True)
class Environment:
    """A rival's own virtual environment. Nothing is resolved: every package is named with its version."""

    name: str
    requirements: tuple[str, ...]


# Mooncake asks for aiohttp and requests, for parts that are not used here.
MOONCAKE = Environment("mooncake", ("mooncake-transfer-engine-non-cuda==0.3.13.post1", "numpy==2.4.6"))
ENVIRONMENTS = (
    # NIXL asks for torch, and imports it only when it is given tensors.
    Environment("nixl", ("nixl==1.5.1", "nixl-cu12==1.5.1", "numpy==2.4.6")),
    MOONCAKE,
)

# Debian packages, each with the question whether the machine has what it brings.
Packages = Mapping[str, Callable[[], bool]]
RIVAL_PACKAGES: Packages = {
    # Mooncake's library is linked to it, also where only TCP is used.
    "libibverbs1": lambda: ctypes.util.find_library("ibverbs") is not None,
    "python3-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
}
PACKAGES: Packages = {
    "gcc": lambda: has("gcc"),
    "iperf3": lambda: has("iperf3"),
    "iproute2": lambda: has("ip") and has("tc"),
    **RIVAL_PACKAGES,
}


def prepare(*, build_kvferry: bool = True) -> list[str]:
    """Makes all there is to make. Returns what could not be made, a sentence each."""
    notes = install(PACKAGES, ENVIRONMENTS)
    for name in PROGRAMS:
        notes += program(name)
    return notes + (build() if build_kvferry else [])


def install(packages: Packages, environments: Sequence[Environment]) -> list[str]:
    """Makes what comes from elsewhere. Returns what could not be had, a sentence each."""
    WORK.mkdir(parents=True, exist_ok=True)
    return [*_packages(packages), *(note for environment in environments for note in _environment(environment))]


def build() -> list[str]:
    """Makes `kvferry` itself."""
    command = ["cargo", "build", "--release", "--locked", "--bin", "kvferry"]
    return _run("kvferry, release build", command, BUILD_LIMIT_S)


def _packages(packages: Packages) -> list[str]:
    missing = [package for package, is_present in packages.items() if not is_present()]
    if not missing:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"not installed, and apt-get needs root: {', '.join(missing)}"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--no-install-recommends", "--yes", *missing]
    notes = _run("Debian's list of packages", ["apt-get", "update"], DOWNLOAD_LIMIT_S, quiet)
    return notes or _run(f"Debian packages: {', '.join(missing)}", install, DOWNLOAD_LIMIT_S, quiet)


def has(program: str) -> bool:
    """Whether it is there, also where only root has it in the path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _environment(environment: Environment) -> list[str]:
    place = WORK / environment.name
    ready = place / ".ready"
    wanted = " ".join([sys.version.split()[0], *environment.requirements])
    if ready.exists() and ready.read_text() == wanted:
        return []
    shutil.rmtree(place, ignore_errors=True)
    make: list[str | Path] = [sys.executable, "-m", "venv", place]
    install: list[str | Path] = [
        place / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        *environment.requirements,
    ]
    notes = _run(f"{environment.name}: environment", make, DOWNLOAD_LIMIT_S)
    notes = notes or _run(f"{environment.name}: {', '.join(environment.requirements)}", install, DOWNLOAD_LIMIT_S)
    if not notes:
        ready.write_text(wanted)
    return notes


def program(name: str) -> list[str]:
    """Makes one of our C programs."""
    source = HERE / "programs" / f"{name}.c"
    made = WORK / "bin" / name
    stamp = made.with_suffix(".stamp")
    texts = source.read_bytes() + (source.parent / "measure.h").read_bytes()
    wanted = hashlib.sha256(texts).hexdigest()
    if made.exists() and stamp.exists() and stamp.read_text() == wanted:
        return []
    made.parent.mkdir(exist_ok=True)
    notes = _run(name, ["gcc", "-O2", "-Wall", "-o", made, source, "-lpthread"], 60.0)
    if not notes:
        stamp.write_text(wanted)
    return notes


def _run(
    title: str, command: Sequence[str | Path], limit_s: float, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Runs a command with a line now and then. What is wrong with it, or nothing."""
    print(f"{title} ...", flush=True)
    start = time.monotonic()
    log = WORK / "logs" / "set-up.log"
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("ab") as complaints:
            child = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                env={**os.environ, **(environment or {})},
            )
    except FileNotFoundError as error:
        return [f"{title}: {error}"]
    try:
        while True:
            try:
                child.wait(timeout=INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - start
                print(f"  {seconds:.0f} s", flush=True)
                if seconds > limit_s:
                    return [f"{title}: had not ended after {limit_s:.0f} s; see {log}"]
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if child.returncode != 0:
        return [f"{title}: ended with {child.returncode}; see {log}"]
    print(f"  done in {time.monotonic() - start:.0f} s", flush=True)
    return []
