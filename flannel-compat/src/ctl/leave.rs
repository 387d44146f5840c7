//! `weftctl leave`: this host is no part of the network any more.

use cni_protocol::logging::printable;
use cni_protocol::{Code, Deadline, Error, NetworkName};
use weft::holdings::network::forget;
use weft::locks::network_lock;
use weft::masquerade;
use weft::overlay::{self, Overlay};
use weft_ipam::lease::{Release, release};
use weft_ipam::registry::{Registry, in_event_loop};
use weft_ipam::store::{Store, list};
use weft_net::Netlink;
use weft_net::nft::Nft;
use weft_state::Lock;
use weft_state::lease::{HostLease, Peers, lease_files};

use crate::agent::conf::{Conf, NetworkConf};
use crate::agent::{lock, subnet_env};
use crate::tenants::ports_of;

/// How long the kernel may take, and a container that is on its way.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) fn leave(conf: &Conf, network: &NetworkConf, force: bool) -> Result<String, Error> {
    let name = &network.name;
    let _locks = keep_out(conf, name)?;
    // Other interface plugins have none of these locks: what reserves an address for them looks under this one whether the lease is still there.
    let _store = Store::open(&conf.state_dir, name, Deadline::after(PATIENCE))?;
    let held = list(&conf.state_dir, name)?;
    if !held.is_empty() && !force {
        let containers: Vec<String> =
            held.iter().map(|held| format!("{} ({})", printable(&held.container_id), held.address)).collect();
        let msg = format!(
            "leave network {name}: containers have addresses of it: {}: remove them, or --force to cut them off",
            containers.join(", ")
        );
        return Err(Error::new(Code::Conflict, msg));
    }
    let Some(lease) = lease_on_file(conf, name)? else {
        return Ok(format!("network {name}: this host has no lease in it\n"));
    };
    let kernel = |error: weft_net::NetError| {
        let msg = format!(
            "leave network {name}: look at and remove device, routes and rules: {error}: is this root?"
        );
        Error::new(Code::Kernel, msg)
    };
    let ports = Netlink::open(Deadline::after(PATIENCE))
        .and_then(|mut netlink| ports_of(&lease.key, &mut netlink))
        .map_err(kernel)?;
    if !ports.is_empty() && !force {
        let msg = format!(
            "leave network {name}: the bridge that has an address of {} has ports: {}: remove their containers, also those of \
             another IPAM plugin or network name, or --force to cut them off",
            lease.key,
            ports.join(", ")
        );
        return Err(Error::new(Code::Conflict, msg));
    }
    // Where it was leased: the configuration may have another prefix by now.
    let etcd = network.etcd.at(&lease.prefix);
    // First, so that others do not send here any more. A subnet that another host has taken over is left alone.
    let released = in_event_loop(async { release(&mut Registry::new(&etcd)?, &lease).await })?;
    let (overlay, _) = Overlay::new(&lease, &Peers::default())?;
    // etcd may have taken its time.
    let deadline = Deadline::after(PATIENCE);
    Netlink::open(deadline)
        .and_then(|mut netlink| overlay::remove(&mut netlink, &overlay))
        .and_then(|()| masquerade::remove(&mut Nft::open(deadline)?, name).map(drop))
        .map_err(kernel)?;
    forget(&conf.state_dir, name, deadline)?;
    if let Err(error) = subnet_env::remove(&network.subnet_file) {
        log::warn!("{}", error.msg);
    }
    // Last: whoever is killed before finds it again.
    HostLease::forget(&conf.data_dir, name)?;
    let (key, what) = (&lease.key, outcome(released, &lease));
    Ok(format!("network {name}: subnet {key} {what}; device, routes and rules are gone\n"))
}

/// One that cannot be read is no sign that there is nothing to give up.
fn lease_on_file(conf: &Conf, name: &NetworkName) -> Result<Option<HostLease>, Error> {
    let lease = HostLease::read(&conf.data_dir, name)?;
    let [file, _] = lease_files(&conf.data_dir, name);
    if lease.is_none() && file.exists() {
        let msg = format!(
            "leave network {name}: {} is damaged, which has what is to be given up: start weftd, which finds it in etcd, or attach a \
             container, then stop weftd and leave again",
            file.display()
        );
        return Err(Error::new(Code::Decode, msg));
    }
    Ok(lease)
}

/// What became of the subnet in etcd.
fn outcome(released: Release, lease: &HostLease) -> String {
    match released {
        Release::Done => "is given up".to_owned(),
        Release::Replaced { owner: Some(owner) } => {
            format!("is given up; the record in etcd is that of {owner} now, and stays")
        }
        Release::Replaced { owner: None } => format!(
            "is given up, but the record in etcd is not this host's, and stays: if it is no other host's: etcdctl del {}/subnets/{}",
            lease.prefix, lease.key
        ),
        Release::Disputed => "stays with another host that has this one's address".to_owned(),
    }
}

/// Keeps agent and ADDs out until the locks are dropped: they would lose what they lease or attach meanwhile.
fn keep_out(conf: &Conf, name: &NetworkName) -> Result<[Lock; 2], Error> {
    let refused = |why: &str, error: Error| Error {
        msg: format!("leave network {name}: {why}: {}", error.msg),
        ..error
    };
    let agent = lock::take(&conf.state_dir, name).map_err(|error| match error.code {
        Code::TryAgain => refused("weftd looks after it and would lease anew: end weftd first", error),
        _ => refused("keep weftd out", error),
    })?;
    let adds = Lock::exclusive(&network_lock(&conf.state_dir, name), Deadline::after(PATIENCE))
        .map_err(|error| refused("a container comes, try again when it is there", error))?;
    // An ADD that waited finds no agent.
    Ok([agent, adds])
}
