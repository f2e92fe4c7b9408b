//! iperf3, where both ends have it: what others would measure on this path.
//!
//! ```text
//! far: iperf3 --server --one-off, on a free port -> near: iperf3 --client, [`BYTES`], JSON -> GB/s received
//! ```
//!
//! Limits: the server ends after one client or [`IDLE_S`] seconds without one, whatever becomes of us; the client when
//! its bytes are through, or after [`CLIENT_MAX`]. Not installed is no failure: the ceiling is left out.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kvferry_transport_tcp::Congestion;
use serde_json::Value;

use crate::commands::bench::cell::Direction;
use crate::commands::bench::control::{Ask, Line, Reply, unexpected};
use crate::commands::bench::plain;

const BYTES: &str = "512M";
const IDLE_S: &str = "5";
const CLIENT_MAX: Duration = Duration::from_secs(30);

/// Ended when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `None`: not installed.
fn start(arguments: &[&str]) -> Result<Option<Program>> {
    let mut command = Command::new("iperf3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Ok(Some(Program(child))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("start iperf3"),
    }
}

/// Near end: GB/s over one stream in this direction; `None` where an end has no iperf3, or one that does not work.
pub(super) fn measure(direction: Direction, line: &mut Line) -> Result<Option<f64>> {
    let port = match line.ask(&Ask::Iperf3)? {
        Reply::Opened { port } => port,
        Reply::Missing => return Ok(None),
        other => return unexpected(&other),
    };
    let rate = client(direction, &line.stream().peer_addr()?.ip().to_string(), port);
    match line.ask(&Ask::Iperf3Over)? {
        Reply::Ready => Ok(rate),
        other => unexpected(&other),
    }
}

fn client(direction: Direction, address: &str, port: u16) -> Option<f64> {
    let port = port.to_string();
    let mut arguments = vec!["--client", address, "--port", &port, "--json", "--bytes", BYTES];
    if direction == Direction::Read {
        arguments.push("--reverse");
    }
    let mut program = start(&arguments).ok()??;
    let begun = Instant::now();
    while program.0.try_wait().ok()?.is_none() {
        if begun.elapsed() > CLIENT_MAX {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    program.0.stdout.take()?.read_to_string(&mut text).ok()?;
    parse(&text)
}

/// GB/s that the receiver saw.
fn parse(text: &str) -> Option<f64> {
    let report: Value = serde_json::from_str(text).ok()?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64()?;
    (bits > 0.0).then_some(bits / 8e9)
}

/// Far end: a server for one client.
pub(in crate::commands::bench) fn serve(line: &mut Line, patience: Duration) -> Result<()> {
    let address = line.stream().local_addr()?.ip();
    // Free now, and most likely still when iperf3 asks for it.
    let (listener, port) = plain::offer(address, &Congestion::System)?;
    drop(listener);
    let (host, number) = (address.to_string(), port.to_string());
    let arguments =
        ["--server", "--one-off", "--bind", &host, "--port", &number, "--forceflush", "--idle-timeout", IDLE_S];
    let program = start(&arguments)?.filter(|_| true);
    let Some(mut program) = program else { return line.send(&Reply::Missing) };
    let mut lines = BufReader::new(program.0.stdout.take().context("hear from iperf3")?).lines();
    // One that is too old for these arguments says so and ends.
    let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening"));
    if !listens {
        return line.send(&Reply::Missing);
    }
    line.send(&Reply::Opened { port })?;
    // Its report is read, lest it waits for us.
    let reading = std::thread::spawn(move || lines.map_while(Result::ok).count());
    let asked = line.receive(patience)?;
    ensure!(matches!(asked, Some(Ask::Iperf3Over) | None), "an iperf3 that was asked for has to be over first");
    drop(program);
    if reading.join().is_err() {
        bail!("the thread that reads iperf3's report panicked");
    }
    line.send(&Reply::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_report_is_read() {
        let text =
            r#"{"start":{},"end":{"sum_sent":{"bits_per_second":9e9},"sum_received":{"bits_per_second":1.6e10}}}"#;
        assert_eq!(parse(text), Some(2.0));
        for bad in ["", "{}", r#"{"error":"unable to connect"}"#, r#"{"end":{"sum_received":{"bits_per_second":0}}}"#] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
