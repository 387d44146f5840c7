//! A real etcd.

mod connection;
mod member;
mod tls;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::host::{Host, Outside};
use crate::netns::NetNs;
use crate::tools;

pub use connection::Connection;
pub use member::Member;
pub(crate) use member::Place;
pub use tls::{Identity, Tls};

/// What it needs: the program and the Debian package that has it.
const NEEDED: [(&str, &str); 3] =
    [("etcd", "etcd-server"), ("etcdctl", "etcd-client"), ("setpriv", "util-linux")];

/// How clients show that they may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody may, without TLS.
    Open,
    /// With a client's certificate, see [`Etcd::tls`].
    Tls,
    /// With a name and a password: [`Etcd::USER`], [`Etcd::PASSWORD`].
    Password,
}

/// An etcd of one or several members, on memory. It ends with this value.
///
/// Whatever happens to it (killed, frozen, back, emptied), its endpoints stay the same.
pub struct Etcd {
    members: Vec<Member>,
    access: Access,
    tls: Option<Tls>,
    /// Where `etcdctl` runs: where the value was made.
    netns: NetNs,
}

impl Etcd {
    /// The user of [`Access::Password`], who may do everything.
    pub const USER: &'static str = "root";
    /// That user's password.
    pub const PASSWORD: &'static str = "correct horse";

    /// One member that everybody may use, on the loopback interface of this thread's host.
    pub fn new() -> Self {
        Self::local(1, Access::Open)
    }

    /// What one host of a network that spans hosts needs beside it: a way to others, and one member on its loopback
    /// interface with the network's configuration.
    pub fn beside(host: &Host) -> (Outside, Self) {
        let outside = host.outside();
        tools::command(&format!("ip route add default via {}", Outside::PEER[0]));
        let etcd = Self::new();
        let config = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        etcd.put("/coreos.com/network/config", config);
        (outside, etcd)
    }

    /// Several members on the loopback interface of this thread's host: 127.0.0.1, 127.0.0.2 and so on.
    pub fn local(members: u8, access: Access) -> Self {
        let place = |number| {
            let addresses = vec![Ipv4Addr::new(127, 0, 0, number).into()];
            Place { netns: NetNs::current(), addresses, cable: None }
        };
        Self::start((1..=members).map(place).collect(), access)
    }

    /// One member in each place; returns when all of them serve.
    pub(crate) fn start(places: Vec<Place>, access: Access) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        tools::require(&NEEDED);
        let directory = format!("{}/etcd-{}", tools::OWN, COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(&directory);
        let tls = (access == Access::Tls).then(|| {
            let addresses: Vec<IpAddr> = places.iter().flat_map(|place| place.addresses.clone()).collect();
            Tls::make(&directory.join("tls"), &addresses)
        });
        let places = places.into_iter().enumerate();
        let mut members: Vec<Member> = places
            .map(|(number, place)| Member::new(number, place, directory.join(number.to_string())))
            .collect();
        let cluster: Vec<String> =
            members.iter().map(|member| format!("{}={}", member.name, member.peer_url())).collect();
        for member in &mut members {
            member.configure(&cluster.join(","), tls.as_ref());
        }
        let etcd = Self { members, access, tls, netns: NetNs::current() };
        etcd.start_all();
        etcd.protect();
        etcd
    }

    /// The members, each to be killed, frozen and started by itself.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The URLs that clients are configured with: every member at its every address.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.members.iter().flat_map(Member::clients).map(|address| format!("{scheme}://{address}")).collect()
    }

    /// The certificates.
    ///
    /// # Panics
    /// Without [`Access::Tls`].
    pub fn tls(&self) -> &Tls {
        self.tls.as_ref().expect("this etcd has no TLS")
    }

    /// How flanneld is told to come in.
    pub(crate) fn flanneld_options(&self) -> Vec<String> {
        match self.access {
            Access::Open => Vec::new(),
            Access::Tls => {
                let client = self.tls().client();
                let files = [
                    ("--etcd-cafile", self.tls().ca()),
                    ("--etcd-certfile", client.certificate),
                    ("--etcd-keyfile", client.key),
                ];
                files.map(|(option, file)| format!("{option}={}", file.display())).into()
            }
            Access::Password => {
                vec![format!("--etcd-username={}", Self::USER), format!("--etcd-password={}", Self::PASSWORD)]
            }
        }
    }

    /// SIGKILL to all members.
    pub fn kill(&self) {
        self.members.iter().for_each(Member::kill);
    }

    /// Asks all members to end and waits until they have.
    pub fn stop(&self) {
        self.members.iter().for_each(Member::stop);
    }

    /// Holds all members.
    pub fn freeze(&self) {
        self.members.iter().for_each(Member::freeze);
    }

    /// Lets all members go on; returns when they serve.
    pub fn thaw(&self) {
        self.members.iter().for_each(Member::thaw);
        self.members.iter().for_each(Member::ready);
    }

    /// All members end and start on the data that they had.
    pub fn restart(&self) {
        self.stop();
        self.start_all();
    }

    /// All members end and start with no data: keys, leases and history are lost.
    pub fn restart_empty(&self) {
        self.stop();
        self.members.iter().for_each(Member::lose_data);
        self.start_all();
        self.protect();
    }

    /// All members start anew and miss a leader only after three to six seconds: a question at that time surely meets the change
    /// to the next one.
    #[must_use]
    pub fn slow_to_elect(self) -> Self {
        self.set(["--election-timeout", "3000"])
    }

    /// All members start anew and have room for so many bytes. Once these are used up etcd takes nothing more, and is not ready
    /// again when it is started.
    #[must_use]
    pub fn with_room_for(self, bytes: u32) -> Self {
        self.set(["--quota-backend-bytes", &bytes.to_string()])
    }

    fn set(mut self, option: [&str; 2]) -> Self {
        self.stop();
        self.members.iter_mut().for_each(|member| member.set(option));
        self.start_all();
        self
    }

    fn start_all(&self) {
        self.members.iter().for_each(Member::start);
        self.members.iter().for_each(Member::ready);
    }

    /// Asks for passwords, once there are users.
    fn protect(&self) {
        if self.access == Access::Password {
            let user = format!("{}:{}", Self::USER, Self::PASSWORD);
            for words in [
                ["user", "add", &user].as_slice(),
                &["user", "grant-role", "root", "root"],
                &["auth", "enable"],
            ] {
                checked(words, &self.execute(words, b"", false));
            }
        }
    }

    /// Gives a user that is there another password.
    #[track_caller]
    pub fn set_password(&self, user: &str, password: &str) {
        self.ctl_with(&["user", "passwd", user, "--interactive=false"], format!("{password}\n").as_bytes());
    }

    /// Sets a key to a value, whatever its bytes are.
    #[track_caller]
    pub fn put(&self, key: &str, value: impl AsRef<[u8]>) {
        self.put_with(&["put", key], value.as_ref());
    }

    /// Sets a key to a value that goes with a lease.
    #[track_caller]
    pub fn put_leased(&self, key: &str, value: impl AsRef<[u8]>, lease: &str) {
        self.put_with(&["put", "--lease", lease, key], value.as_ref());
    }

    /// etcdctl takes the value from standard input, but not an empty one.
    #[track_caller]
    fn put_with(&self, words: &[&str], value: &[u8]) {
        let empty: &[&str] = if value.is_empty() { &[""] } else { &[] };
        self.ctl_with(&[words, empty].concat(), value);
    }

    /// Sets many keys in one transaction, which is one revision of the store. Values are text.
    pub fn put_all<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
        // No condition, the puts, and nothing otherwise; each part ends with an empty line.
        let puts: String = pairs.into_iter().map(|(key, value)| format!("put {key:?} {value:?}\n")).collect();
        self.ctl_with(&["txn"], format!("\n{puts}\n\n").as_bytes());
    }

    /// The value of a key, if there is that key.
    pub fn get(&self, key: &str) -> Option<String> {
        let answer = self.ctl(&["get", key]);
        let value = answer.strip_prefix(key)?.strip_prefix('\n')?;
        Some(value.strip_suffix('\n').unwrap_or(value).to_owned())
    }

    /// Removes a key, which must exist.
    #[track_caller]
    pub fn del(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]).trim(), "1", "there is no key {key}");
    }

    /// The keys that begin with a prefix, in order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let answer = self.ctl(&["get", "--prefix", "--keys-only", prefix]);
        answer.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// A new lease, in seconds: its ID, as etcdctl writes it.
    pub fn grant(&self, ttl: u32) -> String {
        let answer = self.ctl(&["lease", "grant", &ttl.to_string()]);
        answer.split_whitespace().nth(1).unwrap_or_else(|| panic!("no lease in: {answer}")).to_owned()
    }

    /// Ends a lease; the keys that go with it are gone.
    pub fn revoke(&self, lease: &str) {
        self.ctl(&["lease", "revoke", lease]);
    }

    /// All leases.
    pub fn leases(&self) -> Vec<Lease> {
        let answer = self.ctl(&["lease", "list"]);
        // The first line says how many there are. One that ends meanwhile has no TTL any more.
        answer.lines().skip(1).filter_map(|id| self.lease(id.trim())).collect()
    }

    fn lease(&self, id: &str) -> Option<Lease> {
        // lease 694d granted with TTL(100s), remaining(99s), attached keys([/a /b])
        let answer = self.ctl(&["lease", "timetolive", "--keys", id]);
        let part = |from: &str, to: &str| {
            let (_, rest) = answer.split_once(from)?;
            rest.split_once(to).map(|(part, _)| part.to_owned())
        };
        let seconds = |from: &str| part(from, "s)")?.parse().ok();
        let mut keys: Vec<String> = part("keys([", "])")?.split_whitespace().map(str::to_owned).collect();
        // etcd names them in any order.
        keys.sort();
        Some(Lease { id: id.to_owned(), granted: seconds("TTL(")?, remaining: seconds("remaining(")?, keys })
    }

    /// The revision of the store.
    pub fn revision(&self) -> u64 {
        // {"header":{"cluster_id":1,"member_id":2,"revision":3,"raft_term":4}}
        let answer: Value =
            serde_json::from_str(&self.ctl(&["get", "/", "--write-out", "json"])).expect("JSON");
        answer["header"]["revision"].as_u64().unwrap_or_else(|| panic!("no revision: {answer}"))
    }

    /// Forgets all history before now, and gives back the space.
    pub fn compact(&self) {
        self.ctl(&["compaction", "--physical", &self.revision().to_string()]);
        self.ctl(&["defrag"]);
    }

    /// Which member leads, while exactly one does.
    pub fn leader(&self) -> Option<usize> {
        let mut leaders = (0..self.members.len()).filter(|number| self.members[*number].leads());
        leaders.next().filter(|_| leaders.next().is_none())
    }

    /// Runs etcdctl with the rights of [`Etcd::USER`] and returns what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    #[track_caller]
    pub fn ctl(&self, words: &[&str]) -> String {
        self.ctl_with(words, b"")
    }

    #[track_caller]
    fn ctl_with(&self, words: &[&str], stdin: &[u8]) -> String {
        checked(words, &self.execute(words, stdin, true))
    }

    /// Runs etcdctl with the rights of [`Etcd::USER`], however it ends.
    pub fn attempt(&self, words: &[&str]) -> Output {
        self.execute(words, b"", true)
    }

    fn execute(&self, words: &[&str], stdin: &[u8], login: bool) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints().join(",")]);
        command.args(["--command-timeout", "30s"]);
        if let Some(tls) = &self.tls {
            // It looks at the store, also while the server shows an expired certificate to those under test.
            let client = tls.client();
            command.arg("--insecure-skip-tls-verify").arg("--cacert").arg(tls.ca());
            command.arg("--cert").arg(client.certificate).arg("--key").arg(client.key);
        }
        if login && self.access == Access::Password {
            command.args(["--user", Self::USER, "--password", Self::PASSWORD]);
        }
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.netns.inside(|| command.spawn().expect("run etcdctl"));
        child.stdin.take().expect("a pipe").write_all(stdin).expect("write to etcdctl");
        child.wait_with_output().expect("wait for etcdctl")
    }
}

#[track_caller]
fn checked(words: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "`etcdctl {}` failed, {}: {}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Default for Etcd {
    fn default() -> Self {
        Self::new()
    }
}

/// A lease of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// As etcdctl writes it: hexadecimal.
    pub id: String,
    /// Seconds that it was granted for.
    pub granted: u64,
    /// Seconds that it has left.
    pub remaining: u64,
    /// The keys that end with it, sorted.
    pub keys: Vec<String>,
}
