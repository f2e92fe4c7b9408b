//! One TLS connection without its socket: bytes in, records out, and the other way round.
//!
//! ```text
//! Handshake -- both certificates good, kvferry spoken --> Established -- any error, close_notify --> fault, for good
//! seal(plain) -> outgoing() -> sent(n)            room() -> received(n) -> open(each record's plain)
//! ```
//!
//! rustls keeps the keys, counts the records and asks for new keys in time. This file only moves its bytes about.

use kvferry_transport::Fault;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use super::buffer::{Buffer, Pool, RECORD_OVERHEAD, RECORD_PLAIN_MAX, RECORDS_BYTES};
use super::config::{PROTOCOL, Tls};

/// Handshake bytes that wait to be understood, or to be sent. Chosen: a chain of a dozen certificates.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 32 << 10;
/// Plaintext that one [`Channel::seal`] takes.
pub(crate) const PLAIN_BYTES_MAX: usize = 4 * RECORD_PLAIN_MAX;
/// Room for what may stand before records: a key update, or the answer to one.
const SLACK_BYTES: usize = 256;

const _: () = assert!(PLAIN_BYTES_MAX + SLACK_BYTES < RECORDS_BYTES);

/// The TLS half of a stream.
pub(crate) struct Channel {
    end: End,
    incoming: Buffer,
    outgoing: Buffer,
    /// Opened before anybody asked for it, because something had to be sealed first; at most what `incoming` held.
    early: Vec<u8>,
    early_start: usize,
    established: bool,
    /// All that came was opened: more must come first.
    starved: bool,
    failed: Option<Fault>,
}

enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What one step of the state machine came to.
enum Step {
    Again,
    Opened,
    /// Nothing left to do before more bytes come.
    Starved,
}

/// What the state machine should do once it has nothing to open.
enum Aim<'a> {
    Open,
    Seal(&'a [u8]),
}

impl Channel {
    /// The end of who dials.
    pub(crate) fn client(tls: &Tls) -> Result<Self, Fault> {
        let client = UnbufferedClientConnection::new(tls.client.clone(), tls.name.clone());
        Ok(Self::new(End::Client(client.map_err(|_| Fault::Untrusted)?)))
    }

    /// The end of who was dialled.
    pub(crate) fn server(tls: &Tls) -> Result<Self, Fault> {
        let server = UnbufferedServerConnection::new(tls.server.clone());
        Ok(Self::new(End::Server(server.map_err(|_| Fault::Untrusted)?)))
    }

    fn new(end: End) -> Self {
        Self {
            end,
            incoming: Buffer::default(),
            outgoing: Buffer::default(),
            early: Vec::new(),
            early_start: 0,
            established: false,
            // A client speaks first, so there is something to do before anything came.
            starved: false,
            failed: None,
        }
    }

    /// Whether both ends have proved themselves as far as this end can tell. A client learns of a refusal later.
    pub(crate) const fn is_established(&self) -> bool {
        self.established
    }

    /// Whether [`open`](Self::open) may have something without more bytes.
    pub(crate) fn may_open(&self) -> bool {
        !self.starved || self.early_start < self.early.len()
    }

    /// Where bytes of the socket go. Empty: a handshake that is too long.
    pub(crate) fn room(&mut self, pool: &mut Pool) -> &mut [u8] {
        if self.established {
            self.incoming.borrow(pool);
            self.incoming.compact();
        } else {
            self.incoming.grow(HANDSHAKE_BYTES_MAX);
        }
        self.incoming.room()
    }

    /// So many bytes of the socket were put into the room.
    pub(crate) fn received(&mut self, length: usize) {
        self.incoming.added(length);
        self.starved &= length == 0;
    }

    /// Records that want to be sent.
    pub(crate) fn outgoing(&self) -> &[u8] {
        self.outgoing.filled()
    }

    /// So many of their bytes were sent.
    pub(crate) fn sent(&mut self, length: usize) {
        self.outgoing.taken(length);
    }

    /// Gives back the buffers that are empty.
    pub(crate) fn rest(&mut self, pool: &mut Pool) {
        if self.established {
            self.incoming.give_back(pool);
            self.outgoing.give_back(pool);
        }
    }

    /// How many bytes there is room to [`seal`](Self::seal); none before the peer has proved itself.
    pub(crate) fn sealable(&mut self, pool: &mut Pool) -> usize {
        if !self.established || self.failed.is_some() {
            return 0;
        }
        self.outgoing.borrow(pool);
        let room = self.outgoing.room().len().saturating_sub(SLACK_BYTES);
        let (records, rest) =
            (room / (RECORD_PLAIN_MAX + RECORD_OVERHEAD), room % (RECORD_PLAIN_MAX + RECORD_OVERHEAD));
        records * RECORD_PLAIN_MAX + rest.saturating_sub(RECORD_OVERHEAD)
    }

    /// Encrypts [`PLAIN_BYTES_MAX`] bytes at most, and no more than are [`sealable`](Self::sealable).
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<(), Fault> {
        let mut early = std::mem::take(&mut self.early);
        if self.early_start == early.len() {
            early.clear();
            self.early_start = 0;
        }
        let mut keep = |bytes: &[u8]| {
            early.extend_from_slice(bytes);
            Ok(())
        };
        let sealed = loop {
            match self.step(&Aim::Seal(plain), &mut keep) {
                Ok(Step::Starved) => break Ok(()),
                Ok(Step::Again | Step::Opened) => {}
                Err(fault) => break Err(fault),
            }
        };
        self.early = early;
        sealed
    }

    /// Opens the next record and hands out its plaintext, [`RECORD_PLAIN_MAX`] bytes at most. False: more bytes must come first.
    pub(crate) fn open(&mut self, take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<bool, Fault> {
        if self.early_start < self.early.len() {
            let end = self.early.len().min(self.early_start + RECORD_PLAIN_MAX);
            take(&self.early[self.early_start..end])?;
            self.early_start = end;
            return Ok(true);
        }
        loop {
            match self.step(&Aim::Open, take)? {
                Step::Again => {}
                Step::Opened => return Ok(true),
                Step::Starved => {
                    self.starved = true;
                    let full = !self.established && self.incoming.filled().len() >= HANDSHAKE_BYTES_MAX;
                    return if full { Err(self.fail(Fault::Untrusted)) } else { Ok(false) };
                }
            }
        }
    }

    fn step(&mut self, aim: &Aim<'_>, take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<Step, Fault> {
        if let Some(fault) = self.failed {
            return Err(fault);
        }
        let was_established = self.established;
        let (incoming, outgoing) = (&mut self.incoming, &mut self.outgoing);
        let (discard, step) = match &mut self.end {
            End::Client(end) => {
                handle(end.process_tls_records(incoming.filled_mut()), aim, outgoing, &mut self.established, take)
            }
            End::Server(end) => {
                handle(end.process_tls_records(incoming.filled_mut()), aim, outgoing, &mut self.established, take)
            }
        };
        incoming.taken(discard);
        let protocol = match &self.end {
            End::Client(end) => end.alpn_protocol(),
            End::Server(end) => end.alpn_protocol(),
        };
        let agreed = was_established || !self.established || protocol == Some(PROTOCOL);
        match step {
            Ok(step) if agreed => Ok(step),
            Ok(_) => Err(self.fail(Fault::Untrusted)),
            Err(fault) => Err(self.fail(fault)),
        }
    }

    /// Nothing goes on from here, but for an alert that tells the peer why.
    fn fail(&mut self, fault: Fault) -> Fault {
        self.failed = Some(fault);
        let (incoming, outgoing) = (self.incoming.filled_mut(), &mut self.outgoing);
        let (mut ignored, aim) = (false, Aim::Open);
        let mut none = |_: &[u8]| Ok(());
        // What it wants to write comes before what it could read.
        let _ = match &mut self.end {
            End::Client(end) => handle(end.process_tls_records(incoming), &aim, outgoing, &mut ignored, &mut none),
            End::Server(end) => handle(end.process_tls_records(incoming), &aim, outgoing, &mut ignored, &mut none),
        };
        fault
    }
}

/// Does what one state asks for: how many incoming bytes are done with, and how it went on.
fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    aim: &Aim<'_>,
    outgoing: &mut Buffer,
    established: &mut bool,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> (usize, Result<Step, Fault>) {
    let mut discard = status.discard;
    let state = match status.state {
        Ok(state) => state,
        Err(_) => return (discard, Err(Fault::Untrusted)),
    };
    let step = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            let mut taken = Ok(Step::Opened);
            while let Some(record) = traffic.next_record() {
                match record.map_err(|_| Fault::Untrusted) {
                    Ok(record) => {
                        discard += record.discard;
                        taken = taken.and_then(|step| take(record.payload).map(|()| step));
                    }
                    Err(fault) => taken = Err(fault),
                }
            }
            taken
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let length = outgoing.filled().len();
            if outgoing.room().len() < HANDSHAKE_BYTES_MAX {
                outgoing.grow(length + HANDSHAKE_BYTES_MAX);
            }
            match data.encode(outgoing.room()) {
                Ok(written) => {
                    outgoing.added(written);
                    Ok(Step::Again)
                }
                Err(_) => Err(Fault::Untrusted),
            }
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is in our hands; the order of what leaves is kept there.
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            *established = true;
            match aim {
                Aim::Open => Ok(Step::Starved),
                Aim::Seal(plain) => match traffic.encrypt(plain, outgoing.room()) {
                    Ok(written) => {
                        outgoing.added(written);
                        Ok(Step::Starved)
                    }
                    Err(_) => Err(Fault::Untrusted),
                },
            }
        }
        ConnectionState::BlockedHandshake => Ok(Step::Starved),
        // The peer says goodbye: whatever a trailer has not vouched for by now never comes.
        ConnectionState::PeerClosed | ConnectionState::Closed => Err(Fault::PeerClosed),
        // Early data is not switched on, and this enum may grow.
        _ => Err(Fault::Untrusted),
    };
    (discard, step)
}

#[cfg(test)]
mod tests;
