//! The binary `weftd`.

use std::process::ExitCode;

use clap::Parser as _;
use cni_protocol::{Error, logging};
use dlmalloc::GlobalDlmalloc;
use weft_flannel::agent::{self, cli::Cli};

/// musl's allocator maps and unmaps memory for every few kilobytes.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = run(cli);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where the configuration is wrong, its log level is not known.
            logging::init(None, None);
            log::error!("{}", [vec![error.msg], error.details].concat().join("; "));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Error> {
    let only_check = cli.check;
    let conf = cli.conf()?;
    if only_check {
        return Ok(());
    }
    logging::init(Some(&conf.log_level), None);
    agent::run(conf)
}
