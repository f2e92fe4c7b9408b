//! One run: rounds through all cells, and what is printed of them.
//!
//! A round goes through every cell once, instead of a cell through all its rounds: a machine that is slow for a while
//! is slow for all of them. Only what stands in one round is compared.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::arena::{self, Arena};
use super::ceilings::{Prober, RoundCeilings};
use super::cell::{Cell, Via};
use super::child::FarChild;
use super::control::{Ask, Line, PROTOCOL, Reply, unexpected};
use super::driver::CONNECT_MAX;
use super::measure::{Round, Summary};
use super::options::Options;
use super::progress::Progress;
use super::row::Row;
use super::{ceilings, near, table};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// From options to the printed table.
pub(super) fn run(options: &Options) -> Result<()> {
    let cells = options.cells(arena::available_bytes()?)?;
    near::sharpen_timers();
    let needs_far = cells.iter().any(|cell| cell.transport == Via::Tcp);
    // Dropped last, when the control connection is closed.
    let child = (needs_far && options.connect.is_none()).then(FarChild::start).transpose()?;
    let address = options.connect.or_else(|| child.as_ref().map(|child| child.address));
    let mut line = address.filter(|_| needs_far).map(greet).transpose()?;
    let progress = Progress::on_terminal();
    let mut arena = Arena::default();
    let mut rounds: Vec<Vec<Round>> = cells.iter().map(|_| Vec::new()).collect();
    let mut prober = Prober::default();
    let mut ceilings = Vec::new();
    for number in 1..=options.rounds {
        if !options.no_ceilings {
            ceilings.push(prober.probe(&cells, line.as_mut(), &mut arena, &progress)?);
        }
        for (cell, rounds) in cells.iter().zip(&mut rounds) {
            progress.doing(format!("round {number} of {}: {cell}", options.rounds));
            let is_last = number == options.rounds;
            let round = near::round(cell, line.as_mut(), &mut arena, is_last, &progress);
            rounds.push(round.with_context(|| cell.to_string())?);
        }
    }
    drop(progress);
    let rows: Vec<Row> = cells.iter().zip(&rounds).filter_map(|(cell, rounds)| row(cell, rounds, &ceilings)).collect();
    print(options, &rows)
}

fn greet(address: SocketAddr) -> Result<Line> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_MAX)
        .with_context(|| format!("reach the far end at {address}: is `kvferry bench listen` running there?"))?;
    let mut line = Line::new(stream)?;
    match line.ask(&Ask::Hello { protocol: PROTOCOL, version: VERSION.to_owned() })? {
        Reply::Hello { protocol, version } => {
            let same = protocol == PROTOCOL && version == VERSION;
            ensure!(same, "the far end is kvferry {version}, this end {VERSION}: use the same build");
            Ok(line)
        }
        other => unexpected(&other),
    }
}

fn row(cell: &Cell, rounds: &[Round], ceilings: &[RoundCeilings]) -> Option<Row> {
    let summary = Summary::of(rounds)?;
    let (ceilings, ceiling) = ceilings::hold(cell, rounds, ceilings);
    Some(Row { peer: "kvferry", version: VERSION, cell: cell.clone(), summary, ceilings, ceiling })
}

fn print(options: &Options, rows: &[Row]) -> Result<()> {
    let lines: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    if let Some(file) = &options.out {
        append(file, &lines).with_context(|| format!("write {}", file.display()))?;
    }
    let text = if options.json { lines.join("\n") + "\n" } else { table::render(rows) + &table::render_ceilings(rows) };
    // A reader that went away has read enough.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("print the results"),
        _ => Ok(()),
    }
}

fn append(file: &Path, lines: &[String]) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    Ok(())
}
