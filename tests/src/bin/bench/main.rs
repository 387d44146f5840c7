//! What an attachment costs with Weft and with its peers, as a container runtime sees it: from the start of the
//! plugin's process to its end. `hack/bench` builds everything, makes the namespaces and starts this.

mod forwarding;
mod machine;
mod overlay;
mod plugin;
mod process;
mod report;
mod scenario;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::report::{About, Row};
use crate::scenario::{PARTS, Peers};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [process::PEAK_MEMORY, program, arguments @ ..] => process::report_peak_memory(program, arguments),
        [output, date] => bench(output.into(), date, ""),
        [output, date, part] => bench(output.into(), date, part),
        _ => {
            eprintln!("usage: bench OUTPUT-DIRECTORY DATE [PART]; hack/bench does this");
            ExitCode::FAILURE
        }
    }
}

/// Runs the parts whose name starts with `part` and writes the table and the JSON.
fn bench(output: PathBuf, date: &str, part: &str) -> ExitCode {
    let chosen: Vec<_> = PARTS.iter().filter(|(name, _)| name.starts_with(part)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        eprintln!("there is no part '{part}'; there are: {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: run hack/bench");
        return ExitCode::FAILURE;
    }
    let peers = Peers::find();
    machine::private_mounts();
    process::adopt_orphans();
    let about = About::this_machine(date);
    let mut rows: Vec<Row> = Vec::new();
    for (name, run) in chosen {
        eprintln!("bench: {name} …");
        rows.extend(run(&peers));
    }
    report::write(&output, &about, &rows);
    ExitCode::SUCCESS
}
