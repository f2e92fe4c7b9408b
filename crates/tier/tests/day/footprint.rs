//! What this process and its store take.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// At one moment, or the most of several.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    /// Resident, the arena's pages included.
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: u64,
    /// In the store's directory.
    pub(crate) files: u64,
    /// As the disk counts them: a file system may need a block more or less for where a file's blocks are.
    pub(crate) bytes: u64,
    /// As the files say.
    pub(crate) lengths: u64,
}

impl Footprint {
    /// Now, with the store in this directory.
    pub(crate) fn now(store: &Path) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("read status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        let memory_kib = resident.trim().trim_end_matches(" kB").parse().expect("a number");
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("read fd").count() as u64;
        let sizes = std::fs::read_dir(store).expect("a store").map(|file| {
            let data = file.expect("a file").metadata().expect("its data");
            (data.len(), data.len().max(data.blocks() * 512))
        });
        let mut now = Self { memory_kib, descriptors, ..Self::default() };
        for (length, bytes) in sizes {
            now.files += 1;
            now.bytes += bytes;
            now.lengths += length;
        }
        now
    }

    /// Each number becomes the larger one.
    pub(crate) fn raise(&mut self, other: Self) {
        self.memory_kib = self.memory_kib.max(other.memory_kib);
        self.descriptors = self.descriptors.max(other.descriptors);
        self.files = self.files.max(other.files);
        self.bytes = self.bytes.max(other.bytes);
        self.lengths = self.lengths.max(other.lengths);
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, descriptors, files, bytes, .. } = self;
        write!(f, "{} MiB of memory, {descriptors} fds, {} MiB in {files} files", memory_kib >> 10, bytes >> 20)
    }
}
