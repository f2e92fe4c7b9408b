"""The section: which verdicts stand in it, and what an answer must show before it counts."""

from __future__ import annotations

from typing import Any

import pytest

import results
from first_token import wrong
from places import BESIDE, BLOCK_TOKENS, HOST, LOOK_UP, RESTART, SETTINGS, TTFT
from promises import CLAIMS, PAGE
from rows import Row

META: dict[str, Any] = {
    "facts": {"command": "`make bench-tiers`"},
    "titles": {"kvferry": "KVFerry", "memcpy": "memcpy", "recompute": "recompute", "host": "host"},
    "notes": [],
    "rounds": 1,
}
WHOLE = TTFT.blocks
COUNTED = {"prompt_tokens": 1505, "cached_tokens": 0, "loaded_tokens": 0, "loaded_bytes": 0, "disk_bytes": 0}
LOADED = {"loaded_tokens": WHOLE * BLOCK_TOKENS, "loaded_bytes": TTFT.bytes}


def lines(*rows: Row) -> list[str]:
    return results.text(META, rows, PAGE).splitlines()


def test_ours_is_held_against_the_ceiling_of_the_same_shape() -> None:
    get = HOST[0]
    page = lines(Row(0, "host", "kvferry", get, gbps=5.0), Row(0, "host", "memcpy", get, gbps=10.0))
    assert any(
        line.startswith("| host get | read 1024 x 64 KiB | >= 0.9 | 5.00") and "**missed**" in line for line in page
    )
    assert any(line.startswith("- **missed**: Blocks go into host memory") for line in page)


@pytest.mark.parametrize(("us", "verdict"), [(42.0, "met"), (151.0, "missed")])
def test_a_look_up_is_held_against_a_number(us: float, verdict: str) -> None:
    page = lines(Row(0, "look-up", "kvferry", LOOK_UP, p50_us=us, way={"blocks_kib": 64}))
    target = next(line for line in page if line.startswith("| look-up of 4,096 hashes"))
    assert "<= 150 us" in target
    assert f"**{verdict}**" in target


def test_look_ups_among_larger_blocks_do_not_count() -> None:
    page = lines(Row(0, "look-up", "kvferry", LOOK_UP, p50_us=1.0, way={"blocks_kib": 720}))
    assert "**not measured**" in next(line for line in page if line.startswith("| look-up of 4,096 hashes"))


@pytest.mark.parametrize(("us", "verdict"), [(1249.0, "met"), (1260.0, "missed")])
def test_a_transfer_beside_offload_is_held_against_one_without(us: float, verdict: str) -> None:
    small = BESIDE[0]
    rows = [
        Row(0, "beside", "kvferry", small, p99_us=us),
        Row(0, "beside", "idle", small, p99_us=1000.0),
        # Nobody is held against the floor.
        Row(0, "beside", "floor", small, p99_us=100.0),
    ]
    target = next(line for line in lines(*rows) if line.startswith("| transfer beside offload, p99 | read 1 x 8 KiB"))
    assert f"**{verdict}**" in target


@pytest.mark.parametrize(("error", "verdict"), [(None, "met"), ("2 of 4368 blocks are not there", "not measured")])
def test_a_gap_counts_where_nothing_was_lost(error: str | None, verdict: str) -> None:
    way = {"how": "kill", "what": "gap"}
    page = lines(Row(0, "restart", "kvferry", RESTART, p50_us=4e5, way=way, error=error))
    target = next(line for line in page if line.startswith("| gap, kill -9 and started again"))
    assert "<= 500000 us" in target
    assert f"**{verdict}**" in target


def test_a_first_token_is_told_in_time() -> None:
    rows = [Row(0, "ttft", name, TTFT, p50_us=us) for name, us in (("recompute", 2e6), ("host", 2e5))]
    page = lines(*rows)
    assert "Median of one transfer, us:" in page
    assert "GB/s:" not in page
    assert any("| <= 0.15 | 200000.0 | 2000000.0 (recompute) | 0.10 | **met** |" in line for line in page)


def test_an_answer_whose_blocks_came_from_elsewhere_is_no_figure() -> None:
    rows = [
        Row(0, "ttft", "recompute", TTFT, p50_us=2e6),
        Row(0, "ttft", "host", TTFT, p50_us=1.0, error="loaded_bytes"),
    ]
    assert not any("**met**" in line for line in lines(*rows))


def test_the_page_shows_what_was_loaded() -> None:
    rows = [Row(number, "ttft", "host", TTFT, p50_us=1.0, raw=COUNTED | LOADED) for number in range(2)]
    assert "| KVFerry, loaded from host memory | 2 | 1505 | 0 | 1504 | 34652160 |" in lines(*rows)
    assert not any("loaded bytes" in line for line in lines())


def test_a_disk_that_is_not_built_says_so() -> None:
    page = lines(Row(0, "disk", "kvferry", error="disk: not built"))
    assert "| disk | KVFerry | all | disk: not built | 1 |" in page


@pytest.mark.parametrize(
    ("way", "counted", "is_right"),
    [
        ("recompute", COUNTED, True),
        ("recompute", COUNTED | {"cached_tokens": 32}, False),
        ("own-cache", COUNTED | {"cached_tokens": WHOLE * BLOCK_TOKENS}, True),
        ("own-cache", COUNTED, False),
        ("host", COUNTED | LOADED, True),
        ("host", COUNTED | LOADED | {"disk_bytes": TTFT.bytes}, False),
        ("disk", COUNTED | LOADED | {"disk_bytes": TTFT.bytes}, True),
        ("disk", COUNTED | LOADED, False),
        ("host", COUNTED | {"cached_tokens": WHOLE * BLOCK_TOKENS}, False),
        ("host", COUNTED | LOADED | {"loaded_bytes": TTFT.bytes - 1}, False),
    ],
)
def test_where_blocks_came_from_is_seen(way: str, counted: dict[str, Any], is_right: bool) -> None:
    assert (wrong(way, counted) is None) == is_right


def test_every_target_is_of_a_setting_that_is_measured() -> None:
    cells = {(setting.name, cell) for setting in SETTINGS for cell in setting.cells}
    assert {(target.setting, target.cell) for claim in CLAIMS for target in claim.targets} <= cells
