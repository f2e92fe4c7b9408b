"""Where two ends meet: loopback, or two network namespaces of our own with a cable between them.

The namespaces carry the number of the process that made them. They are removed when the block ends, also on Ctrl-C
and SIGTERM; what a killed run left is found by its number and removed by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = Path("/run/netns")
NAME = re.compile(r"kvfpeers(\d+)[ab]$")
SUBNET = "10.198.77"
# A bucket as large as a few of the kernel's 64 KiB sends; the queue may hold some milliseconds of the link.
SHAPED_BURST = "1m"
SHAPED_LATENCY = "5ms"


class NetworkError(Exception):
    """Namespaces or the cable could not be made; the text says why."""


@dataclass(frozen=True)
class Place:
    """Addresses of the two ends, and the namespaces they live in (empty for the one everybody is in)."""

    initiator_ip: str
    target_ip: str
    initiator_namespace: str = ""
    target_namespace: str = ""
    # The network device at each end.
    initiator_device: str = "lo"
    target_device: str = "lo"

    def at_initiator(self) -> list[str]:
        """What goes before a command that is to run at the initiator's end."""
        return _within(self.initiator_namespace)

    def at_target(self) -> list[str]:
        return _within(self.target_namespace)


LOOPBACK = Place("127.0.0.1", "127.0.0.1")


def why_not() -> str | None:
    """Why no namespaces can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (Debian: iproute2)"
    return None


@contextmanager
def cable(rate: str | None = None) -> Iterator[Place]:
    """Two namespaces joined by a veth pair, limited to ``rate`` (as tc writes it) in both directions if one is given.

    Raises:
        NetworkError: the kernel or the tools refuse.
    """
    remove_stale()
    names = [f"kvfpeers{os.getpid()}{end}" for end in "ab"]
    place = Place(f"{SUBNET}.1", f"{SUBNET}.2", names[0], names[1], names[0], names[1])
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run(
            "ip",
            "link",
            "add",
            names[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            names[1],
            "netns",
            names[1],
        )
        for name, address in zip(names, (place.initiator_ip, place.target_ip), strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", name, "up")
            if rate is not None:
                shape = ("root", "tbf", "rate", rate, "burst", SHAPED_BURST, "latency", SHAPED_LATENCY)
                _run("tc", "-n", name, "qdisc", "add", "dev", name, *shape)
        yield place
    finally:
        for name in names:
            _remove(name)


def remove_stale() -> None:
    """Removes the namespaces of runs that are gone."""
    if not NAMESPACES.is_dir():
        return
    for path in NAMESPACES.iterdir():
        found = NAME.match(path.name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            _remove(path.name)


def _remove(name: str) -> None:
    # The cable goes with either of its ends.
    subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def _within(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace] if namespace else []


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"`{' '.join(command)}`: {done.stderr.strip()}")
