//! A container, as far as its network goes.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::netns::NetNs;
use crate::tools;

/// How long a packet may take within one machine: generous for a busy one, short enough to notice silence.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take where an address is to be usable at once: after a second the kernel asks once more for a neighbour that did not
/// answer, and the packet waits for that.
const UNREPEATED: Duration = Duration::from_millis(900);

/// A container's identity and network namespace. The namespace is mounted below `/run/netns`, as runtimes do it, so
/// it can vanish, be replaced by another one, or leave its empty mount point behind.
pub struct Pod {
    /// The container ID that the runtime gives.
    pub id: String,
    path: PathBuf,
    netns: Option<NetNs>,
}

impl Pod {
    /// A container with an ID of its own. A [`crate::Host`] comes first: the mount is the host's.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("pod-{number}"))
    }

    /// A container with a given ID, which no living container of this host has.
    pub fn named(id: &str) -> Self {
        let path = Path::new("/run/netns").join(id);
        let mut pod = Self { id: id.to_owned(), path, netns: None };
        pod.start();
        pod
    }

    fn start(&mut self) {
        fs::create_dir_all("/run/netns").expect("make /run/netns");
        File::create(&self.path).expect("make the mount point of a network namespace");
        let netns = NetNs::create();
        mount(Some(&netns.path()), &self.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("mount a network namespace");
        self.netns = Some(netns);
    }

    /// The path that `CNI_NETNS` gets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace.
    ///
    /// # Panics
    /// After [`Pod::die`] or [`Pod::unmount`].
    pub fn netns(&self) -> &NetNs {
        self.netns.as_ref().expect("the container's namespace is gone")
    }

    /// The namespace ends and its path with it, as after `ip netns delete`.
    pub fn die(&mut self) {
        self.unmount();
        fs::remove_file(&self.path).expect("remove the mount point");
    }

    /// The namespace ends, but its path stays as an empty file, as after a crash of the runtime.
    pub fn unmount(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).expect("unmount a network namespace");
        self.netns = None;
    }

    /// The namespace ends and another one is found at its path, as after a container's restart.
    pub fn replace(&mut self) {
        self.die();
        self.start();
    }

    /// Does something inside the container's namespace.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.netns().inside(work)
    }

    /// Runs a command line inside the container's namespace and returns what it printed.
    pub fn command(&self, line: &str) -> String {
        self.inside(|| tools::command(line))
    }

    /// Runs a command line that prints JSON inside the container's namespace.
    pub fn json(&self, line: &str) -> Value {
        self.inside(|| tools::json(line))
    }

    /// One echo request.
    pub fn ping(&self, target: impl Into<IpAddr>) -> Output {
        self.echo(target.into(), PATIENCE)
    }

    fn echo(&self, target: IpAddr, patience: Duration) -> Output {
        self.inside(|| tools::attempt(&format!("ping -n -c 1 -W {} {target}", patience.as_secs_f32())))
    }

    /// Panics unless `target` answers an echo request.
    pub fn assert_reaches(&self, target: impl Into<IpAddr>) {
        self.assert_answers(target.into(), PATIENCE);
    }

    /// Panics unless `target` answers without being looked for a second time, as what works at ADD's return does.
    pub fn assert_reaches_at_once(&self, target: impl Into<IpAddr>) {
        self.assert_answers(target.into(), UNREPEATED);
    }

    fn assert_answers(&self, target: IpAddr, patience: Duration) {
        let output = self.echo(target, patience);
        assert!(
            output.status.success(),
            "{} does not reach {target}: {}\naddresses:\n{}routes:\n{}{}neighbours:\n{}",
            self.id,
            String::from_utf8_lossy(&output.stdout),
            self.command("ip -o addr"),
            self.command("ip -4 route"),
            self.command("ip -6 route"),
            self.command("ip neigh"),
        );
    }

    /// A listening TCP socket inside the container, at any free port of an address.
    pub fn listen(&self, address: impl Into<IpAddr>) -> TcpListener {
        let address = SocketAddr::new(address.into(), 0);
        self.inside(|| {
            TcpListener::bind(address).unwrap_or_else(|error| panic!("listen at {address}: {error}"))
        })
    }

    /// A TCP connection out of the container. The peer's kernel answers: nobody need accept it yet.
    pub fn connect(&self, target: SocketAddr) -> std::io::Result<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&target, PATIENCE))
    }

    /// The addresses of an interface with their prefix lengths, in the kernel's order, without link-local ones.
    pub fn addresses(&self, ifname: &str) -> Vec<String> {
        addresses_of(&self.json(&format!("ip -j addr show dev {ifname}")))
    }

    /// What `ip -d link` says about an interface, or nothing when there is none of that name.
    pub fn link(&self, ifname: &str) -> Option<Value> {
        self.inside(|| link(ifname))
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The host's mount namespace takes along what is still mounted; a container that ends earlier frees its
        // namespace now, as a runtime would. After an unmount there is nothing to do.
        if self.netns.is_some() {
            let _gone_with_its_host = umount2(&self.path, MntFlags::MNT_DETACH);
            let _gone_with_its_host = fs::remove_file(&self.path);
        }
    }
}

/// What `ip -d link` says about an interface of this thread's namespace.
pub(crate) fn link(ifname: &str) -> Option<Value> {
    let links = tools::json("ip -j -d link");
    links.as_array().expect("a list").iter().find(|link| link["ifname"] == ifname).cloned()
}

/// The addresses in an answer of `ip -j addr`, without link-local ones.
pub(crate) fn addresses_of(answer: &Value) -> Vec<String> {
    let infos = answer.as_array().expect("a list").iter().filter_map(|link| link["addr_info"].as_array());
    infos
        .flatten()
        .filter(|info| info["scope"] != "link")
        .map(|info| format!("{}/{}", info["local"].as_str().expect("an address"), info["prefixlen"]))
        .collect()
}
