//! The CNI plugin type `flannel`: reads what the host leased from `subnet.env`, and has a delegate attach the container
//! with that. The delegates `bridge` and `weft` are Weft itself, in this process; any other is executed.
//!
//! Source: flannel.go and flannel_linux.go of github.com/flannel-io/cni-plugin v1.7.

mod conf;
mod delegate;
mod state;

use cni_protocol::{AddResult, Call, Code, Command, Delegate, Error, GcArgs, IpConfig, Outcome, Verb};
use serde_json::{Map, Value};

use conf::FlannelConf;
use delegate::{Facts, WEFT};
use state::{Gone, State};

/// Carries out a CNI command.
///
/// # Errors
/// What the runtime is to be told; see docs/flannel.md.
pub fn handle(command: Command) -> Result<Outcome, Error> {
    let conf = FlannelConf::parse(command.call())?;
    match &command {
        Command::Add(args) => {
            let facts = Facts::of_host(&conf.subnet_file)?;
            let delegate = conf.delegate(&args.call, &facts);
            let state = State::of(&conf, &args.container_id, &args.ifname);
            add(command, delegate, state)
        }
        Command::Del(args) => {
            let state = State::of(&conf, &args.container_id, &args.ifname);
            let known = state.read()?;
            let had = known.is_some();
            let delegate = match known {
                Some(known) => conf::again(&args.call, known),
                None => conf.delegate(&args.call, &Facts::of_host(&conf.subnet_file).unwrap_or_default()),
            };
            // What another plugin was told when it made the attachment is needed to undo it.
            if !had && !is_weft(&delegate) {
                log::warn!("nothing is known of {} of {}: nothing to do", args.ifname, args.container_id);
                return Ok(Outcome::Done);
            }
            let done = carry_out(command, delegate)?;
            state.remove()?;
            Ok(done)
        }
        Command::Check(args) => {
            let state = State::of(&conf, &args.container_id, &args.ifname);
            let delegate = match state.read()? {
                Some(known) => conf::again(&args.call, known),
                None => {
                    let from_result = || Facts::of_result(&args.prev_result.ips);
                    conf.delegate(
                        &args.call,
                        &Facts::of_host(&conf.subnet_file).unwrap_or_else(|_| from_result()),
                    )
                }
            };
            carry_out(command, delegate)
        }
        Command::Gc(args) => {
            let facts = Facts::of_host(&conf.subnet_file).unwrap_or_default();
            let args = args.clone();
            let delegate = conf.delegate(&args.call, &facts);
            let done = carry_out(command, delegate)?;
            collect_garbage(&conf, &args)?;
            Ok(done)
        }
        Command::Status(args) => {
            let facts = Facts::of_host(&conf.subnet_file)
                .map_err(|error| Error { code: Code::NotAvailable, ..error })?;
            let delegate = conf.delegate(&args.call, &facts);
            carry_out(command, delegate)
        }
    }
}

fn add(command: Command, delegate: Map<String, Value>, state: State) -> Result<Outcome, Error> {
    // Weft alone finds all that it made by the attachment's key; others want to hear what they were told.
    if delegate::is_weft_alone(&delegate) {
        return carry_out(command, delegate);
    }
    state.write(&delegate)?;
    match carry_out(command, delegate) {
        Ok(Outcome::Attached { result, rollback }) => {
            let forget = move || {
                let mut left = rollback();
                left.extend(state.remove().err().map(|error| error.msg));
                left
            };
            Ok(Outcome::Attached { result, rollback: Box::new(forget) })
        }
        Ok(done) => Ok(done),
        Err(error) => Err(state.remove().err().into_iter().fold(error, |error, left| error.detail(left.msg))),
    }
}

fn is_weft(delegate: &Map<String, Value>) -> bool {
    delegate.get("type").and_then(Value::as_str) == Some(WEFT)
}

/// Has the delegate carry out the command with its configuration.
fn carry_out(mut command: Command, delegate: Map<String, Value>) -> Result<Outcome, Error> {
    let verb = command.verb();
    let plugin = delegate.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let call = call_mut(&mut command);
    call.stdin = Value::Object(delegate.clone()).to_string().into_bytes();
    call.conf = delegate;
    if plugin == WEFT {
        return weft::handle(command);
    }
    let call = command.call().clone();
    match verb {
        Verb::Add => execute_add(&plugin, call),
        _ => execute(&plugin, verb, &call).map(|_output| Outcome::Done),
    }
}

/// Undoes and forgets what is gone. One that fails keeps none of the others.
///
/// # Errors
/// The first failure, with the others as its details.
fn collect_garbage(conf: &FlannelConf, args: &GcArgs) -> Result<(), Error> {
    let mut failure: Option<Error> = None;
    for gone in state::gone(conf, &args.call.network, &args.valid)? {
        if let Err(error) = undo_gone(&gone, &args.call).and_then(|()| gone.state.remove()) {
            failure = Some(match failure {
                None => error,
                Some(first) => first.detail(error.msg),
            });
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Weft's own GC has done it. Of others it cannot be told whether theirs did, and the reference plugins' interface
/// plugins have none (v1.9.1): an attachment that nothing is known of any more could not even be deleted.
fn undo_gone(gone: &Gone, call: &Call) -> Result<(), Error> {
    let mut delegate = conf::again(call, gone.known.clone());
    if is_weft(&delegate) {
        return Ok(());
    }
    delegate.retain(|key, _| !key.ends_with("attachments"));
    let plugin = delegate.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let stdin = Value::Object(delegate).to_string().into_bytes();
    let env = [
        ("CNI_CONTAINERID", gone.container.as_str()),
        ("CNI_IFNAME", gone.ifname.as_str()),
        // Its container is gone.
        ("CNI_NETNS", ""),
    ];
    Delegate::find(&plugin, &call.cni_path)?.start(Verb::Del, &env)?.finish(&stdin, call.deadline).map(drop)
}

fn execute(plugin: &str, verb: Verb, call: &Call) -> Result<Vec<u8>, Error> {
    Delegate::find(plugin, &call.cni_path)?.start(verb, &[])?.finish(&call.stdin, call.deadline)
}

fn execute_add(plugin: &str, call: Call) -> Result<Outcome, Error> {
    let result = execute(plugin, Verb::Add, &call).and_then(|output| {
        serde_json::from_slice(&output)
            .map_err(|error| Error::new(Code::Decode, format!("{plugin} returned no JSON: {error}")))
            .and_then(|json| AddResult::from_json(&json))
    });
    let plugin = plugin.to_owned();
    let undo = move || match execute(&plugin, Verb::Del, &call) {
        Ok(_) => Vec::new(),
        Err(error) => vec![format!("not taken back: {}", error.msg)],
    };
    match result {
        Ok(result) => Ok(Outcome::Attached { result, rollback: Box::new(undo) }),
        Err(error) => Err(undo().into_iter().fold(error, Error::detail)),
    }
}

fn call_mut(command: &mut Command) -> &mut Call {
    match command {
        Command::Add(args) => &mut args.call,
        Command::Del(args) => &mut args.call,
        Command::Check(args) => &mut args.call,
        Command::Gc(args) => &mut args.call,
        Command::Status(args) => &mut args.call,
    }
}

impl Facts {
    /// What can be told from a container's own addresses.
    fn of_result(ips: &[IpConfig]) -> Self {
        Self { subnets: ips.iter().map(|ip| ip.address).collect(), ..Self::default() }
    }
}
