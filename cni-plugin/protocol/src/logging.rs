//! Logs: to stderr, which runtimes keep, and to a file for those who cannot find it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;

/// The environment variable that sets the level whatever the configuration says.
const LEVEL_ENV: &str = "WEFT_LOG";

/// Starts logging at a level (`off`, `error`, `warn`, `info`, `debug`, `trace`; `warn` unless told) to
/// stderr and, when given, to the end of a file. The environment's `WEFT_LOG` has the last word on the level.
///
/// A wrong level or a file that cannot be opened is logged and otherwise ignored: logs are no reason to
/// leave a container without network. A second call changes nothing.
pub fn init(level: Option<&str>, file: Option<&Path>) {
    let from_env = std::env::var(LEVEL_ENV).ok().filter(|level| !level.is_empty());
    let asked = from_env.as_deref().or(level);
    let parsed = asked.and_then(|text| text.parse::<LevelFilter>().ok());
    let opened = file.map(|path| (path, open(path)));
    let mut builder = Builder::new();
    builder.filter_level(parsed.unwrap_or(LevelFilter::Warn));
    builder.write_style(WriteStyle::Never);
    let mut failure = None;
    match opened {
        None => {}
        Some((_, Ok(file))) => {
            builder.target(Target::Pipe(Box::new(StderrAndFile { file })));
        }
        Some((path, Err(error))) => failure = Some((path, error)),
    }
    let pid = std::process::id();
    builder.format(move |out, record| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        writeln!(out, "{} [{pid}] {} {}: {}", utc(now), record.level(), record.target(), record.args())
    });
    if builder.try_init().is_err() {
        return;
    }
    if let (Some(text), None) = (asked, parsed) {
        log::warn!(
            "log level {text:?} is unknown, warn is used: give off, error, warn, info, debug or trace"
        );
    }
    if let Some((path, error)) = failure {
        log::warn!("log file {} cannot be opened, logs go to stderr only: {error}", path.display());
    }
}

/// Text that is not to look like more than one line of a log or to move a terminal's cursor, whoever wrote it: control
/// characters and others that are not to be seen are escaped. Quotes and backslashes stay, as people copy what a message says to do;
/// so a second time changes nothing.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' | '"' | '\\' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

/// Opens a log file for appending, for root's eyes only: lines may quote a configuration.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Writes each line to both. A reader of stderr that is gone must not end a command.
struct StderrAndFile {
    file: File,
}

impl Write for StderrAndFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A failure of one must not keep the line from the other.
        let to_stderr = io::stderr().write_all(line);
        self.file.write_all(line)?;
        to_stderr.map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A moment since 1970 in the form of RFC 3339, in UTC with milliseconds.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The Gregorian date of a day counted from 1 January 1970.
fn date(mut days: u64) -> (u64, usize, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_one_line_and_can_be_copied() {
        let forged = "x\r\n2026-01-01 ERROR \u{1b}[2J\u{202e}\u{2028}\0\u{7f}";
        let said = printable(forged);
        assert_eq!(said, r"x\r\n2026-01-01 ERROR \u{1b}[2J\u{202e}\u{2028}\0\u{7f}");
        assert_eq!(printable(&said), said);
        let line = r#"this one's: etcdctl del '/a "b"\c' é ü 日本"#;
        assert_eq!(printable(line), line);
    }

    #[test]
    fn timestamps() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(utc(Duration::from_millis(1_234)), "1970-01-01T00:00:01.234Z");
    }

    #[test]
    fn lines_are_appended_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weft.log");
        for line in ["one\n", "two\n"] {
            StderrAndFile { file: open(&path).unwrap() }.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
