//! Real daemons as child processes, and engines that are no vLLM: a stand-in holds a memfd of known bytes and talks to
//! the daemon through the real client.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use kvferry_client::{AttachSpec, Client, ClientConfig, Event, GroupLayout, LayerSpan, Layout, Role, WantedBlocks};
use kvferry_memory::{Meter, Region};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here may take; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One `kvferry serve`.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    pub(crate) peer: SocketAddr,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Lines of its log, after the one that says it is ready.
    pub(crate) log: Receiver<String>,
    config: String,
}

/// How to start a daemon.
#[derive(Clone, Debug)]
pub(crate) struct DaemonOptions {
    pub(crate) host: String,
    /// Further lines for `[peer]` and `[limits]`.
    pub(crate) peer: String,
    pub(crate) limits: String,
    /// A program and arguments that run the daemon, such as `ip netns exec NAME`.
    pub(crate) within: Vec<String>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), peer: String::new(), limits: String::new(), within: Vec::new() }
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(&DaemonOptions::default())
    }

    pub(crate) fn start_with(options: &DaemonOptions) -> Self {
        let directory = tempfile::tempdir().expect("create a directory");
        let config = format!(
            "node = \"test\"\n[attach]\ndirectory = {:?}\n[peer]\nlisten = \"{host}:0\"\n{}\n[admin]\nlisten = \"{host}:0\"\n[limits]\n{}\n",
            directory.path(),
            options.peer,
            options.limits,
            host = options.host,
        );
        Self::launch(directory, config, &options.within)
    }

    fn launch(directory: TempDir, config: String, within: &[String]) -> Self {
        let file = directory.path().join("kvferry.toml");
        std::fs::write(&file, &config).expect("write the config");
        let binary = env!("CARGO_BIN_EXE_kvferry").to_owned();
        let mut words = within.to_vec();
        words.extend([binary, "serve".to_owned(), "--config".to_owned(), file.display().to_string()]);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env("KVFERRY_LOG", "debug")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the daemon");
        let stderr = child.stderr.take().expect("stderr");
        let (sender, log) = sync_channel(1 << 20);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Seen when a test fails.
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut before = Vec::new();
        let ready = loop {
            let line = log
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("the daemon did not start:\n{}", before.join("\n")));
            if line.contains(" ready ") {
                break line;
            }
            before.push(line);
        };
        let address = |name: &str| {
            let word = ready.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {ready}"))
        };
        Self { peer: address("peer"), data: address("data"), admin: address("admin"), child, directory, log, config }
    }

    /// Kills it with SIGKILL and starts another one in its place, on the same ports and socket.
    pub(crate) fn restart(mut self) -> Self {
        self.kill();
        let config = self.config.replacen(
            &format!("listen = \"{}:0\"", self.peer.ip()),
            &format!("listen = \"{}\"", self.peer),
            1,
        );
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().expect("create a directory"));
        Self::launch(directory, config, &[])
    }

    pub(crate) fn kill(&mut self) {
        // Gone already is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("kvferry.sock")
    }

    pub(crate) fn operator(&self) -> Client {
        let client = client(self.socket(), "", Role::Operator);
        assert!(client.wait_connected(PATIENCE), "the daemon does not answer");
        client
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.operator().status().expect("status")).expect("json")
    }

    /// Waits until `ready` says so of the status.
    pub(crate) fn wait_for(&self, what: &str, ready: impl Fn(&Value) -> bool) -> Value {
        let operator = self.operator();
        let started = Instant::now();
        loop {
            let status = serde_json::from_str(&operator.status().expect("status")).expect("json");
            if ready(&status) {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "{what} did not come about: {status:#}");
            std::thread::yield_now();
        }
    }

    /// Waits until no lease, region or transfer is left.
    pub(crate) fn wait_empty(&self) {
        self.wait_for("an empty daemon", |status| {
            let none = |path: &str| status.pointer(path).and_then(Value::as_array).is_some_and(Vec::is_empty);
            none("/leases")
                && none("/engines")
                && none("/transfers/reading")
                && none("/transfers/serving")
                && status["regions"]["count"] == 0
        });
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("read fds").count()
    }

    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("read threads").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let tail: Vec<_> = self.log.try_iter().collect();
            let start = tail.len().saturating_sub(40);
            eprintln!("--- log of the daemon at {}\n{}", self.peer, tail[start..].join("\n"));
        }
    }
}

fn client(socket: PathBuf, engine_id: &str, role: Role) -> Client {
    let config = ClientConfig { socket, engine_id: engine_id.to_owned(), role, reply_timeout: Duration::from_secs(5) };
    Client::start(config).expect("start a client")
}

/// The shape of a stand-in engine's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) blocks: u32,
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) tokens: u32,
    pub(crate) content: u32,
}

impl Shape {
    pub(crate) const SMALL: Self = Self { blocks: 64, layers: 4, heads: 2, tokens: 16, content: 64 };
    /// 64 blocks of 2 MiB.
    pub(crate) const LARGE: Self = Self { blocks: 64, layers: 16, heads: 8, tokens: 64, content: 256 };

    pub(crate) fn page(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.tokens) * u64::from(self.content)
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.page() * u64::from(self.layers)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.block_bytes() * u64::from(self.blocks)
    }

    pub(crate) fn layout(&self, order: &str) -> Layout {
        let (layer_stride, block_stride) = match order {
            "LBHNC" | "LBNHC" => (self.page() * u64::from(self.blocks), self.page()),
            "BLHNC" | "BLNHC" => (self.page(), self.block_bytes()),
            other => panic!("no strides for {other}"),
        };
        let span = LayerSpan {
            layer_count: self.layers,
            offset: 0,
            layer_stride,
            block_stride,
            head_count: self.heads,
            token_count: self.tokens,
            content_bytes: self.content,
        };
        Layout {
            order: order.to_owned(),
            block_count: self.blocks,
            region_bytes: self.bytes(),
            groups: vec![GroupLayout { spans: vec![span] }],
        }
    }
}

/// A stand-in for a vLLM engine: scheduler and worker connections over one memfd. Named so that no one takes it for
/// the real thing.
pub(crate) struct StandInEngine {
    pub(crate) name: String,
    pub(crate) scheduler: Client,
    pub(crate) worker: Client,
    pub(crate) region: Arc<Region>,
    pub(crate) shape: Shape,
    seen: Vec<Event>,
}

impl StandInEngine {
    pub(crate) fn attach(daemon: &Daemon, name: &str) -> Self {
        Self::attach_with(daemon, name, Shape::SMALL, "LBHNC", [7; 32])
    }

    pub(crate) fn attach_with(daemon: &Daemon, name: &str, shape: Shape, order: &str, fingerprint: [u8; 32]) -> Self {
        let fd: OwnedFd = kvferry_memory::create("kvferry-test", shape.bytes()).expect("create a memfd");
        let region =
            Region::map(fd.try_clone().expect("duplicate the memfd"), shape.bytes(), &Meter::new()).expect("map");
        let worker = client(daemon.socket(), name, Role::Worker);
        worker.attach(AttachSpec {
            rank: 0,
            rank_count: 1,
            fingerprint,
            layout: shape.layout(order),
            region: Arc::new(fd),
        });
        let scheduler = client(daemon.socket(), name, Role::Scheduler);
        let mut engine = Self { name: name.to_owned(), scheduler, worker, region, shape, seen: Vec::new() };
        engine.wait_attached();
        engine
    }

    /// Waits until the daemon has the region.
    pub(crate) fn wait_attached(&mut self) {
        self.wait(|event| matches!(event, Event::Connected { .. }));
        assert!(self.worker.wait_connected(PATIENCE) && self.scheduler.wait_connected(PATIENCE), "no connection");
        assert!(self.worker.daemon_epoch().is_some());
    }

    /// Fills every byte from `seed`, differently in each block and layer.
    pub(crate) fn fill(&self, seed: u8) {
        let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let bytes: Vec<u8> = (0..self.shape.bytes())
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        self.region.write(0, &bytes).expect("write");
    }

    pub(crate) fn grant(&self, request: &str, blocks: &[u32], lease_ms: u64) -> kvferry_client::Granted {
        self.scheduler.grant(request, &[blocks.to_vec()], lease_ms).expect("grant")
    }

    /// Redeems the first blocks of a ticket into `targets`.
    pub(crate) fn redeem(&self, request: &str, ticket: &str, targets: &[u32]) -> u64 {
        let positions = (0..).take(targets.len()).collect();
        let wanted = WantedBlocks { positions, targets: targets.to_vec() };
        self.worker.redeem(request, ticket, &[wanted], 10_000)
    }

    /// The outcome of a redeem: `None` when delivered, else why not.
    pub(crate) fn outcome(&mut self, key: u64) -> Option<String> {
        let done = self.wait(|event| matches!(event, Event::TransferDone { key: of, .. } if *of == key));
        let Event::TransferDone { failure, .. } = done else { unreachable!("waited for it") };
        failure
    }

    /// Waits for the end of a lease, and says why it ended.
    pub(crate) fn lease_end(&mut self, lease: u64) -> String {
        let ended = self.wait(|event| matches!(event, Event::LeaseEnded { lease_id, .. } if *lease_id == lease));
        let Event::LeaseEnded { reason, .. } = ended else { unreachable!("waited for it") };
        reason
    }

    /// Waits for an event of the worker and takes it.
    pub(crate) fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let started = Instant::now();
        loop {
            self.seen.extend(self.worker.poll());
            if let Some(at) = self.seen.iter().position(&wanted) {
                return self.seen.remove(at);
            }
            assert!(started.elapsed() < PATIENCE, "{} waited in vain; it saw {:?}", self.name, self.seen);
            std::thread::yield_now();
        }
    }

    /// Events that came and were not waited for.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        self.seen.extend(self.worker.poll());
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn sums(&self, daemon: &Daemon, blocks: &[u32]) -> Vec<u32> {
        daemon.operator().checksums(&self.name, 0, 0, blocks).expect("checksums")
    }
}
