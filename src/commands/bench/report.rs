//! `kvferry bench report`: one page of charts from result rows, of this program and of others.
//!
//! ```text
//! JSON lines -> reading: rows -> grouping: charts of shapes of bars, each with its ceiling -> chart: SVG -> page: HTML
//! ```
//!
//! The page needs nothing from anywhere: no scripts, no fonts, no images. Limits: [`FILE_BYTES_MAX`] a file,
//! [`ROWS_MAX`] rows. Failure: a line that is no row is named with its file and number.

mod chart;
mod grouping;
mod page;
mod reading;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::reading::Shown;

const FILE_BYTES_MAX: u64 = 64 << 20;
const ROWS_MAX: usize = 10_000;

/// Draws the rows of `--json`, `--out` and `make bench-peers` as one HTML page, every figure beside its ceiling.
#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Files of JSON lines.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The page to write.
    #[arg(short, long, default_value = "report.html", value_name = "FILE")]
    output: PathBuf,
}

impl Report {
    pub(crate) fn run(self) -> Result<()> {
        let mut rows = Vec::new();
        for file in &self.files {
            rows.extend(read(file)?);
        }
        ensure!(!rows.is_empty(), "no rows in {} files: `kvferry bench --out FILE` writes some", self.files.len());
        ensure!(rows.len() <= ROWS_MAX, "{} rows are too many for a page: at most {ROWS_MAX}", rows.len());
        let count = rows.len();
        let page = page::render(&grouping::charts(rows), count);
        fs::write(&self.output, page).with_context(|| format!("write {}", self.output.display()))?;
        println!("{}: {count} rows", self.output.display());
        Ok(())
    }
}

fn read(file: &Path) -> Result<Vec<Shown>> {
    let name = file.display();
    let bytes = fs::metadata(file).with_context(|| format!("read {name}"))?.len();
    ensure!(bytes <= FILE_BYTES_MAX, "{name} has {bytes} bytes: at most {FILE_BYTES_MAX} are read");
    let text = fs::read_to_string(file).with_context(|| format!("read {name}"))?;
    reading::rows(&text).with_context(|| name.to_string())
}
