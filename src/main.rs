//! The daemon of a node and its command line.
#![forbid(unsafe_code)]

mod commands;
mod config;
mod daemon;
mod models;
mod random;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Carries the KV cache of large language models between vLLM engines.
#[derive(Parser, Debug)]
#[command(version, after_help = "Try `kvferry demo`: two daemons and synthetic KV, no vLLM needed.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Bench(Box<commands::bench::Bench>),
    Cache(commands::cache::Cache),
    CheckConfig(commands::check_config::CheckConfig),
    Checksum(commands::checksum::Checksum),
    Demo(commands::demo::Demo),
    Serve(commands::serve::Serve),
    Sidecar(commands::sidecar::RunSidecar),
    Status(commands::status::ShowStatus),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("KVFERRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let mut log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if !std::io::stderr().is_terminal() {
        // Colours are for people; NO_COLOR turns them off for those as well.
        log = log.with_ansi(false);
    }
    log.init();
    let result = match Cli::parse().command {
        Command::Bench(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Checksum(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Sidecar(command) => command.run(),
        Command::Status(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvferry: {error:#}");
            error.downcast_ref::<commands::Exit>().map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.status))
        }
    }
}
