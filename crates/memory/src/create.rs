//! Makes the memory an engine registers.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::{CreateError, REGION_BYTES_MAX};

/// Makes a memfd of `bytes` zero bytes whose length can never change again, ready for
/// [`Region::map`](crate::Region::map). `name` shows up in `/proc/*/maps`. Pages are allocated at first touch.
///
/// # Errors
///
/// For zero bytes, more than [`REGION_BYTES_MAX`], and whatever the operating system refuses.
pub fn create(name: &str, bytes: u64) -> Result<OwnedFd, CreateError> {
    if bytes == 0 {
        return Err(CreateError::Empty);
    }
    if bytes > REGION_BYTES_MAX {
        return Err(CreateError::TooLarge { bytes });
    }
    let step = |step: &'static str| move |errno: Errno| CreateError::Io { step, errno };
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(step("create a memfd"))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(step("set the length of a memfd"))?;
    // SEAL itself is sealed: whoever gets the fd can neither resize it nor seal writing away from the others.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(step("seal a memfd"))?;
    Ok(fd)
}
