"""What must be known about a machine and a run before its figures mean anything."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path

AUTOGROUP_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")


def facts(root: Path, command: str) -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    cpuinfo = _read("/proc/cpuinfo")
    model = _first(r"model name\s*: (.+)", cpuinfo)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": f"`{command}`",
        "commit": _commit(root),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "CPU": f"{os.cpu_count()} cores, {model}{_virtual(cpuinfo)}",
        "memory": f"{memory_bytes / 1e9:.1f} GB",
        "kernel": platform.release(),
        "congestion control": _read("/proc/sys/net/ipv4/tcp_congestion_control").strip() + ", by the system's choice",
        "huge pages": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled") + " for shared memory",
        "autogroups": _autogroup(),
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _commit(root: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD") or "unknown"
    # The results themselves do not make a tree dirty.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benches/RESULTS.md")
    return f"{found}, with changes that are not committed" if changed else found


def _autogroup() -> str:
    if not AUTOGROUP_SWITCH.exists() or _read(AUTOGROUP_SWITCH).strip() == "0":
        return "off: cores are shared among threads"
    mine = _read("/proc/self/autogroup").strip()
    return f"on; all peers and the busy loops are in one of them ({mine})"


def _virtual(cpuinfo: str) -> str:
    return ", virtual machine" if " hypervisor" in cpuinfo else ""


def _chosen(path: str) -> str:
    return _first(r"\[(\w+)\]", _read(path))


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else "unknown"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
