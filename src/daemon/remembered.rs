//! The peers of this daemon's last life, in a file beside its socket.
//!
//! ```text
//! links, peers that hold endpoints here --> publish --> kvferry.peers --(next start)--> recall --> links
//! ```
//!
//! A daemon that starts again calls the peers it knew, and its call is the sign of life that ends their waiting for
//! it. What is in the file is no more than a hint: every address is held against `peer.allow` before it is called, and
//! a file that is lost or damaged costs the peers a few more tries. At most [`LINKS_MAX`] lines are read. Writing
//! happens beside the hub, the last state wins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::hub::Hub;
use super::links::LINKS_MAX;
use crate::config::is_host_and_port;

/// Bytes of the file that are read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What was last handed to the writer.
pub(crate) struct Remembered {
    latest: watch::Sender<BTreeSet<String>>,
}

impl Remembered {
    /// Starts the writer; it ends with this handle.
    pub(crate) fn start(file: PathBuf) -> Self {
        let (latest, mut changes) = watch::channel(BTreeSet::new());
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let peers = changes.borrow_and_update().clone();
                let file = file.clone();
                let written = tokio::task::spawn_blocking(move || write(&file, &peers)).await;
                if let Ok(Err(error)) = written {
                    tracing::info!("failed to write the known peers: {error}");
                }
            }
        });
        Self { latest }
    }

    fn publish(&self, peers: BTreeSet<String>) {
        self.latest.send_if_modified(|known| {
            let differs = *known != peers;
            *known = peers;
            differs
        });
    }
}

/// Addresses that the last life knew. Nothing, when there was none or its file cannot be read.
pub(crate) fn recall(file: &Path) -> Vec<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines().filter(|line| is_host_and_port(line)).take(LINKS_MAX).map(str::to_owned).collect()
}

fn write(file: &Path, peers: &BTreeSet<String>) -> std::io::Result<()> {
    let text: String = peers.iter().flat_map(|peer| [peer.as_str(), "\n"]).collect();
    let next = file.with_extension("next");
    std::fs::write(&next, text)?;
    std::fs::rename(next, file)
}

impl Hub {
    /// Writes down who is known, if that has changed.
    pub(super) fn remember_peers(&mut self) {
        if std::mem::take(&mut self.peers_changed) | self.links.take_changed() {
            let inward = self.admitted.values().map(|admitted| admitted.address.clone());
            let outward = self.links.iter().map(|link| link.address.to_owned());
            self.remembered.publish(inward.filter(|address| !address.is_empty()).chain(outward).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_recalled_and_what_is_damaged_is_left_out() {
        let directory = tempfile::tempdir().expect("create a directory");
        let file = directory.path().join("kvferry.peers");
        assert!(recall(&file).is_empty());
        let peers: BTreeSet<String> = ["10.0.0.1:7405", "node-b:7405"].map(str::to_owned).into();
        write(&file, &peers).expect("write");
        assert_eq!(recall(&file), Vec::from_iter(peers));
        std::fs::write(&file, "10.0.0.1:7405\n\nno port\nnode:99999\n:1\nnode-b:1\n").expect("write");
        assert_eq!(recall(&file), ["10.0.0.1:7405", "node-b:1"]);
        std::fs::write(&file, [0xff; 100]).expect("write");
        assert!(recall(&file).is_empty());
        std::fs::write(&file, "a:1\n".repeat(100_000)).expect("write");
        assert_eq!(recall(&file).len(), LINKS_MAX);
    }
}
