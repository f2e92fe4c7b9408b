//! Why a directory is no store, and why bytes did not come or go.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use super::format;

/// Why there is no disk store.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// What should say the version says nothing.
    #[error(
        "{path} is damaged: nobody can say what the directory holds; empty the directory, or give the disk tier another one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else has it, or the disk is still writing what a daemon that ended has given it.
    #[error("{path} is in use by {}: two daemons need a directory each", holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Process id of the daemon that was there first, if it left that.
        holder: Option<u32>,
    },
    /// The operating system said no.
    #[error("the operating system refused to {step} in {path}: {errno}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// No block of any size would fit.
    #[error(
        "extents of {extent_bytes} bytes in {bytes_max} bytes hold no block: an extent has 16 KiB at least, and the store room for one"
    )]
    Limits {
        /// As asked for.
        extent_bytes: u64,
        /// As asked for.
        bytes_max: u64,
    },
    /// The file system would keep the blocks in memory as well, or takes pieces of more than a page only.
    #[error(
        "the file system of {path} has no O_DIRECT in pieces of 4096 bytes: give the disk tier a directory on a local disk"
    )]
    NoDirect {
        /// The directory.
        path: PathBuf,
    },
    /// Files of somebody else are there, and no store.
    #[error("{path} holds other files and no store: give the disk tier an empty directory")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Others may look into it, or it belongs to them.
    #[error("{path} is not ours alone: it must belong to this user, with mode 700")]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// Another program's format.
    #[error(
        "{path} holds a store of version {found}, and this daemon has version {}: empty the directory, give the disk tier another one, or run the daemon that made it",
        format::VERSION
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// Why a block's bytes did not come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DiskError {
    /// What was read has another checksum than what was stored.
    #[error("the disk gave back other bytes than it got")]
    Damaged,
    /// The operating system said no.
    #[error("the disk failed: {0}")]
    Io(Errno),
    /// The bytes are not inside the region that was named, or fewer than the block's.
    #[error("the block does not lie inside the region")]
    Outside,
    /// The file ended before the block did.
    #[error("the disk gave back, or took, fewer bytes than the block has")]
    Short,
}

/// Why a store takes no more blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadOnly {
    /// Its file system is mounted read-only, or became so.
    #[error("the file system is read-only")]
    FileSystem,
    /// Writing failed so often, one after the other, that the disk is taken for broken.
    #[error("{count} writes in a row failed, the last one with: {last}")]
    Writes {
        /// How many.
        count: u32,
        /// How the last one failed.
        last: DiskError,
    },
}
