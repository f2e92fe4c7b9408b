//! A daemon that says what a test wants it to say.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use kvferry_client::{Client, ClientConfig, Role};
use kvferry_proto::v1::{self, FromDaemon, ToDaemon, from_daemon, to_daemon};
use prost::Message as _;
use tempfile::TempDir;

use super::PATIENCE;

/// The other end of a client: a listener that says what a test wants it to say.
pub(crate) struct Impostor {
    _directory: TempDir,
    pub(crate) socket: PathBuf,
    listener: UnixListener,
}

/// One connection of it.
pub(crate) struct Conversation(UnixStream);

impl Impostor {
    pub(crate) fn listen() -> Self {
        let directory = tempfile::tempdir().expect("create a directory");
        let socket = directory.path().join("kvferry.sock");
        let listener = UnixListener::bind(&socket).expect("listen");
        Self { _directory: directory, socket, listener }
    }

    pub(crate) fn client(&self, role: Role, reply_timeout: Duration) -> Client {
        let (socket, engine_id) = (self.socket.clone(), "E0".to_owned());
        Client::start(ClientConfig { socket, engine_id, role, reply_timeout }).expect("start")
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> Conversation {
        let (stream, _) = self.listener.accept().expect("accept");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Conversation(stream)
    }

    /// The next connection that says something, greeted.
    pub(crate) fn welcome(&self, daemon_epoch: u64) -> Conversation {
        let (mut conversation, hello) = loop {
            let mut conversation = self.accept();
            if let Some(hello) = conversation.read() {
                break (conversation, hello);
            }
        };
        assert!(matches!(hello.body, Some(to_daemon::Body::Hello(_))), "{hello:?}");
        conversation.answer(hello.id, from_daemon::Body::Welcome(v1::Welcome { daemon_epoch, ..Default::default() }));
        conversation
    }
}

impl Conversation {
    pub(crate) fn read(&mut self) -> Option<ToDaemon> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; usize::try_from(u32::from_le_bytes(length)).expect("fits")];
        self.0.read_exact(&mut body).ok()?;
        Some(ToDaemon::decode(body.as_slice()).expect("a request"))
    }

    pub(crate) fn answer(&mut self, reply_to: u64, body: from_daemon::Body) {
        let body = FromDaemon { reply_to, body: Some(body) }.encode_to_vec();
        let mut frame = u32::try_from(body.len()).expect("fits").to_le_bytes().to_vec();
        frame.extend(body);
        // A client that has gone meanwhile says nothing more, which is seen at the next read.
        let _ = self.0.write_all(&frame);
    }
}
