"""The disk's ceiling and a rival: fio, and LMCache's file system adapter by LMCache's own benchmark.

All of them use the file system that target/ is on, past the page cache, with as many operations under way.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import installation
from cells import Cell
from children import PeerError, output
from peer import Peer, Turn

FILE_BYTES = 2 << 30
# Below the folder of what was installed; kept from round to round.
FILE = "fio.dat"
RUN_MS = 1500
LIMIT_S = 120.0
# What its command line imports; the rest of what it asks for is for GPUs, clouds and servers. torch is vLLM's.
LMCACHE = installation.Environment(
    "lmcache",
    (
        "lmcache==0.5.6",
        "aiofile==3.12.3",
        "aiofiles==25.1.0",
        "awscrt==0.38.1",
        "caio==0.12.10",
        "nvtx==0.2.17",
        "sortedcontainers==2.4.0",
    ),
)
VLLM_PYTHON = installation.ROOT / "target" / "vllm" / "bin" / "python"
# One for each core, and as many as there are keys in a submission.
WORKERS = (2, 8)
# Of 16 and of 8 MiB: a second of them, and the first one is not counted.
SUBMISSIONS = 100
OPERATIONS = {"Store": "write", "Load": "read"}


class Fio(Peer):
    def missing(self, work: Path) -> str | None:
        return None if shutil.which("fio") is not None else "fio is not installed (Debian: fio)"

    def measure(self, turn: Turn) -> None:
        # Laid out by the first turn, for writes want places that were written before.
        file = turn.work / FILE
        if not file.exists() or file.stat().st_size != FILE_BYTES:
            self._run(turn, file, Cell("write", 8, 1 << 20), ["--rw=write", "--end_fsync=1"])
        for cell in turn.setting.cells:
            timed = [f"--rw=rand{cell.op}", "--time_based", f"--runtime={RUN_MS}ms"]
            figures = parse_fio(self._run(turn, file, cell, timed), cell)
            turn.record(replace(self.row(turn, cell), **figures))

    def _run(self, turn: Turn, file: Path, cell: Cell, words: list[str]) -> str:
        common = ["--name=peer", "--ioengine=io_uring", "--direct=1", "--randrepeat=0", "--output-format=json"]
        shape = [f"--filename={file}", f"--size={FILE_BYTES}", f"--bs={cell.block_bytes}", f"--iodepth={cell.blocks}"]
        return output(["fio", *common, *shape, *words], log=turn.log(self.name), limit_s=LIMIT_S)


def parse_fio(printed: str, cell: Cell) -> dict[str, Any]:
    """Rate, median and 99th percentile, from when fio hands an operation over until it has it back.

    Raises:
        PeerError: fio printed something else.
    """
    try:
        # Notes may stand before the document.
        found = json.loads(printed[printed.index("{") :])["jobs"][0][cell.op]
        percentiles = found["clat_ns"]["percentile"]
        return {
            "gbps": found["bw_bytes"] / 1e9,
            "p50_us": percentiles["50.000000"] / 1e3,
            "p99_us": percentiles["99.000000"] / 1e3,
        }
    except (ValueError, KeyError, IndexError) as error:
        raise PeerError(f"fio printed something unknown: {error!r}") from None


class Lmcache(Peer):
    """`lmcache bench l2`, which checks at its end that the last blocks it loaded are those it stored."""

    def missing(self, work: Path) -> str | None:
        if not (work / "lmcache" / ".ready").exists():
            return "LMCache's environment was not installed"
        return None if VLLM_PYTHON.exists() else "LMCache takes torch from vLLM's environment (tests/setup vllm)"

    def measure(self, turn: Turn) -> None:
        for cell in turn.setting.cells:
            if cell.op == "read":
                for workers in WORKERS:
                    self._both(turn, cell, workers)

    def _both(self, turn: Turn, cell: Cell, workers: int) -> None:
        packages = next((turn.work / "lmcache" / "lib").glob("python3.*/site-packages"))
        with tempfile.TemporaryDirectory(dir=turn.work, prefix="lmcache-") as folder:
            report = Path(folder) / "report.json"
            kind = {"type": "fs_native", "base_path": f"{folder}/blocks", "num_workers": workers, "use_odirect": True}
            main = "import sys; from lmcache.cli.main import main; sys.exit(main())"
            command: list[str | Path] = [VLLM_PYTHON, "-c", main, "bench", "l2", "--l2-adapter", json.dumps(kind)]
            command += ["--num-keys", str(cell.blocks), "--data-size-kb", str(cell.block_bytes >> 10)]
            command += ["--l1-align-bytes", "4096", "--rounds", str(SUBMISSIONS), "--no-skip-verify"]
            command += ["--format", "json", "--output", report]
            environment = {"PYTHONPATH": str(packages), "LMCACHE_DISABLE_BANNER": "1"}
            output(command, log=turn.log(self.name), limit_s=LIMIT_S, environment=environment)
            for op, figures in parse_lmcache(json.loads(report.read_text())):
                cell_of = Cell("read" if op == "read" else "write", cell.blocks, cell.block_bytes)
                row = replace(self.row(turn, cell_of), way={"workers": workers}, verified=True)
                turn.record(replace(row, **figures))


def parse_lmcache(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """read or write, with the rate and the times of a submission.

    Raises:
        PeerError: keys were not stored or not found again.
    """
    for name, found in document["metrics"].items():
        op = OPERATIONS.get(found.get("operation", ""))
        if not name.startswith("op_") or op is None:
            continue
        if found["total_success"] != found["total_keys"]:
            raise PeerError(f"{found['operation']}: {found['total_success']} of {found['total_keys']} keys")
        # It says MB and means MiB.
        bytes_moved = document["metrics"]["config"]["data_per_round_mb"] * (1 << 20)
        yield (
            op,
            {
                "gbps": bytes_moved / (found["duration_avg_ms"] / 1e3) / 1e9,
                "p50_us": found["duration_p50_ms"] * 1e3,
                "p99_us": found["duration_p99_ms"] * 1e3,
            },
        )
