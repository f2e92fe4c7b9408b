//! A real daemon as a child process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvferry_client::{Client, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::engine::client;
use super::{PATIENCE, wait};

/// One `kvferry serve`. Its end is checked: a daemon that has panicked or logged an error fails the test.
pub(crate) struct Daemon {
    pub(crate) directory: TempDir,
    pub(crate) peer: SocketAddr,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Child,
    config: String,
    level: &'static str,
    within: Vec<String>,
    log: Log,
}

/// Every line it has written to stderr.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// How to start a daemon.
#[derive(Clone, Debug)]
pub(crate) struct DaemonOptions {
    pub(crate) host: String,
    /// Further lines for `[attach]`, `[peer]` and `[limits]`.
    pub(crate) attach: String,
    pub(crate) peer: String,
    pub(crate) limits: String,
    /// Whole tables, such as `[tier.host]`.
    pub(crate) tables: String,
    /// The level of its log.
    pub(crate) log: &'static str,
    /// A program and arguments that run the daemon, such as `ip netns exec NAME`.
    pub(crate) within: Vec<String>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            attach: String::new(),
            peer: String::new(),
            limits: String::new(),
            tables: String::new(),
            log: "debug",
            within: Vec::new(),
        }
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(&DaemonOptions::default())
    }

    /// With further lines for `[limits]`.
    pub(crate) fn limited(limits: &str) -> Self {
        Self::start_with(&DaemonOptions { limits: limits.to_owned(), ..Default::default() })
    }

    pub(crate) fn start_with(options: &DaemonOptions) -> Self {
        let directory = directory();
        let config = format!(
            "node = \"test\"\n[attach]\ndirectory = {:?}\n{}\n[peer]\nlisten = \"{host}:0\"\n{}\n[admin]\nlisten = \"{host}:0\"\n[limits]\n{}\n{}\n",
            directory.path(),
            options.attach,
            options.peer,
            options.limits,
            options.tables,
            host = options.host,
        );
        Self::launch(directory, config, options.log, options.within.clone())
    }

    fn launch(directory: TempDir, config: String, level: &'static str, within: Vec<String>) -> Self {
        let file = directory.path().join("kvferry.toml");
        std::fs::write(&file, &config).expect("write the config");
        let (child, log) = spawn(&directory, level, &within);
        let ready = wait(|| format!("a daemon that is ready:\n{}", log.tail()), || log.find(" ready "));
        let address = |name: &str| {
            let word = ready.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")));
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {ready}"))
        };
        let (peer, data, admin) = (address("peer"), address("data"), address("admin"));
        Self { directory, peer, data, admin, child, config, level, within, log }
    }

    /// Kills it with SIGKILL and starts another one in its place, on the same socket.
    pub(crate) fn restart(&mut self) {
        self.replace(Signal::KILL);
    }

    /// As [`restart`](Self::restart), on the same control port, for who has peers. Meanwhile anybody may be given that port.
    pub(crate) fn restart_at_its_address(&mut self) {
        let any = format!("[peer]\nlisten = \"{}:0\"", self.peer.ip());
        self.config = self.config.replacen(&any, &format!("[peer]\nlisten = \"{}\"", self.peer), 1);
        self.restart();
    }

    /// Ends it by a signal and starts another one in its place.
    pub(crate) fn replace(&mut self, signal: Signal) {
        // Gone already is just as well.
        let _ = kill_process(Pid::from_child(&self.child), signal);
        let _ = self.child.wait();
        let directory = std::mem::replace(&mut self.directory, directory());
        let config = std::mem::take(&mut self.config);
        *self = Self::launch(directory, config, self.level, std::mem::take(&mut self.within));
    }

    /// Kills it, starts another one in its place, and kills that after so long, wherever it is by then.
    pub(crate) fn restart_and_kill(&mut self, after: Duration) {
        self.kill();
        self.log.check();
        (self.child, self.log) = spawn(&self.directory, self.level, &self.within);
        std::thread::sleep(after);
        self.kill();
    }

    pub(crate) fn kill(&mut self) {
        // Gone already is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGSTOP, SIGCONT and their like.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal the daemon");
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("kvferry.sock")
    }

    /// A file in `/proc` of this daemon.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
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
        let status = || serde_json::from_str::<Value>(&operator.status().expect("status")).expect("json");
        wait(|| format!("{what}: {:#}", status()), || Some(status()).filter(&ready))
    }

    /// Waits until no transfer is in flight and no lease is left.
    pub(crate) fn wait_quiet(&self) {
        self.wait_for("a daemon with nothing to do", is_quiet);
    }

    /// Waits until no lease, transfer, engine or region is left.
    pub(crate) fn wait_empty(&self) {
        self.wait_for("an empty daemon", |status| {
            is_quiet(status) && status["engines"] == Value::Array(Vec::new()) && status["regions"]["count"] == 0
        });
    }

    /// Waits for a line of its log.
    pub(crate) fn wait_log(&self, words: &str) -> String {
        wait(|| format!("{words:?} in the log:\n{}", self.log.tail()), || self.log.find(words))
    }

    /// Waits until so many lines of its log hold these words, and not one more.
    pub(crate) fn wait_log_count(&self, words: &str, count: usize) {
        let so_far = || self.log_count(words);
        wait(|| format!("{count} times {words:?} in the log, of {}", so_far()), || (so_far() >= count).then_some(()));
        assert_eq!(so_far(), count, "{words:?} in the log");
    }

    /// Processor time so far, in the kernel's ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("read stat");
        // The name may hold anything, so the fields are counted from its end.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let number = |index: usize| fields.split_whitespace().nth(index).and_then(|word| word.parse::<u64>().ok());
        number(11).expect("utime") + number(12).expect("stime")
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.admin).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    /// Lines of its log so far that hold these words.
    pub(crate) fn log_count(&self, words: &str) -> usize {
        self.log.0.lock().expect("log").iter().filter(|line| line.contains(words)).count()
    }

    /// Lines of its log so far.
    pub(crate) fn log_length(&self) -> usize {
        self.log.0.lock().expect("log").len()
    }

    /// When it said so, since midnight; the first time after `from` lines of its log.
    pub(crate) fn log_time(&self, from: usize, words: &str) -> Duration {
        let line = wait(|| format!("{words:?} in the log"), || self.log.find_from(from, words));
        let (_, time) = line.split_once('T').expect("a date and a time");
        let time: Vec<f64> = time[..15].split(':').map(|part| part.parse().expect("a number")).collect();
        Duration::from_secs_f64(time[0] * 3600.0 + time[1] * 60.0 + time[2])
    }

    /// Descriptors and threads.
    pub(crate) fn footprint(&self) -> (usize, usize) {
        let count = |name: &str| std::fs::read_dir(self.proc(name)).expect("read /proc").count();
        (count("fd"), count("task"))
    }

    /// Waits until it has no more descriptors and threads than it had.
    pub(crate) fn wait_footprint(&self, before: (usize, usize)) {
        wait(
            || format!("{before:?} descriptors and threads; it has {:?}", self.footprint()),
            || {
                let (descriptors, threads) = self.footprint();
                (descriptors <= before.0 && threads <= before.1).then_some(())
            },
        );
    }
}

/// By its name `tests/run` finds it, should this process be killed.
fn directory() -> TempDir {
    let prefix = format!("kvferry-test-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("create a directory")
}

/// Starts the binary with the config in this directory; every line that it writes is kept.
fn spawn(directory: &TempDir, level: &str, within: &[String]) -> (Child, Log) {
    let file = directory.path().join("kvferry.toml");
    let binary = env!("CARGO_BIN_EXE_kvferry").to_owned();
    let words: Vec<String> = within
        .iter()
        .cloned()
        .chain([binary, "serve".to_owned(), "--config".to_owned(), file.display().to_string()])
        .collect();
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .env("KVFERRY_LOG", level)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the daemon");
    let stderr = child.stderr.take().expect("stderr");
    let log = Log::default();
    let lines = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            lines.0.lock().expect("log").push(line);
        }
    });
    (child, log)
}

fn is_quiet(status: &Value) -> bool {
    ["/leases", "/transfers/reading", "/transfers/serving"]
        .iter()
        .all(|path| status.pointer(path).and_then(Value::as_array).is_some_and(Vec::is_empty))
}

impl Log {
    fn find(&self, words: &str) -> Option<String> {
        self.find_from(0, words)
    }

    fn find_from(&self, from: usize, words: &str) -> Option<String> {
        self.0.lock().expect("log").iter().skip(from).find(|line| line.contains(words)).cloned()
    }

    /// A daemon that has panicked or logged an error fails the test.
    fn check(&self) {
        // The last: a colour code, in a log that is no terminal.
        for words in [" ERROR ", "panicked at", "\u{1b}"] {
            assert_eq!(self.find(words), None, "a daemon must not say so:\n{}", self.tail());
        }
    }

    fn tail(&self) -> String {
        let lines = self.0.lock().expect("log");
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon at {}\n{}", self.peer, self.log.tail());
            return;
        }
        self.log.check();
    }
}
