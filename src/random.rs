//! Randomness from the operating system.

use anyhow::{Context as _, Result};

/// 32 bytes that nobody can guess.
pub(crate) fn key() -> Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(std::io::Error::other).context("read the operating system's random numbers")?;
    Ok(key)
}

/// A number that nobody can guess, never 0.
pub(crate) fn number() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other).context("read the operating system's random numbers")?;
    Ok(u64::from_le_bytes(bytes).max(1))
}
