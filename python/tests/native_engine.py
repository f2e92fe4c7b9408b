"""Run by test_native_daemon.py in a process of its own: two engines of two ranks over one real daemon, no vLLM.

Prints one word for each thing that went as it should; anything else is a traceback.
"""

import atexit
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time

from kvferry import native
from kvferry.client import (
    DAEMON_GONE,
    AttachSpec,
    Connected,
    Disconnected,
    GroupBlocks,
    Layout,
    LeaseEnded,
    RefusedError,
    Span,
    TransferDone,
    UnavailableError,
)

BLOCKS, BLOCK_BYTES = 16, 8192
LAYOUT = Layout("LBHNC", BLOCKS, BLOCKS * BLOCK_BYTES, ((Span(1, 0, BLOCKS * BLOCK_BYTES, BLOCK_BYTES, 2, 16, 256),),))


class Rank:
    def __init__(self, socket, engine_id, rank, ranks):
        self.fd = os.memfd_create("test", 3)
        os.ftruncate(self.fd, BLOCKS * BLOCK_BYTES)
        fcntl.fcntl(self.fd, 1033, 7)
        self.memory = mmap.mmap(self.fd, BLOCKS * BLOCK_BYTES)
        self.client = native.start_worker(socket, engine_id, 2000)
        self.client.attach(AttachSpec(rank, ranks, LAYOUT, b"f" * 32, self.fd))

    def block(self, index):
        return slice(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)


def wait(client, kind, **fields):
    for _ in range(1000):
        for event in client.poll():
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
                return event
        time.sleep(0.01)
    raise AssertionError(f"no {kind.__name__} {fields}")


def start(binary, config):
    daemon = subprocess.Popen([binary, "serve", "--config", config], stdout=sys.stderr)
    atexit.register(daemon.kill)
    return daemon


def main(binary, config, socket):
    scheduler = native.start_scheduler(socket, "P", 2000)
    try:
        scheduler.grant("early", [[1]], 5000, b"")
    except UnavailableError:
        print("unavailable")
    daemon = start(binary, config)
    holders = [Rank(socket, "P", rank, 2) for rank in range(2)]
    wait(scheduler, Connected)
    wait(holders[0].client, Connected)
    wait(holders[1].client, Connected)
    reader_scheduler = native.start_scheduler(socket, "D", 2000)
    readers = [Rank(socket, "D", rank, 2) for rank in range(1)]
    wait(reader_scheduler, Connected)
    try:
        for _ in range(100):
            reader_scheduler.grant("half", [[1]], 5000, b"")
    except RefusedError:
        print("refused")
    readers.append(Rank(socket, "D", 1, 2))
    for reader in readers:
        wait(reader.client, Connected)

    for number, holder in enumerate(holders):
        holder.memory[holder.block(5)] = bytes([number + 1]) * BLOCK_BYTES
        holder.memory[holder.block(3)] = bytes([number + 11]) * BLOCK_BYTES
    granted = scheduler.grant("r", [[3, 9, 5]], 5000, b"")
    assert 0 < granted.lease_ms <= 5000
    wanted = [GroupBlocks((0, 2), (7, 8))]
    keys = [reader.client.redeem("d", granted.ticket, wanted, 5000, b"") for reader in readers]
    for number, (reader, key) in enumerate(zip(readers, keys, strict=True)):
        done = wait(reader.client, TransferDone, key=key)
        assert (done.failure, done.request_id, done.bytes) == (None, "d", 2 * BLOCK_BYTES), done
        assert reader.memory[reader.block(7)] == bytes([number + 11]) * BLOCK_BYTES
        assert reader.memory[reader.block(8)] == bytes([number + 1]) * BLOCK_BYTES
    print("delivered")
    ended = wait(scheduler, LeaseEnded, lease_id=granted.lease_id)
    assert (ended.request_id, ended.daemon_epoch) == ("r", granted.daemon_epoch)
    print("ended", ended.reason)

    again = readers[0].client.redeem("e", granted.ticket, wanted, 5000, b"")
    assert wait(readers[0].client, TransferDone, key=again).failure
    forged = readers[0].client.redeem("f", "forged", wanted, 5000, b"")
    assert wait(readers[0].client, TransferDone, key=forged).failure
    print("forged")

    given_back = scheduler.grant("s", [[4]], 60000, b"")
    reader_scheduler.relinquish(given_back.ticket)
    assert wait(scheduler, LeaseEnded, lease_id=given_back.lease_id).reason == "relinquished"
    short = scheduler.grant("t", [[4]], 1000, b"")
    assert wait(scheduler, LeaseEnded, lease_id=short.lease_id).reason == "expired"
    print("expired")

    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    wait(scheduler, Disconnected)
    gone = readers[0].client.redeem("g", granted.ticket, wanted, 5000, b"")
    assert wait(readers[0].client, TransferDone, key=gone).failure == DAEMON_GONE
    daemon = start(binary, config)
    assert wait(scheduler, Connected).daemon_epoch != granted.daemon_epoch
    for rank in holders + readers:
        wait(rank.client, Connected)
    new = scheduler.grant("u", [[3]], 5000, b"")
    old = readers[0].client.redeem("v", granted.ticket, wanted, 5000, b"")
    assert wait(readers[0].client, TransferDone, key=old).failure
    key = readers[1].client.redeem("w", new.ticket, [GroupBlocks((0,), (2,))], 5000, b"")
    assert wait(readers[1].client, TransferDone, key=key).failure is None
    assert readers[1].memory[readers[1].block(2)] == bytes([12]) * BLOCK_BYTES
    print("restarted")
    for client in (scheduler, reader_scheduler, *(rank.client for rank in holders + readers)):
        client.close()
    daemon.terminate()
    daemon.wait()
    print("over")


if __name__ == "__main__":
    main(*sys.argv[1:])
