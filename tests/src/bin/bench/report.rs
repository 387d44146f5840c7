//! The table for people and the JSON for programs.

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::stats::Spread;

/// One comparison.
#[derive(Serialize)]
pub(crate) struct Row {
    what: String,
    peer: String,
    unit: &'static str,
    runs: usize,
    weft: Spread,
    against: Spread,
    /// Of each pair; its median is compared with the target.
    ratio: Spread,
    target: Option<Target>,
    met: Option<bool>,
}

/// What is asked of a row's median.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Of the ratio.
    Ratio(f64),
    /// Of the ratio, where more is better.
    AtLeast(f64),
    /// Of Weft's own value.
    Value(f64),
    /// Of what Weft's value has more than the other.
    More(f64),
}

impl Row {
    pub(crate) fn new(
        what: &str,
        peer: &str,
        unit: &'static str,
        target: Target,
        pairs: &[(f64, f64)],
    ) -> Self {
        let row = Self::without_target(what, peer, unit, pairs);
        let met = match target {
            Target::Ratio(limit) => row.ratio.median <= limit,
            Target::AtLeast(limit) => row.ratio.median >= limit,
            Target::Value(limit) => row.weft.median <= limit,
            Target::More(limit) => Spread::of(pairs.iter().map(|pair| pair.0 - pair.1)).median <= limit,
        };
        Self { target: Some(target), met: Some(met), ..row }
    }

    pub(crate) fn without_target(what: &str, peer: &str, unit: &'static str, pairs: &[(f64, f64)]) -> Self {
        Self {
            what: what.to_owned(),
            peer: peer.to_owned(),
            unit,
            runs: pairs.len(),
            weft: Spread::of(pairs.iter().map(|pair| pair.0)),
            against: Spread::of(pairs.iter().map(|pair| pair.1)),
            ratio: Spread::of(pairs.iter().map(|pair| pair.0 / pair.1)),
            target: None,
            met: None,
        }
    }

    fn name(&self) -> String {
        format!("{} (against {})", self.what, self.peer)
    }

    fn markdown(&self) -> String {
        let value = |spread: &Spread| {
            format!("{} ({}–{}) {}", digits(spread.median), digits(spread.min), digits(spread.max), self.unit)
        };
        let asked = self.target.map(|target| match target {
            Target::Ratio(limit) => format!("≤ {limit}"),
            Target::AtLeast(limit) => format!("≥ {limit}"),
            Target::Value(limit) => format!("≤ {limit} {}", self.unit),
            Target::More(limit) => format!("≤ + {limit} {}", self.unit),
        });
        let target = match (asked, self.met) {
            (Some(asked), Some(true)) => format!("{asked}: met"),
            (Some(asked), _) => format!("{asked}: **missed**"),
            (None, _) => "–".to_owned(),
        };
        let Spread { median, min, max } = self.ratio;
        format!(
            "| {} | {} | {} | {} | **{median:.3}** ({min:.3}–{max:.3}) | {target} |",
            self.what,
            value(&self.weft),
            self.peer,
            value(&self.against),
        )
    }
}

/// About three significant digits.
fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Where and when.
#[derive(Serialize)]
pub(crate) struct About {
    date: String,
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Load of the last minute when the benchmark began: of others, that is.
    load: f64,
}

impl About {
    pub(crate) fn this_machine(date: &str) -> Self {
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").expect("the size of memory");
        let kib: u64 = memory.trim_end_matches(" kB").parse().expect("a number");
        let load = fs::read_to_string("/proc/loadavg").expect("the load");
        let about = Self {
            date: date.to_owned(),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().expect("the number of cores").get(),
            memory_mib: kib / 1024,
            kernel: uname().expect("the kernel's name").release().to_string_lossy().into_owned(),
            load: load.split(' ').next().and_then(|word| word.parse().ok()).expect("the load"),
        };
        if about.load > 0.5 {
            eprintln!(
                "NOTE: the machine is busy (load {}): other processes are in these figures",
                about.load
            );
        }
        about
    }
}

/// Writes `bench.json` and `bench.md` into a directory, and the table to standard output.
pub(crate) fn write(directory: &Path, about: &About, rows: &[Row]) {
    let mut table = format!(
        "{} · {} cores of {} · {} MiB · Linux {} · load {} at the start\n\n",
        about.date, about.cores, about.cpu, about.memory_mib, about.kernel, about.load
    );
    table += "Medians (min–max); the ratio is taken pair by pair.\n\n";
    table += "| what | Weft | against | takes | ratio | target |\n|---|---|---|---|---|---|\n";
    for row in rows {
        table += &row.markdown();
        table += "\n";
    }
    let json = serde_json::json!({ "machine": about, "rows": rows });
    let json = serde_json::to_string_pretty(&json).expect("rows are JSON");
    fs::create_dir_all(directory).expect("make the output directory");
    fs::write(directory.join("bench.md"), &table).expect("write the table");
    fs::write(directory.join("bench.json"), json + "\n").expect("write the JSON");
    print!("{table}");
    let judged = rows.iter().filter(|row| row.met.is_some()).count();
    let missed: Vec<_> = rows.iter().filter(|row| row.met == Some(false)).map(Row::name).collect();
    let met = judged - missed.len();
    let list = if missed.is_empty() { String::new() } else { format!("; missed: {}", missed.join(", ")) };
    println!("\n{met} of {judged} targets met{list}");
}
