//! The main loop that every plugin shares.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::Value;

use crate::env::RawEnv;
use crate::request::Request;
use crate::{Code, Command, Deadline, Error, Outcome, Verb, Version, answer, logging, request, stdout};

/// How long a runtime may take to read an answer that does not fit into the pipe.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A plugin: what it is called, and what it does with a command.
#[derive(Debug, Clone, Copy)]
pub struct Plugin {
    pub name: &'static str,
    pub version: &'static str,
    /// What it is for, in a line.
    pub about: &'static str,
    /// Does a command. It must leave nothing behind when it fails or panics.
    pub handler: fn(Command) -> Result<Outcome, Error>,
}

/// What goes to stdout in the end.
enum Answer {
    Nothing,
    Text(String),
    Json(Value),
    /// The result of an ADD and its undoing.
    Attached(Value, Box<dyn FnOnce() -> Vec<String>>),
}

thread_local! {
    /// Where the last panic happened: the hook knows it, and whoever catches the panic does not.
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The whole `main` of a plugin: reads environment and stdin, executes the command, writes one JSON document
/// to stdout. Returns 0 on success and 1 after an error, which is then on stdout, also after a panic.
///
/// An ADD whose result cannot be written is rolled back.
#[must_use]
pub fn run(plugin: &Plugin) -> ExitCode {
    set_hook(Box::new(note_panic));
    outlive_limits();
    let version = Cell::new(Version::NEWEST);
    let answer = catch_unwind(AssertUnwindSafe(|| execute(plugin, &version)))
        .unwrap_or_else(|panic| Err(internal(panic.as_ref())));
    match answer {
        Ok(answer) => deliver(answer),
        Err(error) => {
            log::error!("{}", one_line(&error));
            if let Err(unwritten) = write_json(&error.answer(version.get())) {
                logging::init(None, None);
                log::error!("{} (stdout cannot be written: {unwritten})", one_line(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Where a limit on files' sizes is reached (`ulimit -f`), write(2) fails. By default a signal ends the process as well, with all half done.
fn outlive_limits() {
    #[expect(unsafe_code, reason = "what becomes of a signal has no safe wrapper")]
    // SAFETY: there is no handler that would run at any moment; the signal is ignored.
    let ignored = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    if let Err(error) = ignored {
        log::debug!("SIGXFSZ is not ignored: {error}");
    }
}

fn execute(plugin: &Plugin, version: &Cell<Version>) -> Result<Answer, Error> {
    match std::env::args_os().nth(1).as_deref().and_then(|argument| argument.to_str()) {
        Some("--version" | "-V") => return Ok(Answer::Text(answer::version_text(plugin))),
        Some("--help" | "-h") => return Ok(Answer::Text(answer::help_text(plugin))),
        _ => {}
    }
    let verb = verb(plugin)?;
    if verb == Verb::Add && stdout::was_closed() {
        let msg = "stdout is closed, so the result of ADD could not be delivered: nothing was done";
        logging::init(None, None);
        return Err(Error::new(Code::Io, msg));
    }
    let command = match request::read(verb, &RawEnv::of_process(), version)? {
        Request::Versions(asked) => return answer::versions(&asked).map(Answer::Json),
        Request::Command(command) => command,
        Request::NothingToCollect => {
            log::warn!(
                "GC without cni.dev/valid-attachments: nothing can be told dead, so nothing is removed"
            );
            return Ok(Answer::Nothing);
        }
    };
    match (plugin.handler)(*command)? {
        Outcome::Done => Ok(Answer::Nothing),
        Outcome::Passed { result, rollback } => Ok(Answer::Attached(result, rollback)),
        Outcome::Attached { result, rollback } => {
            Ok(Answer::Attached(result.to_json(version.get()), rollback))
        }
    }
}

/// The command that the runtime wants. Without one there is probably a person at the other end.
fn verb(plugin: &Plugin) -> Result<Verb, Error> {
    let commands = "ADD, DEL, CHECK, GC, STATUS or VERSION";
    let value = std::env::var_os("CNI_COMMAND").unwrap_or_default();
    if value.is_empty() {
        // Not by the log, whose level may be off.
        let told = io::stderr().write_all(answer::usage_line(plugin).as_bytes());
        let mut error = Error::new(
            Code::InvalidEnvironment,
            format!("invalid environment: CNI_COMMAND is not set: set it to {commands}"),
        );
        error.details.extend(told.err().map(|reason| format!("stderr cannot be written: {reason}")));
        return Err(error);
    }
    value.to_str().and_then(Verb::parse).ok_or_else(|| {
        Error::new(
            Code::InvalidEnvironment,
            format!("invalid environment: CNI_COMMAND is {value:?}, not {commands}"),
        )
    })
}

/// Writes the answer; undoes an ADD that nobody learns of.
fn deliver(answer: Answer) -> ExitCode {
    let (written, rollback) = match answer {
        Answer::Nothing => return ExitCode::SUCCESS,
        Answer::Text(text) => (write_text(&text), None),
        Answer::Json(json) => (write_json(&json), None),
        Answer::Attached(json, rollback) => (write_json(&json), Some(rollback)),
    };
    let Err(error) = written.and_then(|()| stdout::close()) else { return ExitCode::SUCCESS };
    logging::init(None, None);
    log::error!("stdout cannot be written: {error}");
    if let Some(rollback) = rollback {
        let told = catch_unwind(AssertUnwindSafe(rollback))
            .unwrap_or_else(|panic| vec![one_line(&internal(panic.as_ref()))]);
        log::error!("ADD is rolled back");
        for line in &told {
            log::error!("{line}");
        }
    }
    ExitCode::FAILURE
}

fn write_json(json: &Value) -> io::Result<()> {
    write_text(&format!("{json}\n"))
}

fn write_text(text: &str) -> io::Result<()> {
    stdout::write_all(io::stdout(), text.as_bytes(), Deadline::after(ANSWER_TIMEOUT))
}

/// Notes where a panic happened. It takes the place of the hook that prints in its own form to stderr.
fn note_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    PANIC_PLACE.with_borrow_mut(|noted| *noted = place);
}

/// The error for a caught panic.
fn internal(panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let place = PANIC_PLACE.with_borrow(Clone::clone);
    Error::new(Code::Internal, format!("internal error at {place}: {message}"))
        .detail("this is a bug in the plugin: report it with this message and the configuration")
}

fn one_line(error: &Error) -> String {
    let mut line = format!("code {}: {}", error.code.number(), error.msg);
    for detail in &error.details {
        line.push_str("; ");
        line.push_str(detail);
    }
    line
}
