//! What both ends say to each other besides the data: JSON, one message a line, one question at a time.
//!
//! ```text
//! near: Hello -> Open(cell, keys) -> Ready -> Start -> Stop -> Open ...        far: one Reply to each
//!       Raw, Echo, Iperf3 between cells: Opened, then plain connections, then what came of them
//! ```
//!
//! Limits: [`LINE_BYTES_MAX`] a line, [`PATIENCE`] for an answer. Failure: a line that is too long, late or not a
//! message ends the connection with an error that says so; a far end that cannot do what it is asked answers
//! [`Reply::Refused`] with the reason. Ends of different versions refuse each other, because both must draw the same
//! blocks from the same seed.
//!
//! The connection is neither encrypted nor authenticated: whoever reaches a listening end may make it allocate memory
//! and move bytes. So one listens only while one measures, on a network of one's own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kvferry_transport::Key;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ceilings::raw::RawWay;
use super::cell::Cell;
use super::identity::Identity;
use super::measure::Calls;

/// Raised with every change of the messages.
pub(super) const PROTOCOL: u32 = 3;
/// Longest message; 64 keys in decimal numbers take 9 KiB.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How long an answer may take; filling and checking 16 GiB of memory takes a few seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What the near end asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Ask {
    /// Echoes 64-byte messages of one plain connection until it closes, then says `Ready`.
    Echo { spin_us: u32, key: Key },
    /// The first message.
    Hello { protocol: u32, version: String },
    /// Starts an iperf3 server for one client.
    Iperf3,
    /// That client has ended.
    Iperf3Over,
    /// Makes everything ready for transfers of this cell, and listens for the data connections.
    Open { cell: Box<Cell>, keys: Vec<Key>, identity: Option<Identity> },
    /// Moves bytes over plain connections, then says `Moved`.
    Raw { way: RawWay, key: Key },
    /// Once the data connections stand: are works posted?
    Ready,
    /// The timed part begins after the answer: wipe the target, note the CPU time.
    Start,
    /// The timed part is over. With `check`, compares what transfers `first..end` wrote.
    Stop { check: Option<(u64, u64)> },
}

impl Ask {
    /// Its name, without the keys that it may carry.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Echo { .. } => "echo",
            Self::Hello { .. } => "hello",
            Self::Iperf3 => "iperf3",
            Self::Iperf3Over => "iperf3_over",
            Self::Open { .. } => "open",
            Self::Raw { .. } => "raw",
            Self::Ready => "ready",
            Self::Start => "start",
            Self::Stop { .. } => "stop",
        }
    }
}

/// What the far end answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Reply {
    Hello {
        protocol: u32,
        version: String,
    },
    /// iperf3 is not installed here, or does not work.
    Missing,
    /// What this end sent or received over plain connections.
    Moved {
        bytes: u64,
        seconds: f64,
    },
    /// Where the data connections go, on the address of this connection.
    Opened {
        port: u16,
    },
    Ready,
    Refused {
        reason: String,
    },
    Started,
    /// CPU time and calls of this end since the start, and the bytes that were compared and right.
    Stopped {
        cpu_s: f64,
        calls: Calls,
        checked_bytes: u64,
    },
}

/// The connection, on either end.
pub(super) struct Line {
    stream: TcpStream,
    /// Bytes read behind the last message.
    ahead: Vec<u8>,
}

impl Line {
    pub(super) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("set up the control connection")?;
        stream.set_write_timeout(Some(PATIENCE)).context("set up the control connection")?;
        Ok(Self { stream, ahead: Vec::new() })
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        ensure!(line.len() <= LINE_BYTES_MAX, "a control message of {} bytes is too long", line.len());
        self.stream.write_all(&line).context("talk to the other end")
    }

    /// The next message. `None`: the other end closed the connection between two messages.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, within: Duration) -> Result<Option<T>> {
        let until = Instant::now() + within;
        loop {
            if let Some(end) = self.ahead.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                let message = serde_json::from_slice(&line).context("the other end does not speak kvferry bench");
                return message.map(Some);
            }
            ensure!(self.ahead.len() < LINE_BYTES_MAX, "the other end sent a line of more than {LINE_BYTES_MAX} bytes");
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the other end did not answer within {} s", within.as_secs());
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) if self.ahead.is_empty() => return Ok(None),
                Ok(0) => bail!("the other end closed the connection in the middle of a message"),
                Ok(count) => self.ahead.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("listen to the other end"),
            }
        }
    }

    /// Whether the next message is here, at least in part, without looking at the socket.
    pub(super) const fn has_bytes(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Near end: asks, and takes a refusal for an error.
    pub(super) fn ask(&mut self, question: &Ask) -> Result<Reply> {
        self.send(question).context("ask the far end")?;
        self.hear()
    }

    /// Near end: an answer that comes when something is over.
    pub(super) fn hear(&mut self) -> Result<Reply> {
        match self.receive(PATIENCE).context("hear the far end")? {
            Some(Reply::Refused { reason }) => bail!("the far end refused: {reason}"),
            Some(reply) => Ok(reply),
            None => bail!("the far end closed the control connection"),
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// An answer that fits no question.
pub(super) fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!("the far end answered out of turn: {reply:?}")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (Line, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (Line::new(listener.accept().expect("accept").0).expect("set up"), near)
    }

    fn refused(bytes: &[u8]) -> String {
        let (mut line, mut near) = pair();
        near.write_all(bytes).expect("write");
        drop(near);
        line.receive::<Ask>(PATIENCE).expect_err("bad input").to_string()
    }

    #[test]
    fn messages_arrive_one_by_one() {
        let (mut line, near) = pair();
        let mut near = Line::new(near).expect("set up");
        near.send(&Ask::Ready).expect("send");
        near.send(&Ask::Stop { check: Some((3, 9)) }).expect("send");
        assert!(matches!(line.receive(PATIENCE), Ok(Some(Ask::Ready))));
        assert!(line.has_bytes());
        assert!(matches!(line.receive(PATIENCE), Ok(Some(Ask::Stop { check: Some((3, 9)) }))));
        drop(near);
        assert!(line.receive::<Ask>(PATIENCE).expect("a clean end").is_none());
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(refused(b"GET / HTTP/1.1\r\n\r\n").contains("does not speak"));
        assert!(refused(&[0xff; 100]).contains("middle of a message"));
        assert!(refused(b"{\"open\":{\"cell\":7,\"keys\":[]}}\n").contains("does not speak"));
        assert!(refused(b"{\"delete\":{}}\n").contains("does not speak"));
        assert!(refused(&vec![b' '; LINE_BYTES_MAX + 1]).contains("more than"));
    }

    #[test]
    fn silence_has_an_end() {
        let (mut line, _near) = pair();
        let said = line.receive::<Ask>(Duration::from_millis(1)).expect_err("nothing came").to_string();
        assert!(said.contains("did not answer"), "{said}");
    }
}
