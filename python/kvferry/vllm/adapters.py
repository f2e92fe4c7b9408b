"""What LoRA adapters contain, because vLLM names the KV cache computed with one by its name and path alone.

::

    request.lora_request -> of() -> a digest of the adapter's files -> names of blocks, digest of the prompt
                               \\-> None: nobody knows, so nothing is looked up, stored, leased or redeemed

vLLM starts with an empty cache, and so may take a path for its content (``_gen_lora_extra_hash_keys`` in
``v1/core/kv_cache_utils.py``). Tiers outlive it, and the other end of a transfer has a path of its own.

The files are read once, all of them, on threads of their own: an adapter of 500 MB takes a second or so, and the
scheduler does not wait for it. Requests that come meanwhile are asked again, as while the daemon is asked, for at most
the reply timeout.

What counts is what the workers have loaded, and they do not say when they did. They load no adapter before this object
is made, and may load one again at any time. So an adapter is known only as long as its files are what they were at that
moment: the time of the last change of everything on the way to them (``st_ctime``, which nobody can set) is earlier,
and it is looked at again while there are requests. One that came or was changed since is computed as if KVFerry were
not there, until the engine starts again. A file server whose clock is behind this node's can hide a change of the
first moments; a folder further up that was moved is seen only when it happens later.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kvferry.vllm.complaints import logger

# Of a folder, what vLLM reads: adapter_config.json and one of adapter_model.* (``lora/lora_model.py``).
FILE_PREFIX = "adapter_"
WEIGHTS_PREFIX = "adapter_model"
# Chosen: far beyond adapters of now, which have some 10 to 500 MB in two files.
BYTES_MAX = 16 << 30
FILES_MAX = 64
# As deep as Linux follows them.
LINKS_MAX = 40
# Chosen: the one asked for longest ago is forgotten, and read again when it is asked for.
ADAPTERS_MAX = 1024
# Chosen: so that reading does not take all cores from the engine.
READERS_MAX = 2
# Chosen: while there are requests, a change is heeded within a second, which takes a few calls of the kernel.
RECHECK_SECONDS = 1.0
# Chosen: who was not looked at for this long is not known before that has been done. Longer than a step of an engine on
# CPUs, which asks before and behind it.
FRESH_SECONDS = 60.0
_PIECE_BYTES = 1 << 20


class _UnknowableError(Exception):
    """Why nobody can say what an adapter contains."""


@dataclass
class _Adapter:
    path: str
    # Of the engine and the request, what decides how the files are read.
    facts: str
    # Since when requests wait for it; None: they do not.
    awaited_since: float | None = None
    # When it was last looked at, and whether it is being looked at: then the rest belongs to the thread that does.
    looked_at: float = -math.inf
    is_busy: bool = False
    # When it was last seen to be what it was.
    confirmed_at: float = -math.inf
    status: tuple[tuple[object, ...], ...] = ()
    digest: bytes | None = None
    # Why there is no digest and will not be; None: there is or may be.
    reason: str | None = None
    is_told: bool = False


def _on_a_thread(work: Callable[[], None]) -> None:
    # A daemon's: a file server that hangs must not keep the engine from ending.
    threading.Thread(target=work, name="kvferry-adapter", daemon=True).start()


class Adapters:
    """Asked by the scheduler's thread alone."""

    def __init__(
        self,
        facts: str = "",
        wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] = _on_a_thread,
        began_ns: int | None = None,
    ) -> None:
        """
        Args:
            facts: what else of the engine decides what an adapter does to KV cache.
            wait_seconds: how long requests may wait for an adapter to be read.
            clock: for the waits.
            start: runs work beside the caller.
            began_ns: since when the engine may have loaded adapters, by the clock of files; None: since now.
        """
        self._facts = facts
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._start = start
        self._began_ns = time.time_ns() if began_ns is None else began_ns
        # By name, path and how vLLM is told to read it; the one asked for longest ago is first.
        self._adapters: dict[tuple[str, str, bool], _Adapter] = {}

    def of(self, request: Any) -> bytes | None:
        """The digest of what a request's adapter contains; empty: it has none; None: nobody knows."""
        adapter = self._find(request)
        return b"" if adapter is None else self._known(adapter)

    def _known(self, adapter: _Adapter) -> bytes | None:
        return adapter.digest if self._clock() < adapter.confirmed_at + FRESH_SECONDS else None

    def are_awaited(self, request: Any) -> bool:
        """Whether the request's adapter is being read, and not for long yet."""
        adapter = self._find(request)
        if adapter is None or adapter.reason is not None:
            return False
        if self._known(adapter) is not None:
            adapter.awaited_since = None
            return False
        if adapter.awaited_since is None:
            adapter.awaited_since = self._clock()
        return self._clock() < adapter.awaited_since + self._wait_seconds

    def _find(self, request: Any) -> _Adapter | None:
        lora = getattr(request, "lora_request", None)
        if lora is None:
            return None
        is_3d = bool(getattr(lora, "is_3d_lora_weight", False))
        key = (lora.lora_name, lora.lora_path, is_3d)
        adapter = self._adapters.pop(key, None)
        if adapter is None:
            if len(self._adapters) >= ADAPTERS_MAX:
                # Those being read stay, and count among the readers.
                del self._adapters[next(key for key, other in self._adapters.items() if not other.is_busy)]
            adapter = _Adapter(_local(lora.lora_path), f"{self._facts}, 3d {is_3d}")
        self._adapters[key] = adapter
        self._look(adapter)
        if adapter.reason is not None and not adapter.is_told:
            adapter.is_told = True
            text = "kvferry: LoRA adapter %r is served without KVFerry, its prompts are computed: %s: %s"
            logger.warning(text, lora.lora_name, lora.lora_path, adapter.reason)
        return adapter

    def _look(self, adapter: _Adapter) -> None:
        now = self._clock()
        if adapter.is_busy or adapter.reason is not None or now < adapter.looked_at + RECHECK_SECONDS:
            return
        if adapter.digest is None and sum(other.is_busy for other in self._adapters.values()) >= READERS_MAX:
            return
        adapter.is_busy, adapter.looked_at = True, now
        self._start(lambda: self._read(adapter))

    def _read(self, adapter: _Adapter) -> None:
        """Beside the scheduler: reads an adapter, or sees whether it is what it was."""
        try:
            status, files = self._status(adapter.path)
            if adapter.digest is None:
                digest = _digest(adapter.path, files, adapter.facts)
                if self._status(adapter.path)[0] != status:
                    raise _UnknowableError("it was changed while it was read")
                adapter.status, adapter.digest = status, digest
            elif status != adapter.status:
                raise _UnknowableError("it was changed since this engine started")
            adapter.confirmed_at = adapter.looked_at
        except (OSError, _UnknowableError) as error:
            adapter.digest, adapter.reason = None, str(error)
        except Exception as error:  # A bug of ours costs a recompute.
            adapter.digest, adapter.reason = None, repr(error)
        finally:
            adapter.is_busy = False

    def _status(self, folder: str) -> tuple[tuple[tuple[object, ...], ...], list[str]]:
        """What the kernel says of the folder, its files and the links on the way; and the files.

        Raises:
            OSError: something of it cannot be looked at.
            _UnknowableError: it is no adapter, or something of it is newer than the engine.
        """
        if not os.path.isdir(folder):
            raise _UnknowableError("it is no folder on this node")
        names = sorted(name for name in os.listdir(folder) if name.startswith(FILE_PREFIX))
        files = [os.path.join(folder, name) for name in names]
        if not any(name.startswith(WEIGHTS_PREFIX) for name in names):
            raise _UnknowableError("it has no weights")
        if len(files) > FILES_MAX:
            raise _UnknowableError(f"it has more than {FILES_MAX} files")
        seen: dict[str, os.stat_result] = {}
        for place in (folder, *files):
            for link in _links(place):
                seen[f"link {link}"] = os.lstat(link)
            seen[place] = os.stat(place)
        if not all(stat.S_ISREG(seen[file].st_mode) for file in files):
            raise _UnknowableError("it holds what is no plain file")
        if sum(seen[file].st_size for file in files) > BYTES_MAX:
            raise _UnknowableError(f"it is larger than {BYTES_MAX} bytes")
        if any(of.st_ctime_ns > self._began_ns for of in seen.values()):
            raise _UnknowableError("it was changed since this engine started, which may have loaded it before")
        status = tuple(
            (place, of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for place, of in seen.items()
        )
        return status, files


def _local(path: str) -> str:
    """As vLLM's ``get_adapter_absolute_path`` (``lora/utils.py``), which takes what is not there for a hub's name."""
    return os.path.abspath(os.path.expanduser(path) if path.startswith("~") else path)


def _links(path: str) -> list[str]:
    """The symbolic links on the way to a path: whoever changes one puts another folder there."""
    found: list[str] = []
    paths = [path]
    while paths and len(found) < LINKS_MAX:
        place = ""
        for part in PurePath(paths.pop()).parts:
            place = os.path.join(place, part)
            if place not in found and os.path.islink(place):
                found.append(place)
                paths.append(os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place))))
    return found


def _digest(folder: str, files: list[str], facts: str) -> bytes:
    digest = hashlib.sha256(f"kvferry adapter 1 {facts}\0".encode())
    for path in files:
        with open(path, "rb") as file:
            name = os.path.relpath(path, folder)
            digest.update(f"{name} {os.fstat(file.fileno()).st_size}\0".encode("utf-8", "surrogateescape"))
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.digest()


def lora_facts(vllm_config: Any) -> str:
    """What of the engine's own settings decides what an adapter does to KV cache."""
    lora = getattr(vllm_config, "lora_config", None)
    names = ("lora_dtype", "enable_tower_connector_lora", "enable_mixed_moe_lora_format", "enable_moe_shared_loras")
    facts = [f"{name} {getattr(lora, name, None)}" for name in names]
    return ", ".join([*facts, f"target_modules {sorted(getattr(lora, 'target_modules', None) or ())}"])
