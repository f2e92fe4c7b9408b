"""What is read from the programs that measure: our benches, fio and LMCache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import under_load
from cells import Cell
from children import PeerError
from disk import parse_fio, parse_lmcache
from network import LOOPBACK
from our_tiers import OURS, copied, looked_up, moved
from peer import Turn
from places import BESIDE, SETTINGS
from rows import Row

MIB = 1 << 20


def test_a_copy_has_ours_in_both_directions_and_its_ceiling_in_neither() -> None:
    line = {"block_bytes": 65536, "blocks": 1024, "put_gbps": 5.0, "get_gbps": 6.0, "memcpy_gbps": 7.0}
    assert list(copied({"copy": [line], "look_up": []})) == [
        (OURS, Cell("write", 1024, 65536), 5.0),
        (OURS, Cell("read", 1024, 65536), 6.0),
        ("memcpy", Cell("any", 1024, 65536), 7.0),
    ]


def test_look_ups_are_told_apart_by_the_size_of_blocks() -> None:
    lines = [{"block_bytes": size, "arena_us": us, "hash_set_us": 9.0} for size, us in ((65536, 40.0), (737280, 30.0))]
    found = list(looked_up({"look_up": lines}))
    assert found[0] == (OURS, 65536, 40.0)
    assert found[2] == (OURS, 737280, 30.0)
    assert found[3] == ("hash-set", 737280, 9.0)


def test_the_disk_stands_beside_fio_where_there_was_one() -> None:
    figures = {"gbps": 2.0, "p50_us": 10.0, "p99_us": 20.0}
    line: dict[str, Any] = {"op": "read", "block_bytes": MIB, "depth": 8, "ours": figures, "fio": None}
    assert list(moved({"disk": [line]})) == [(OURS, Cell("read", 8, MIB), figures)]
    both = list(moved({"disk": [{**line, "fio": figures}]}))
    assert [peer for peer, _, _ in both] == [OURS, "fio"]


def fio_says(op: str, **other: Any) -> str:
    times = {"percentile": {"50.000000": 4_000_000, "99.000000": 9_000_000}}
    return "note: both iodepth\n" + json.dumps({"jobs": [{op: {"bw_bytes": 2e9, "clat_ns": times, **other}}]})


def test_fio_is_read_in_the_direction_it_was_asked_in() -> None:
    cell = Cell("write", 8, MIB)
    assert parse_fio(fio_says("write"), cell) == {"gbps": 2.0, "p50_us": 4000.0, "p99_us": 9000.0}
    with pytest.raises(PeerError, match="fio printed something unknown"):
        parse_fio(fio_says("read"), cell)


@pytest.mark.parametrize("printed", ["", "fio: No space left", "{", '{"jobs": []}'])
def test_what_is_not_fio_s_report_is_an_error(printed: str) -> None:
    with pytest.raises(PeerError):
        parse_fio(printed, Cell("read", 8, MIB))


def lmcache_says(operation: str, success: int = 80) -> dict[str, Any]:
    found = {
        "operation": operation,
        "total_keys": 80,
        "total_success": success,
        "duration_avg_ms": 8.0,
        "duration_p50_ms": 7.0,
        "duration_p99_ms": 9.0,
    }
    return {"metrics": {"config": {"data_per_round_mb": 16.0}, "op_0": found}}


def test_lmcache_counts_in_mebibytes() -> None:
    (op, figures), *rest = parse_lmcache(lmcache_says("Load"))
    assert (op, rest) == ("read", [])
    assert figures == {"gbps": pytest.approx(16 * MIB / 8e-3 / 1e9), "p50_us": 7000.0, "p99_us": 9000.0}
    assert list(parse_lmcache(lmcache_says("Lookup"))) == []


def test_a_key_that_lmcache_lost_is_an_error() -> None:
    with pytest.raises(PeerError, match="Load: 79 of 80 keys"):
        list(parse_lmcache(lmcache_says("Load", 79)))


def recorded(name: str, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Row]:
    """The rows of a turn in which the program printed this, after what it says of its seeds."""
    monkeypatch.setattr(under_load, "program", lambda *_: Path("program"))
    monkeypatch.setattr(under_load, "output", lambda *_, **__: f"seed 7\n{json.dumps(document)}\n")
    rows: list[Row] = []
    setting = next(setting for setting in SETTINGS if setting.name == name)
    under_load.Daemons("kvferry", "KVFerry", (name,)).measure(Turn(0, setting, LOOPBACK, tmp_path, rows.append))
    return rows


def test_transfers_of_a_run_are_three_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = {"transfers": 9, "p50_us": 1, "p99_us": 2, "engine_p50_us": 3, "engine_p99_us": 4}
    line = {"blocks": 47, "block_bytes": 720 << 10} | {
        kind: figures | {"p99_us": us} for kind, us in (("idle", 5), ("offload", 6), ("floor", 7))
    }
    rows = recorded("beside", {"beside": [line]}, monkeypatch, tmp_path)
    assert [(row.peer, row.p99_us, row.cell) for row in rows] == [
        (peer, us, BESIDE[2]) for peer, us in (("idle", 5), ("kvferry", 6), ("floor", 7))
    ]


@pytest.mark.parametrize(("whole", "is_error"), [(4, False), (3, True)])
def test_a_lost_block_is_an_error(whole: int, is_error: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = {"how": "kill", "gap_us": 10, "engine_us": 20, "kept": 4, "found": 4, "whole": whole}
    rows = recorded("restart", {"restart": [line]}, monkeypatch, tmp_path)
    assert [(row.way["what"], row.p50_us) for row in rows] == [("gap", 10), ("engine", 20)]
    assert all((row.error is not None) == is_error for row in rows)
