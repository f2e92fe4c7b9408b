//! `kvferry cache`: what is worth keeping.

mod replay;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::replay::Replay;

/// How cached blocks are chosen.
#[derive(Args, Debug)]
pub(crate) struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Replay(Replay),
}

impl Cache {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Replay(command) => command.run(),
        }
    }
}
