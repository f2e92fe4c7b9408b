//! `kvferry status`: engines, regions, leases, peers and transfers of this node's daemon.

use anyhow::{Context as _, Result};
use clap::Args;

use super::ask::Ask;
use crate::daemon::status::{PeerStatus, Status};

/// Shows what this node's daemon holds and does.
#[derive(Args, Debug)]
pub(crate) struct ShowStatus {
    #[command(flatten)]
    ask: Ask,
    /// Prints one JSON document, with the blocks of the last 64 transfers.
    #[arg(long)]
    json: bool,
}

impl ShowStatus {
    pub(crate) fn run(self) -> Result<()> {
        let json = self.ask.client()?.status()?;
        if self.json {
            println!("{json}");
            return Ok(());
        }
        let status: Status = serde_json::from_str(&json).context("read the daemon's status")?;
        print(&status);
        Ok(())
    }
}

pub(super) fn mebibytes(bytes: u64) -> String {
    // Three digits behind the point are exact enough for people.
    format!("{}.{:03} MiB", bytes >> 20, ((bytes & ((1 << 20) - 1)) * 1000) >> 20)
}

/// One line: who, in which state, since when, and what is wrong.
fn peer_line(peer: &PeerStatus) -> String {
    let mut line = format!("{:<3}  {}  {} for {} s", peer.direction, peer.peer, peer.state, peer.for_ms / 1000);
    if peer.configured {
        line += "  configured";
    }
    if peer.tries > 0 {
        line += &format!("  {} tries", peer.tries);
    }
    if !peer.fault.is_empty() {
        line += &format!("  last fault: {}", peer.fault);
    }
    if peer.direction == "in" {
        line += &format!("  idle for {} s", peer.idle_ms / 1000);
    }
    line
}

fn print(status: &Status) {
    println!(
        "node {}  kvferry {}  up {} s  peers call {}",
        status.node, status.version, status.uptime_s, status.address
    );
    println!("threads  {}", status.scheduling);
    println!("\nengines ({})", status.engines.len());
    for engine in &status.engines {
        println!(
            "  {}  epoch {}  {} of {} ranks  scheduler {}",
            engine.engine,
            engine.epoch,
            engine.workers.len(),
            engine.rank_count,
            if engine.scheduler { "connected" } else { "away" }
        );
        for worker in &engine.workers {
            println!(
                "    rank {}  pid {}  uid {}  {}  {} blocks  {}  by {}  fingerprint {}",
                worker.rank,
                worker.pid,
                worker.uid,
                worker.order,
                worker.blocks,
                mebibytes(worker.bytes),
                worker.hop,
                worker.fingerprint
            );
        }
    }
    println!("\nregions  {} mapped, {}", status.regions.count, mebibytes(status.regions.bytes));
    println!("\nleases ({})", status.leases.len());
    for lease in &status.leases {
        println!(
            "  {:016x}  {}  {}  {} blocks  {} ms left  {} reads",
            lease.lease, lease.engine, lease.request, lease.blocks, lease.left_ms, lease.reads
        );
    }
    println!("\npeers ({})", status.peers.len());
    for peer in &status.peers {
        println!("  {}", peer_line(peer));
    }
    println!();
    for line in super::cache::tier_lines(status.tiers.as_ref()) {
        println!("{line}");
    }
    let transfers = &status.transfers;
    println!(
        "\ntransfers  {} delivered ({}), {} failed",
        transfers.delivered_total,
        mebibytes(transfers.bytes_total),
        transfers.failed_total
    );
    for (direction, active) in [("in", &transfers.reading), ("out", &transfers.serving)] {
        for transfer in active {
            println!(
                "  {direction:<4} {}  {}  {}  for {} ms",
                transfer.peer, transfer.request, transfer.state, transfer.for_ms
            );
        }
    }
    for transfer in transfers.finished.iter().rev().take(10) {
        println!(
            "  done {}  {}  {}  {}  {} us",
            transfer.holder,
            transfer.request,
            transfer.outcome,
            mebibytes(transfer.bytes),
            transfer.micros
        );
    }
}
