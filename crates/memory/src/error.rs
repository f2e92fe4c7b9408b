//! Why memory could not be made, mapped or reached.

use rustix::io::Errno;
use thiserror::Error;

use crate::REGION_BYTES_MAX;

/// Why [`create`](crate::create) failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// A region of no bytes.
    #[error("a region of zero bytes was asked for: give the size of the KV cache")]
    Empty,
    /// The operating system said no.
    #[error("the operating system refused to {step}: {errno}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// More than a region may have.
    #[error("a region of {bytes} bytes was asked for: at most {REGION_BYTES_MAX} can be mapped")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
    },
}

/// Why [`Region::map`](crate::Region::map) refused a file; each message says what the engine's side must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// A region of no bytes.
    #[error("a region of zero bytes was claimed: register the KV cache's size")]
    Empty,
    /// Huge pages from hugetlbfs can run out at the moment of first use, which is a SIGBUS.
    #[error("the memfd is made of hugetlb pages: create it without MFD_HUGETLB")]
    HugePages,
    /// The operating system said no.
    #[error("the operating system refused to {step}: {errno}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// A regular file, pipe, socket or device.
    #[error("the file is not a memfd: create it by memfd_create with MFD_ALLOW_SEALING")]
    NotMemfd,
    /// Opened read-only, or sealed against writing.
    #[error("the memfd cannot be written: open it for reading and writing and leave F_SEAL_WRITE off")]
    NotWritable,
    /// More than a region may have.
    #[error("a region of {bytes} bytes was claimed: at most {REGION_BYTES_MAX} can be mapped")]
    TooLarge {
        /// What was claimed.
        bytes: u64,
    },
    /// The file ends before the region does.
    #[error("a region of {bytes} bytes was claimed, but the memfd has {file_bytes}: ftruncate it before sealing")]
    TooShort {
        /// What was claimed.
        bytes: u64,
        /// What the file has.
        file_bytes: u64,
    },
    /// Its owner could still change its length, and with that end the daemon.
    #[error("the memfd can still change its length: seal it with F_SEAL_SHRINK | F_SEAL_GROW after ftruncate")]
    Unsealed,
}

/// Why [`Region::keep`](crate::Region::keep) failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeepError {
    /// A region of no bytes, or of more than can be mapped.
    #[error("a size of {bytes} bytes was asked for: at least 1 and at most {REGION_BYTES_MAX}")]
    Bytes {
        /// What was asked for.
        bytes: u64,
    },
    /// Somebody else has it mapped.
    #[error("another process uses it: two daemons need a file each")]
    InUse,
    /// The operating system said no.
    #[error("the operating system refused to {step}: {errno}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// A file system that writes to a device: what it holds would be written there, and a full one would end the daemon.
    #[error("it is not on a file system in memory: put it on tmpfs (such as /dev/shm) or hugetlbfs")]
    NotInMemory,
    /// A directory, link, pipe, socket or device.
    #[error("it is no regular file")]
    NotRegular,
    /// Others could read it, or change its length and end the daemon with that.
    #[error("others may open it: it must belong to this user, with no rights for anybody else (mode 600)")]
    NotOurs,
}

/// A range that is not inside the region; nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("bytes {offset} to {offset} + {length} are outside the region of {region_bytes} bytes")]
pub struct OutOfBounds {
    /// Where the range starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// How long the region is.
    pub region_bytes: u64,
}
