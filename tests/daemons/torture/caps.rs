//! What tiers may take at most, held against what is there.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Limits of one daemon, as its config has them.
pub(super) struct Caps {
    pub(super) arena: PathBuf,
    pub(super) arena_bytes: u64,
    pub(super) store: PathBuf,
    pub(super) store_bytes_max: u64,
    pub(super) store_files_max: usize,
    /// The most that was ever seen.
    pub(super) seen: (u64, usize),
}

impl Caps {
    /// What all files on the disk take, as the disk counts, and how many they are, is within the limits; so is host memory.
    pub(super) fn check(&mut self) {
        // A file that goes between the list and the look counts for nothing.
        let files = std::fs::read_dir(&self.store).into_iter().flatten();
        let sizes: Vec<u64> = files
            .filter_map(|file| file.ok()?.metadata().ok())
            .map(|data| data.len().max(data.blocks() * 512))
            .collect();
        let (bytes, count) = (sizes.iter().sum(), sizes.len());
        assert!(bytes <= self.store_bytes_max, "{bytes} bytes on the disk, of {}", self.store_bytes_max);
        assert!(count <= self.store_files_max, "{count} files on the disk, of {}", self.store_files_max);
        self.seen = (self.seen.0.max(bytes), self.seen.1.max(count));
        if let Ok(data) = std::fs::metadata(&self.arena) {
            assert!(data.len().max(data.blocks() * 512) <= self.arena_bytes, "{data:?}");
        }
    }
}
