//! `weftd`, the node agent.
//!
//! One thread. Per network a loop ([`network`]) that wakes up for the store, the kernel and a timer, and then makes
//! everything as it ought to be ([`heal`]); the store is talked to beside it ([`store`]). What is true at any time
//! ([`truth`]) is told to whoever asks ([`http`], [`metrics`]) and to systemd ([`service`]).

pub(crate) mod addresses;
mod backoff;
pub mod cli;
pub mod conf;
mod containers;
mod firewalls;
mod heal;
mod hosts;
mod http;
mod kernel;
pub(crate) mod lock;
mod log_once;
mod metrics;
mod network;
mod service;
mod store;
pub(crate) mod subnet_env;
mod truth;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cni_protocol::{Code, Error};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use addresses::Addresses;
use conf::Conf;
use http::{Page, Pages, Server};
use metrics::Metrics;
use network::Network;
use truth::Truth;

/// What an upgrade still wants.
const REPLACED: &str = "weftd's file was replaced, and the former program runs on: restart weftd";

type Truths = Rc<Vec<Rc<RefCell<Truth>>>>;

/// How long it may take until a change is noticed of which the kernel does not tell.
const LOOK: Duration = Duration::from_secs(10);
/// How long the kernel may take for one look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks after all networks until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps a network from being looked after; systemd starts the agent anew then.
pub fn run(conf: Conf) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Code::Io, format!("start the event loop: {error}")))?;
    LocalSet::new().block_on(&runtime, serve(conf))
}

async fn serve(mut conf: Conf) -> Result<(), Error> {
    let handler = |kind| signal(kind).map_err(|e| Error::new(Code::Io, format!("wait for signals: {e}")));
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let mut locked = Vec::new();
    for network in std::mem::take(&mut conf.networks) {
        let lock = lock::take(&conf.state_dir, &network.name).map_err(|error| {
            let remedy = "one agent looks after a network: end the other one";
            Error::new(error.code, format!("network {}: {}: {remedy}", network.name, error.msg))
        })?;
        locked.push((network, lock));
    }
    heal::end_masquerades(&conf, &locked.iter().map(|(network, _)| network).collect::<Vec<_>>());
    let server = Server::bind(&conf.listen)?;
    let metrics = Rc::new(Metrics::new());
    let (stop, stopped) = watch::channel(false);
    let mut truths = Vec::new();
    let mut networks = JoinSet::new();
    for network in locked {
        let truth = Rc::new(RefCell::new(Truth::new(network.0.name.clone())));
        truths.push(Rc::clone(&truth));
        let network = Network::start(network, &conf, truth, Rc::clone(&metrics))?;
        networks.spawn_local(network.run(stopped.clone()));
    }
    let truths = Rc::new(truths);
    let containers = containers::keep(conf.state_dir.clone(), Rc::clone(&metrics));
    let pages = pages(Rc::clone(&truths), metrics, conf);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = networks.join_next(), if !networks.is_empty() => return ended.map_or(Ok(()), join),
        ended = containers => return ended,
        () = server.run(pages) => {}
        () = service::watchdog() => {}
        () = tell_systemd(truths) => {}
    }
    log::info!("weftd ends; devices, routes and leases stay");
    service::stopping();
    // Nobody listens when all networks have ended already.
    stop.send_replace(true);
    while let Some(ended) = networks.join_next().await {
        join(ended)?;
    }
    Ok(())
}

/// Ticks once in a period, and first at the end of one; who is late is not hurried.
fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Waits for a moment; without one, for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How a network's loop ended.
fn join(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|panic| Err(Error::new(Code::Internal, format!("a network's loop: {panic}"))))
}

/// READY once all that can be is set up for every network, and a line of status whenever it changes. Whether that is enough is left
/// to `/readyz`: what is missing may come only with what starts later.
async fn tell_systemd(truths: Truths) {
    let mut timer = tokio::time::interval(Duration::from_millis(20));
    let (mut ready, mut said) = (false, String::new());
    loop {
        timer.tick().await;
        let text = summary(&truths).1.trim_end().replace('\n', "; ");
        if text.ends_with(REPLACED) && !said.ends_with(REPLACED) {
            log::warn!("{REPLACED}");
        }
        if text != said {
            service::status(&text);
            said = text;
        }
        if !ready && truths.iter().all(|truth| truth.borrow().settled) {
            ready = true;
            service::ready();
            timer = tokio::time::interval(Duration::from_secs(2));
        }
    }
}

/// Whether all networks are ready, and a line for each; and one when the agent is to be restarted.
fn summary(truths: &Truths) -> (bool, String) {
    let mut all = true;
    let mut text = String::new();
    for truth in truths.iter() {
        let truth = truth.borrow();
        let ready = truth.ready();
        all &= ready.is_ok();
        let (Ok(line) | Err(line)) = ready;
        text += &format!("{}: {line}\n", truth.network);
    }
    if service::is_replaced() {
        text += &format!("{REPLACED}\n");
    }
    (all, text)
}

fn pages(truths: Truths, metrics: Rc<Metrics>, conf: Conf) -> Pages {
    Rc::new(move |path| match path {
        "/readyz" => {
            let (ready, text) = summary(&truths);
            Some(Page::plain(ready, text))
        }
        "/healthz" => {
            let hanging = truths.iter().find(|truth| !truth.borrow().lives());
            Some(match hanging {
                None => Page::plain(true, "ok\n".into()),
                Some(truth) => Page::plain(false, format!("{}: its loop hangs\n", truth.borrow().network)),
            })
        }
        "/metrics" => {
            let borrowed: Vec<_> = truths.iter().map(|truth| truth.borrow()).collect();
            let text =
                metrics.text(borrowed.iter().map(|truth| (&**truth, Addresses::of(truth, &conf.state_dir))));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            Some(Page { ok: true, kind, text })
        }
        _ => None,
    })
}
