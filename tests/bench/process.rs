//! The program, run to its end or watched while it runs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// How long anything here may take; machines that build at the same time are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Cells small enough for any machine, in any build.
pub(crate) const TINY: &str = "--no-ceilings --region 4M --rounds 2 --duration 20ms --blocks 8 --block-size 4K";

pub(crate) fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
    command.arg("bench").args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

pub(crate) fn output(arguments: &str) -> Output {
    command(arguments).output().expect("run kvferry bench")
}

/// Its stdout, of a run that must go well and say nothing else.
pub(crate) fn stdout(arguments: &str) -> String {
    let output = output(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {stderr}");
    assert_eq!(stderr, "", "progress lines are for terminals");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Its rows.
pub(crate) fn rows(arguments: &str) -> Vec<Value> {
    parse(&stdout(&format!("{arguments} --json")))
}

pub(crate) fn parse(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// Its stderr, of a run that must fail.
pub(crate) fn refusal(arguments: &str) -> String {
    let output = output(arguments);
    assert!(!output.status.success(), "{arguments} went well");
    assert!(output.stdout.is_empty(), "{arguments} printed results");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Waits for an event, with an end.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs until it is told otherwise.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(arguments: &str) -> Self {
        Self(command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start kvferry bench"))
    }

    /// The first line of its stdout.
    pub(crate) fn first_line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.0.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("signal it");
    }

    /// Its far end, once that has started.
    pub(crate) fn far_end(&self) -> Pid {
        let pid = self.0.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        wait("a child process", || {
            let text = std::fs::read_to_string(&children).expect("read the children");
            text.split_whitespace().find_map(|child| Pid::from_raw(child.parse().ok()?))
        })
    }

    /// Waits until a cell is being measured: its far end has data connections of its own.
    pub(crate) fn wait_busy(pid: Pid) {
        // It listens, has a control connection, listens for data, and has two data connections.
        Self::wait_sockets(pid, 5);
    }

    /// Waits until it has this many sockets.
    pub(crate) fn wait_sockets(pid: Pid, count: usize) {
        let pid = pid.as_raw_nonzero();
        wait("sockets of a far end at work", || {
            let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("read its files");
            let is_socket =
                |path| std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
            let sockets = entries.filter_map(Result::ok).filter(|entry| is_socket(entry.path())).count();
            (sockets >= count).then_some(())
        });
    }

    /// Its end: stderr, and whether it went well.
    pub(crate) fn finish(mut self) -> (bool, String) {
        let status = wait("its end", || self.0.try_wait().expect("wait for it"));
        let mut said = String::new();
        if let Some(stderr) = self.0.stderr.take() {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| said.push_str(&line));
        }
        (status.success(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is just as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn wait_gone(pid: Pid) {
    // A zombie answers until its parent, or init in its place, has looked.
    let is_zombie = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    };
    wait("the far end's end", || (test_kill_process(pid).is_err() || is_zombie()).then_some(()));
}
