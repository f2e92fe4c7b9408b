//! `kvferry cache`: what is worth keeping.

mod replay;
mod stat;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::replay::Replay;
use self::stat::Stat;
pub(super) use self::stat::tier_lines;

/// What is cached, and how it is chosen.
#[derive(Args, Debug)]
pub(crate) struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Replay(Replay),
    Stat(Stat),
}

impl Cache {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Replay(command) => command.run(),
            Command::Stat(command) => command.run(),
        }
    }
}
