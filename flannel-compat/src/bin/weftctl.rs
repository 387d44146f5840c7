//! The binary `weftctl`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use weft_flannel::ctl::Cli;

fn main() -> ExitCode {
    cni_protocol::logging::init(None, None);
    match Cli::parse().run() {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            // Whoever read it has seen enough.
            Err(_closed) => ExitCode::FAILURE,
        },
        Err(error) => {
            let lines = std::iter::once(&error.msg).chain(&error.details);
            for line in lines {
                if writeln!(std::io::stderr(), "weftctl: {line}").is_err() {
                    break;
                }
            }
            ExitCode::FAILURE
        }
    }
}
