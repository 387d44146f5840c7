//! `weftctl status`.

use std::time::Duration;

use cni_protocol::logging::printable;
use cni_protocol::{Deadline, Error};
use ipnetwork::IpNetwork;
use serde::Serialize;
use weft::overlay::{self, Differences, Overlay};
use weft_ipam::lease;
use weft_ipam::registry::{Registry, Snapshot, in_event_loop};
use weft_net::Netlink;
use weft_state::lease::{HostLease, Peers, Taken, agent_lives};

use super::{Output, table};
use crate::agent::addresses::{Addresses, ByFamily};
use crate::agent::conf::{Conf, NetworkConf};

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    network: String,
    lease: Option<Lease>,
    /// The host that has this one's subnet.
    taken_by: Option<String>,
    /// Whether weftd looks after it.
    agent: bool,
    addresses: ByFamily,
    etcd: Etcd,
    /// What in etcd is not as this host needs it to be, or where its subnet is not the network's that is configured, in a sentence.
    trouble: Option<String>,
    /// What the kernel has not as it ought to, in sentences.
    damage: Vec<String>,
    peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    key: String,
    /// In seconds; `null` for one that never ends.
    remaining: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Etcd {
    answers: bool,
    /// Its revision, or why it does not answer.
    what: String,
}

#[derive(Debug, Serialize)]
struct Peer {
    subnet: String,
    address: String,
    /// `followed`, or why the record is passed over, or the host cannot be reached.
    state: String,
}

pub(super) fn status(conf: &Conf, output: Output) -> Result<String, Error> {
    let networks =
        conf.networks.iter().map(|network| of(conf, network)).collect::<Result<Vec<_>, Error>>()?;
    if output == Output::Json {
        return Ok(serde_json::to_string_pretty(&networks).unwrap_or_default() + "\n");
    }
    Ok(networks.iter().map(text).collect::<Vec<_>>().join("\n"))
}

fn of(conf: &Conf, network: &NetworkConf) -> Result<Status, Error> {
    let name = &network.name;
    let lease = HostLease::read(&conf.data_dir, name)?;
    let taken = Taken::read(&conf.data_dir, name)?;
    let elsewhere = lease.as_ref().filter(|lease| lease.prefix != network.etcd.prefix);
    let elsewhere = elsewhere.map(|lease| lease::elsewhere(lease, &network.etcd).msg);
    let (etcd, wrong, hosts) = match look(network, lease.as_ref()) {
        Ok((snapshot, wrong)) => {
            let what = format!("revision {}", snapshot.hosts.revision);
            // That another host has the subnet says it all.
            let wrong = wrong.filter(|_| taken.is_none());
            (Etcd { answers: true, what }, wrong, Some(snapshot.hosts))
        }
        Err(error) => (Etcd { answers: false, what: error.msg }, None, Peers::read(&conf.data_dir, name)?),
    };
    let trouble: Vec<String> = elsewhere.into_iter().chain(wrong).collect();
    let mut status = Status {
        network: name.to_string(),
        taken_by: taken.map(|taken| taken.owner),
        agent: agent_lives(&conf.state_dir, name)?,
        addresses: ByFamily::new(),
        etcd,
        trouble: (!trouble.is_empty()).then(|| trouble.join("; ")),
        damage: Vec::new(),
        peers: Vec::new(),
        lease: None,
    };
    let Some(lease) = lease else { return Ok(status) };
    status.addresses = Addresses::of_lease(&lease, &conf.state_dir, name);
    let (wanted, rejected) = Overlay::new(&lease, &hosts.unwrap_or_default())?;
    let looked = Netlink::open(Deadline::after(PATIENCE))
        .and_then(|mut netlink| overlay::differences(&mut netlink, &wanted));
    let Differences { found, unreached } = looked.unwrap_or_else(|error| Differences {
        found: vec![format!("the kernel does not tell: {error}")],
        unreached: Vec::new(),
    });
    status.damage = found;
    let state = |subnet: IpNetwork| {
        let why = unreached.iter().find(|host| host.subnet == subnet);
        why.map_or_else(|| "followed".to_owned(), |host| format!("not reached, {}", host.kind))
    };
    let segments = wanted.sides.iter().flat_map(|side| side.peers.values());
    status.peers = segments
        .map(|peer| Peer {
            subnet: peer.subnet.to_string(),
            address: peer.public.to_string(),
            state: state(peer.subnet),
        })
        .chain(rejected.iter().map(|record| Peer {
            subnet: record.key.clone(),
            address: String::new(),
            state: format!("passed over, {}: {}", record.kind, record.reason),
        }))
        .collect();
    let remaining = (!lease.is_pinned()).then(|| lease.remaining().as_secs());
    status.lease = Some(Lease { key: lease.key, remaining });
    Ok(status)
}

/// What etcd has where the subnet was leased, as the configuration may have another prefix by now, and what is wrong there.
fn look(network: &NetworkConf, lease: Option<&HostLease>) -> Result<(Snapshot, Option<String>), Error> {
    let etcd = lease.map_or_else(|| network.etcd.clone(), |lease| network.etcd.at(&lease.prefix));
    let addresses = lease.map(lease::published).unwrap_or_default();
    let snapshot = in_event_loop(async { Registry::new(&etcd)?.snapshot(&addresses).await })?;
    let wrong = lease::verify(&etcd, lease, &snapshot).err().map(|error| error.msg);
    Ok((snapshot, wrong))
}

fn text(status: &Status) -> String {
    let mut text = format!("network {}\n", status.network);
    let mut line = |name: &str, value: String| {
        text += &format!("  {name:10} {value}\n");
    };
    let keeper = if status.agent { "weftd renews it" } else { "no weftd renews it" };
    match &status.lease {
        None if status.agent => {
            line("subnet", "none: weftd has not got one yet; its log and /readyz say why".into());
        }
        None => line("subnet", "none: no lease was taken yet".into()),
        // How long it was to last counts no more.
        Some(Lease { key, .. }) if status.taken_by.is_some() => line("subnet", key.clone()),
        Some(Lease { key, remaining: None }) => line("subnet", format!("{key}, without an end")),
        Some(Lease { key, remaining: Some(0) }) => {
            line("subnet", format!("{key}, its lease has ended; {keeper}"));
        }
        Some(Lease { key, remaining: Some(left) }) => {
            line("subnet", format!("{key}, leased for {}; {keeper}", duration(*left)));
        }
    }
    if let Some(owner) = &status.taken_by {
        line(
            "",
            format!(
                "TAKEN by {owner}: the containers here are cut off; move them away, then stop weftd, weftctl leave, start weftd"
            ),
        );
    }
    for (family, Addresses { used, free }) in &status.addresses {
        // Of a subnet of IPv6 nobody counts them.
        let free = if *free < 1e9 { free.to_string() } else { format!("{free:.1e}") };
        line("addresses", format!("{used} used, {free} free ({family})"));
    }
    line(
        "etcd",
        if status.etcd.answers { format!("answers, {}", status.etcd.what) } else { status.etcd.what.clone() },
    );
    if let Some(trouble) = &status.trouble {
        line("trouble", printable(trouble));
    }
    if status.lease.is_some() {
        let first = status.damage.first().map_or("as it ought to be".into(), |first| printable(first));
        line("kernel", first);
        for more in status.damage.iter().skip(1) {
            line("", printable(more));
        }
    }
    let rows: Vec<Vec<String>> = status
        .peers
        .iter()
        .map(|peer| [&peer.subnet, &peer.address, &peer.state].map(|value| printable(value)).into())
        .collect();
    if !rows.is_empty() {
        text += "\n";
        text += &table(&["SUBNET", "HOST", "STATE"], &rows);
    }
    text
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
