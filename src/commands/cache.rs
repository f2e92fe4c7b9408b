//! `kvferry cache`: what is stored, what comes of it, and what is worth keeping.

mod evict;
mod ls;
mod replay;
mod stat;
mod sweeping;
mod verify;
mod which;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::evict::Evict;
use self::ls::List;
use self::replay::Replay;
use self::stat::Stat;
pub(super) use self::stat::tier_lines;
use self::verify::Verify;

/// What is cached, and how it is chosen.
#[derive(Args, Debug)]
pub(crate) struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Evict(Evict),
    #[command(name = "ls")]
    List(List),
    Replay(Replay),
    Stat(Stat),
    Verify(Verify),
}

impl Cache {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Evict(command) => command.run(),
            Command::List(command) => command.run(),
            Command::Replay(command) => command.run(),
            Command::Stat(command) => command.run(),
            Command::Verify(command) => command.run(),
        }
    }
}
