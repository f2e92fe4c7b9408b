"""What the machine itself must have: checked first, and installed by apt where Debian has it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from progress import SetupError, Step

# vLLM's environment is 5.2 GB, its downloads 2.5 GB, and Rust's build folders take 6 GB beside them (measured).
DISK_BYTES_MIN = 16 * 10**9
# Two engines hold 9.2 GB (measured), the rest is for the compiler and the page cache.
MEMORY_BYTES_MIN = 12 * 10**9
RUST_VERSION_MIN = (1, 95)
PYTHON_VERSIONS = ((3, 11), (3, 14))

# Debian packages, each with the question whether the machine has what it brings.
PACKAGES: dict[str, Callable[[], bool]] = {
    "ca-certificates": lambda: Path("/etc/ssl/certs/ca-certificates.crt").exists(),
    "gcc": lambda: shutil.which("gcc") is not None,
    # The two-daemon tests run each daemon in a network namespace of its own.
    "iproute2": lambda: shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None,
    "libc6-dev": lambda: Path("/usr/include/stdlib.h").exists(),
    # vLLM's CPU kernels link with it.
    "libnuma1": lambda: ctypes.util.find_library("numa") is not None,
    # Debian's python3 comes without the means to make a virtual environment.
    "python3-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
}

# Packages that one step of the tests uses and skips where they cannot be had.
OPTIONAL_PACKAGES: dict[str, Callable[[], bool]] = {
    # Counts instructions.
    "valgrind": lambda: shutil.which("valgrind") is not None,
}


def check(root: Path) -> None:
    """Refuses a machine on which the rest cannot work, with a sentence for each thing that is wrong."""
    wrong = []
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        wrong.append(f"the CPU build of vLLM is for Linux on x86_64; this is {platform.system()} {platform.machine()}")
    version = (int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1]))
    if not PYTHON_VERSIONS[0] <= version <= PYTHON_VERSIONS[1]:
        wrong.append(f"python3 is {platform.python_version()}; vLLM wants 3.11 to 3.14")
    wrong.extend(_check_rust())
    free = shutil.disk_usage(root).free
    if free < DISK_BYTES_MIN and not (root / "target" / "vllm").exists():
        wrong.append(f"{free / 1e9:.0f} GB of disk are free at {root}; {DISK_BYTES_MIN / 1e9:.0f} GB are needed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MEMORY_BYTES_MIN:
        wrong.append(f"the machine has {memory / 1e9:.0f} GB of memory; two engines need {MEMORY_BYTES_MIN / 1e9:.0f}")
    if wrong:
        raise SetupError("this machine will not do:\n" + "\n".join(f"  - {line}" for line in wrong))


def _check_rust() -> list[str]:
    wanted = ".".join(map(str, RUST_VERSION_MIN))
    if shutil.which("cargo") is None:
        return [f"cargo is not on the PATH; install Rust {wanted} or later, with rustfmt and clippy"]
    printed = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", printed)
    if found is None or (int(found[1]), int(found[2])) < RUST_VERSION_MIN:
        return [f"cargo says `{printed.strip()}`; KVFerry needs {wanted} or later"]
    return []


def install_packages(root: Path) -> None:
    """Installs the Debian packages whose contents are missing. Without root, says which command does it."""
    _install_optional(root)
    missing = [name for name, is_present in PACKAGES.items() if not is_present()]
    if not missing:
        return
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if shutil.which("apt-get") is None:
        raise SetupError(f"missing: {', '.join(missing)} (Debian's names), and there is no apt-get to install them")
    if os.geteuid() != 0:
        raise SetupError(f"missing Debian packages; as root, run\n  apt-get update && {command}\nand try again")
    with Step(f"Debian packages: {', '.join(missing)}") as step:
        log = root / "target" / "logs" / "apt.log"
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        step.run(["apt-get", "update"], log=log, environment=quiet)
        step.run([*command.split(), "--yes"], log=log, environment=quiet)
    still_missing = [name for name in missing if not PACKAGES[name]()]
    if still_missing:
        raise SetupError(f"apt-get installed {', '.join(still_missing)}, yet what they bring is not found")


def _install_optional(root: Path) -> None:
    """Installs what the tests can do without; says by name what they will skip."""
    for name in [name for name, is_present in OPTIONAL_PACKAGES.items() if not is_present()]:
        if os.geteuid() == 0 and shutil.which("apt-get") is not None:
            command = f"apt-get update && apt-get install --no-install-recommends --yes {name}"
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            try:
                with Step(f"Debian package: {name}") as step:
                    step.run(["sh", "-c", command], log=root / "target" / "logs" / "apt.log", environment=quiet)
            except SetupError as error:
                print(f"{name} cannot be had: {error}", flush=True)
        if not OPTIONAL_PACKAGES[name]():
            print(f"not here: {name}; the tests that use it are skipped", flush=True)
