//! The memory of one end: a region to send from and a region to receive into, made once and used by every cell.
//!
//! Limits: [`SHARE_MAX`] of what the machine says is available. Failure: what does not fit is refused with both
//! numbers, before a page is touched. Regions grow with the largest cell and go with the end.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kvferry_memory::{Meter, Region};

use super::{content, size};

/// Most of the available memory that one region may take: the last of four still fits.
const SHARE_MAX: f64 = 0.8;

/// Regions by use.
#[derive(Default)]
pub(super) struct Arena {
    source: Option<Arc<Region>>,
    target: Option<Arc<Region>>,
}

impl Arena {
    /// A region of at least this size that holds the pattern of sources.
    pub(super) fn source(&mut self, bytes: u64) -> Result<Arc<Region>> {
        grow(&mut self.source, "kvferry-bench-source", bytes, content::fill)
    }

    /// A region of at least this size, every page of it touched.
    pub(super) fn target(&mut self, bytes: u64) -> Result<Arc<Region>> {
        grow(&mut self.target, "kvferry-bench-target", bytes, content::wipe)
    }
}

fn grow(
    slot: &mut Option<Arc<Region>>,
    name: &str,
    bytes: u64,
    touch: impl FnOnce(&Region) -> Result<()>,
) -> Result<Arc<Region>> {
    if let Some(region) = slot.as_ref().filter(|region| region.len() >= bytes) {
        return Ok(Arc::clone(region));
    }
    // The smaller one goes first.
    *slot = None;
    let available = available_bytes()?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "memory sizes are far below 2^53"
    )]
    let most = (available as f64 * SHARE_MAX) as u64;
    ensure!(
        bytes <= most,
        "a region of {} MiB does not fit: {} MiB of memory are available; ask for fewer --blocks, a smaller \
         --block-size or a smaller --region",
        bytes >> 20,
        available >> 20
    );
    let fd = kvferry_memory::create(name, bytes)?;
    let region = Region::map(fd, bytes, &Meter::new()).context("map memory to move blocks in")?;
    touch(&region)?;
    *slot = Some(Arc::clone(&region));
    Ok(region)
}

/// What the kernel says can be had without swapping.
pub(super) fn available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("ask for the available memory")?;
    parse_available(&text).context("/proc/meminfo does not say how much memory is available")
}

fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let (number, unit) = line.trim().split_once(' ')?;
    (unit == "kB").then(|| number.parse::<u64>().ok()).flatten()?.checked_mul(1 << 10)
}

/// The region that all cells of a run use: as large as wished, less where that does not fit, and never smaller than
/// the largest transfer. `regions` of them will lie in this machine's memory.
pub(super) fn region_bytes(wished: u64, largest_transfer: u64, regions: u64, available: u64) -> Result<u64> {
    let fits = available / 2 / regions.max(1);
    let largest_fits = largest_transfer <= fits;
    ensure!(
        largest_fits,
        "{regions} regions of {} bytes do not fit: {} MiB of memory are available, and half of that may be used; ask \
         for fewer --blocks or a smaller --block-size",
        size::bytes(largest_transfer),
        available >> 20
    );
    // Whole pages.
    Ok((wished.min(fits).max(largest_transfer)).next_multiple_of(4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24650588 kB\nMemFree:  1 kB\nMemAvailable:   23018236 kB\n";
        assert_eq!(parse_available(text), Some(23_018_236 << 10));
        for bad in
            ["", "MemAvailable: 5 MB", "MemAvailable: x kB", "MemAvailable:", "MemAvailable: 18446744073709551615 kB"]
        {
            assert_eq!(parse_available(bad), None, "{bad:?}");
        }
        available_bytes().expect("this machine has memory");
    }

    #[test]
    fn a_region_is_what_fits() {
        let gib = 1 << 30;
        assert_eq!(region_bytes(gib / 2, gib / 4, 4, 16 * gib).expect("fits"), gib / 2);
        assert_eq!(region_bytes(gib / 2, gib, 4, 16 * gib).expect("the transfer decides"), gib);
        assert_eq!(region_bytes(gib / 2, 4096, 4, gib).expect("less"), gib / 8);
        let said = region_bytes(gib / 2, gib, 4, gib).expect_err("too much").to_string();
        assert!(said.contains("--blocks"), "{said}");
    }

    #[test]
    fn regions_are_kept_until_they_must_grow() {
        let mut arena = Arena::default();
        let first = arena.source(1 << 16).expect("a region");
        assert!(Arc::ptr_eq(&first, &arena.source(1 << 12).expect("the same")));
        assert_eq!(arena.source(1 << 20).expect("a larger one").len(), 1 << 20);
        let said = arena.target(1 << 43).expect_err("more than there is").to_string();
        assert!(said.contains("does not fit"), "{said}");
    }
}
