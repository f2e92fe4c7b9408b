//! Tickets: a lease as an opaque, authenticated string that travels through routers.
//!
//! ```text
//! holder: Ticket --seal(key)--> text  ...  reader: text --parse--> Sealed (address only)  ...  holder: Sealed --open(key)--> Ticket
//! ```
//!
//! The key is drawn when a daemon starts and never leaves it, so a ticket from before a restart, of another daemon or
//! made up opens nowhere. The reader needs only the address of the holder, which it must treat as a stranger's word.
//!
//! The text is unpadded URL-safe base64 of: the fixed part ([`Fixed`], 64 bytes), the holder's address (UTF-8, at most
//! 255 bytes), and HMAC-SHA256 over both (32 bytes).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{Epoch, Fingerprint, LeaseId};

/// The format that this build writes and reads.
pub const VERSION: u8 = 1;
/// Longest text that is looked at: the base64 of the largest ticket.
pub const TEXT_LENGTH_MAX: usize = (size_of::<Fixed>() + ADDRESS_LENGTH_MAX + MAC_LENGTH).div_ceil(3) * 4;

const ADDRESS_LENGTH_MAX: usize = 255;
const MAC_LENGTH: usize = 32;

/// The secret that seals and opens the tickets of one daemon's life.
#[derive(Clone)]
pub struct TicketKey(pub [u8; 32]);

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Where the holder's control port is reached, `host:port`.
    pub address: String,
    /// The holder's epoch: one life of its daemon.
    pub daemon_epoch: Epoch,
    /// The epoch of the engine whose blocks are leased.
    pub engine_epoch: Epoch,
    /// What must agree with the reader's engine.
    pub fingerprint: Fingerprint,
    /// The lease.
    pub lease: LeaseId,
}

/// A ticket that nobody has checked yet. Its address may be anybody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    bytes: Vec<u8>,
    address_length: usize,
}

/// Why a ticket is no ticket.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TicketError {
    /// Not made by the daemon that looks at it, or changed on the way.
    #[error("ticket was not issued by this daemon since its start")]
    Forged,
    /// Not a ticket at all.
    #[error("ticket is malformed")]
    Malformed,
    /// A ticket of a build that writes another format.
    #[error("ticket has format {0}, and this daemon reads format {VERSION}")]
    Version(u8),
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    version: u8,
    address_length: u8,
    reserved: [u8; 2],
    reserved_2: U32,
    daemon_epoch: U64,
    engine_epoch: U64,
    lease: U64,
    fingerprint: [u8; 32],
}

impl Ticket {
    /// The ticket as text.
    ///
    /// # Errors
    /// [`TicketError::Malformed`] when the address is empty or longer than 255 bytes.
    pub fn seal(&self, key: &TicketKey) -> Result<String, TicketError> {
        let address_length = u8::try_from(self.address.len()).map_err(|_| TicketError::Malformed)?;
        if address_length == 0 {
            return Err(TicketError::Malformed);
        }
        let fixed = Fixed {
            version: VERSION,
            address_length,
            reserved: [0; 2],
            reserved_2: U32::ZERO,
            daemon_epoch: self.daemon_epoch.0.into(),
            engine_epoch: self.engine_epoch.0.into(),
            lease: self.lease.0.into(),
            fingerprint: self.fingerprint.0,
        };
        let mut bytes = fixed.as_bytes().to_vec();
        bytes.extend_from_slice(self.address.as_bytes());
        let mac = mac(key, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl Sealed {
    /// Reads the shape of a ticket, and nothing that may be trusted.
    ///
    /// # Errors
    /// [`TicketError::Malformed`] or [`TicketError::Version`].
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        if text.len() > TEXT_LENGTH_MAX {
            return Err(TicketError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketError::Malformed)?;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(TicketError::Version(other)),
            None => return Err(TicketError::Malformed),
        }
        let (fixed, rest) = Fixed::ref_from_prefix(&bytes).map_err(|_| TicketError::Malformed)?;
        let address_length = usize::from(fixed.address_length);
        let whole = rest.len() == address_length + MAC_LENGTH && address_length > 0;
        if !whole || std::str::from_utf8(&rest[..address_length]).is_err() {
            return Err(TicketError::Malformed);
        }
        Ok(Self { bytes, address_length })
    }

    /// Where the holder is said to be, `host:port`. A stranger's word: hold it against the configured peers.
    #[must_use]
    pub fn address(&self) -> &str {
        let start = size_of::<Fixed>();
        self.bytes.get(start..start + self.address_length).and_then(|a| std::str::from_utf8(a).ok()).unwrap_or_default()
    }

    /// Checks that `key` sealed this ticket, and says what it says.
    ///
    /// # Errors
    /// [`TicketError::Forged`].
    pub fn open(&self, key: &TicketKey) -> Result<Ticket, TicketError> {
        let (said, tag) =
            self.bytes.split_at_checked(size_of::<Fixed>() + self.address_length).ok_or(TicketError::Malformed)?;
        // Compares in constant time.
        mac(key, said).verify_slice(tag).map_err(|_| TicketError::Forged)?;
        let (fixed, _) = Fixed::ref_from_prefix(said).map_err(|_| TicketError::Malformed)?;
        Ok(Ticket {
            address: self.address().to_owned(),
            daemon_epoch: Epoch(fixed.daemon_epoch.get()),
            engine_epoch: Epoch(fixed.engine_epoch.get()),
            fingerprint: Fingerprint(fixed.fingerprint),
            lease: LeaseId(fixed.lease.get()),
        })
    }
}

fn mac(key: &TicketKey, bytes: &[u8]) -> Hmac<Sha256> {
    // HMAC pads a short key with zeros to its hash's block of 64 bytes; done here, as that cannot fail.
    let mut block = [0; 64];
    block[..key.0.len()].copy_from_slice(&key.0);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(bytes);
    mac
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            address: "127.0.0.1:7405".to_owned(),
            daemon_epoch: Epoch(1),
            engine_epoch: Epoch(2),
            fingerprint: Fingerprint([3; 32]),
            lease: LeaseId(4),
        }
    }

    const KEY: TicketKey = TicketKey([9; 32]);

    #[test]
    fn opens_with_its_key_only() {
        let sealed = Sealed::parse(&ticket().seal(&KEY).expect("seal")).expect("parse");
        assert_eq!(sealed.address(), "127.0.0.1:7405");
        assert_eq!(sealed.open(&KEY), Ok(ticket()));
        assert_eq!(sealed.open(&TicketKey([8; 32])), Err(TicketError::Forged));
    }

    #[test]
    fn format_is_golden() {
        let text = ticket().seal(&KEY).expect("seal");
        assert_eq!(text, GOLDEN, "a changed format needs a new VERSION");
    }

    // Made by Python's struct, hmac and base64 from the same values.
    const GOLDEN: &str = "AQ4AAAAAAAABAAAAAAAAAAIAAAAAAAAABAAAAAAAAAADAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAzEyNy4wLjAuMTo3NDA1eXyNwpmIaDiJLoi1eTfKwS3KVLU4dDi3IaYjRekAyT8";

    #[test]
    fn every_changed_bit_is_seen() {
        let bytes = URL_SAFE_NO_PAD.decode(ticket().seal(&KEY).expect("seal")).expect("decode");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let opened = Sealed::parse(&URL_SAFE_NO_PAD.encode(changed)).and_then(|sealed| sealed.open(&KEY));
            assert!(opened.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn refuses_addresses_that_do_not_fit() {
        for address in [String::new(), "a".repeat(256)] {
            assert_eq!(Ticket { address, ..ticket() }.seal(&KEY), Err(TicketError::Malformed));
        }
        assert_eq!(Sealed::parse(&"A".repeat(TEXT_LENGTH_MAX + 1)), Err(TicketError::Malformed));
        assert_eq!(Sealed::parse(""), Err(TicketError::Malformed));
        assert_eq!(Sealed::parse("AgAA"), Err(TicketError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_parsed(text in ".{0,600}") {
            if let Ok(sealed) = Sealed::parse(&text) {
                prop_assert!(sealed.open(&KEY).is_err());
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            if let Ok(sealed) = Sealed::parse(&URL_SAFE_NO_PAD.encode(bytes)) {
                prop_assert!(sealed.open(&KEY).is_err());
            }
        }
    }
}
