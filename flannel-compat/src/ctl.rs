//! `weftctl`: looks at a host's networks and changes what only people decide.

mod config;
mod ipam;
mod leave;
mod status;

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use cni_protocol::{Code, Error};

use crate::agent::cli::{Cli as AgentCli, Source};
use crate::agent::conf::{Conf, NetworkConf};

/// Looks at this host's networks that span hosts, and changes what only people decide
#[derive(Debug, Parser)]
#[command(name = "weftctl", version)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    /// Only this network of the configuration
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lease, other hosts, addresses, and whether the kernel has what it ought to
    Status {
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// The network's configuration in etcd
    #[command(subcommand)]
    Config(ConfigAction),
    /// Gives up this host's lease, its device and its routes
    Leave {
        /// Also while containers have addresses of it: they are cut off
        #[arg(long)]
        force: bool,
    },
    /// The addresses of this host's containers
    #[command(subcommand)]
    Ipam(IpamAction),
    /// Prints completions for a shell
    Completions { shell: Shell },
    /// Writes the manual pages of weftd and weftctl into a directory
    Man { directory: PathBuf },
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Prints it
    Get,
    /// Checks a file (or - for standard input) and puts it, unless hosts have subnets that do not fit it
    Put {
        file: PathBuf,
        /// Also when hosts have subnets that do not fit it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum IpamAction {
    /// Address, container, interface, and for how long
    Ls {
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Cli {
    /// Does it; what is to be printed.
    ///
    /// # Errors
    /// What people are to be told; docs/weftctl.md.
    pub fn run(self) -> Result<String, Error> {
        match self.action {
            Action::Completions { shell } => return Ok(completions(shell)),
            Action::Man { directory } => return manual(&directory),
            _ => {}
        }
        let mut conf = self.source.conf()?;
        if let Some(name) = &self.network {
            let known: Vec<String> = conf.networks.iter().map(|network| network.name.to_string()).collect();
            conf.networks.retain(|network| network.name.as_str() == name);
            if conf.networks.is_empty() {
                let msg =
                    format!("--network {name}: there is no such network: there are {}", known.join(", "));
                return Err(Error::new(Code::InvalidConfig, msg));
            }
        }
        match self.action {
            Action::Status { output } => status::status(&conf, output),
            Action::Config(ConfigAction::Get) => config::get(only(&conf)?),
            Action::Config(ConfigAction::Put { file, force }) => config::put(only(&conf)?, &file, force),
            Action::Leave { force } => leave::leave(&conf, only(&conf)?, force),
            Action::Ipam(IpamAction::Ls { output }) => ipam::list(&conf, output),
            Action::Completions { .. } | Action::Man { .. } => Ok(String::new()),
        }
    }
}

/// The network that is meant where only one can be.
fn only(conf: &Conf) -> Result<&NetworkConf, Error> {
    match conf.networks.as_slice() {
        [network] => Ok(network),
        several => {
            let names: Vec<&str> = several.iter().map(|network| network.name.as_str()).collect();
            let msg = format!("there are several networks: choose one with --network: {}", names.join(", "));
            Err(Error::new(Code::InvalidConfig, msg))
        }
    }
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weftctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn manual(directory: &std::path::Path) -> Result<String, Error> {
    for command in [Cli::command(), AgentCli::command()] {
        clap_mangen::generate_to(command, directory).map_err(|error| {
            let msg = format!(
                "write manual pages to {}: {error}: name a directory that is there",
                directory.display()
            );
            Error::new(Code::Io, msg)
        })?;
    }
    Ok(String::new())
}

/// Columns with their widest value's width, under a line of headings.
fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let values = rows.iter().filter_map(|row| row.get(column)).map(|value| value.chars().count());
        values.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |values: &[String]| {
        let cells = values.iter().zip(&widths).map(|(value, width)| format!("{value:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    rows.iter().fold(line(&headings), |text, row| text + &line(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn columns_are_as_wide_as_their_values() {
        let rows = [vec!["10.1.2.3".to_owned(), "x".to_owned()], vec!["a".to_owned(), "yy".to_owned()]];
        assert_eq!(table(&["IP", "NAME"], &rows), "IP        NAME\n10.1.2.3  x\na         yy\n");
    }
}
