//! The CNI plugin type `flannel`: reads what the host leased from `subnet.env`, and has a delegate attach the container
//! with that. The delegates `bridge` and `weft` are Weft itself, in this process; any other is executed.
//!
//! Source: flannel.go and flannel_linux.go of github.com/flannel-io/cni-plugin v1.7.

mod conf;
mod delegate;
mod gc;
mod state;

use cni_protocol::{AddResult, Call, CheckArgs, Code, Command, Delegate, Error, Outcome, Verb};
use serde_json::{Map, Value};
use weft_state::{Lock, STARTED_ENV, started};

use conf::FlannelConf;
use delegate::{Facts, WEFT};
use state::State;

/// Carries out a CNI command.
///
/// # Errors
/// What the runtime is to be told; see docs/flannel.md.
pub fn handle(command: Command) -> Result<Outcome, Error> {
    let conf = FlannelConf::parse(command.call())?;
    match &command {
        Command::Add(args) => {
            let facts = Facts::of_host(&conf.subnet_file)?;
            facts.check_taken(&args.call, Code::Conflict)?;
            let delegate = conf.delegate_to_give(&args.call, &facts)?;
            // Weft alone finds all that it made by the attachment's key; others want to hear what they were told.
            if delegate::is_weft_alone(&delegate) {
                return carry_out(command, delegate);
            }
            let state = State::of(&conf, &args.call, &args.container_id, &args.ifname)?;
            let lock = state::share_lock(&conf, &args.call)?;
            add(command, &delegate, state, lock)
        }
        Command::Del(args) => {
            let state = State::of(&conf, &args.call, &args.container_id, &args.ifname)?;
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
            let state = State::of(&conf, &args.call, &args.container_id, &args.ifname)?;
            let delegate = match state.read()? {
                Some(known) => conf::again(&args.call, known),
                None => {
                    // Who masquerades is a matter of the host's, which may change under its containers.
                    let ipmasq = Facts::of_host(&conf.subnet_file).ok().and_then(|host| host.ipmasq);
                    conf.delegate(&args.call, &Facts { ipmasq, ..Facts::of_result(args) })
                }
            };
            carry_out(command, delegate)
        }
        Command::Gc(args) => gc::gc(&conf, args.clone()),
        Command::Status(args) => {
            let facts = Facts::of_host(&conf.subnet_file)
                .map_err(|error| Error { code: Code::NotAvailable, ..error })?;
            facts.check_taken(&args.call, Code::LimitedConnectivity)?;
            let delegate = conf
                .delegate_to_give(&args.call, &facts)
                .map_err(|error| Error { code: Code::NotAvailable, ..error })?;
            carry_out(command, delegate)
        }
    }
}

fn add(command: Command, delegate: &Map<String, Value>, state: State, lock: Lock) -> Result<Outcome, Error> {
    state.begin(delegate)?;
    let (result, rollback) = match carry_out(command, delegate.clone()) {
        Ok(Outcome::Attached { result, rollback }) => (result, rollback),
        Ok(done) => return Ok(done),
        Err(error) => {
            return Err(state.remove().err().into_iter().fold(error, |error, left| error.detail(left.msg)));
        }
    };
    lock.take_from_children();
    let noted = state.attached(delegate);
    let forget = move || {
        let mut left = rollback();
        left.extend(state.remove().err().map(|error| error.msg));
        drop(lock);
        left
    };
    match noted {
        Ok(()) => Ok(Outcome::Attached { result, rollback: Box::new(forget) }),
        Err(error) => Err(forget().into_iter().fold(error, Error::detail)),
    }
}

fn is_weft(delegate: &Map<String, Value>) -> bool {
    plugin_of(delegate) == WEFT
}

fn plugin_of(delegate: &Map<String, Value>) -> String {
    delegate.get("type").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Has the delegate carry out the command with its configuration.
fn carry_out(mut command: Command, delegate: Map<String, Value>) -> Result<Outcome, Error> {
    let verb = command.verb();
    let plugin = plugin_of(&delegate);
    let call = call_mut(&mut command);
    call.conf = delegate;
    call.write_stdin();
    if plugin == WEFT {
        return weft::handle(command);
    }
    let call = command.call().clone();
    match verb {
        Verb::Add => execute_add(&plugin, call),
        _ => execute(&plugin, verb, &call).map(|_output| Outcome::Done),
    }
}

fn execute(plugin: &str, verb: Verb, call: &Call) -> Result<Vec<u8>, Error> {
    // A delegate that is Weft's kind asks when the command began, to keep what is younger.
    let began = started().as_nanos().to_string();
    let env = [(STARTED_ENV, began.as_str())];
    let env = if verb == Verb::Gc { &env[..] } else { &[] };
    Delegate::find(plugin, &call.cni_path)?.start(verb, env)?.finish(&call.stdin, call.deadline)
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
        Err(error) => Error { msg: format!("not taken back: {}", error.msg), ..error }.lines().collect(),
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
    /// What the host had leased when it attached a container, by the container's own addresses; the result itself has its MTU and its
    /// routes. An address of another interface, or without a gateway, is a later plugin's.
    fn of_result(args: &CheckArgs) -> Self {
        let AddResult { interfaces, ips, .. } = &args.prev_result;
        let is_own = |at: usize| {
            let of = interfaces.get(at).filter(|of| of.name == args.ifname.as_str());
            of.and_then(|of| of.sandbox.as_deref()).is_some_and(|path| !path.is_empty())
        };
        let own = ips.iter().filter(|ip| ip.gateway.is_some() && ip.interface.is_none_or(is_own));
        Self { subnets: own.map(|ip| ip.address).collect(), ..Self::default() }
    }
}
