//! The hosts on which ADD is failed.

use std::fs;
use std::path::Path;

use serde_json::json;
use weft_tests::frames::advertise_router;
use weft_tests::{Call, Etcd, Host, Network, Outside, Pod, Reply, Weftd, World, command};

use crate::lost;

fn network() -> Network {
    Network::dual().with(&json!({
        "runtimeConfig": { "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp" },
        ], "bandwidth": { "ingressRate": 10_000_000, "egressRate": 10_000_000 } },
        "ipMasq": true,
        "hairpinMode": true,
        "sysctl": { "net.core.somaxconn": "500" },
        "txQLen": 77,
        "ipam": { "routes": [{ "dst": "192.0.2.0/24" }] },
    }))
}

/// A host, a container to be attached, and the world before.
pub(crate) struct Stage {
    host: Host,
    pod: Pod,
    /// A container that is attached already, whose network must not suffer.
    neighbour: Option<Pod>,
    network: Network,
    before: World,
    /// A way to other hosts, and where they meet.
    _others: Option<(Outside, Etcd)>,
}

impl Stage {
    /// Nothing was ever attached: bridge, table and directories are to be made.
    pub(crate) fn fresh() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network: network(), before, _others: None }
    }

    /// All that containers share is there, and in use.
    pub(crate) fn in_use() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        // The port is the other container's.
        network().with(&json!({ "runtimeConfig": { "portMappings": null } })).add(&neighbour);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network: network(), before, _others: None }
    }

    /// The two containers may talk with each other, by a rule of the network and by one of the new one alone.
    pub(crate) fn private() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        let app = json!({ "label": "part=app" });
        let labels = json!([{ "key": "part", "value": "app" }]);
        let network = Network::dual()
            .with(&json!({ "icc": false, "allow": [{ "from": app, "to": app, "port": 80 }] }))
            .with(&json!({ "args": { "cni": { "labels": labels } } }));
        network.add(&neighbour);
        let network = network
            .with(&json!({ "args": { "weft": { "allow": [{ "to": { "container": neighbour.id } }] } } }));
        // What is made when it is first asked for stays.
        network.add(&pod);
        network.del(&pod);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network, before, _others: None }
    }

    /// Another plugin has made the interface.
    pub(crate) fn chained() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let ipam = json!({ "type": "host-local", "subnet": "10.97.0.0/24" });
        let bridge = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipam": ipam });
        let previous = Call::any("bridge", "ADD", bridge.to_string()).pod(&pod).run().result();
        let network = Network::new("net", &[])
            .with(&json!({ "bridge": null, "chained": true, "prevResult": previous }))
            .with(&json!({ "runtimeConfig": network().conf["runtimeConfig"] }));
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: None }
    }

    /// The bridge is somebody else's, with addresses of every kind in the way of the gateways; the container's own are asked for and
    /// looked for on the link, and announced.
    pub(crate) fn forced() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        command("ip link add weft0 up address 02:00:00:00:00:77 type bridge");
        for address in [
            "10.88.0.254/24 brd 10.88.0.127 label weft0:old valid_lft 3600 preferred_lft 1800",
            // The gateway itself goes with the one above.
            "10.88.0.1/24 brd + label weft0:gw",
            "10.88.0.253/24",
            "10.88.0.252 peer 10.88.0.77/32",
            "10.88.7.1/16 scope site noprefixroute metric 77",
            "fd00:88::fe/64 nodad noprefixroute valid_lft 3600 preferred_lft 1800",
            "fd00:88::fd/64 nodad home",
        ] {
            command(&format!("ip addr add {address} dev weft0"));
        }
        // They go with the addresses that they prefer as source.
        for route in [
            "198.51.100.0/24 dev weft0 src 10.88.7.1 metric 7 mtu 1300",
            "198.51.101.0/24 via 10.88.7.9 dev weft0 onlink src 10.88.0.253 table 77",
            "2001:db8:77::/64 dev weft0 src fd00:88::fe metric 77",
        ] {
            command(&format!("ip route add {route}"));
        }
        // Detection begins at once: every ADD that comes so far waits for it.
        let setting = "/proc/sys/net/ipv6/conf/default/router_solicitation_delay";
        pod.inside(|| fs::write(setting, "0")).unwrap();
        let network = Network::dual().with(&json!({
            "forceAddress": true, "promiscMode": true, "enabledad": true,
            // What this test is not about.
            "guard": false, "isolation": "none",
            "runtimeConfig": { "ips": ["10.88.0.9/24", "fd00:88::9/64"] },
        }));
        // Not the first of the boot, or each failure would need a stage of its own.
        let boot = host.sysctl("kernel/random/boot_id");
        fs::create_dir_all(format!("/run/weft/{}/{boot}/attachments", network.name())).unwrap();
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: None }
    }

    /// The bridge is somebody else's and has no IPv6, and another link is routed from although the host does not route:
    /// it has its own way from a router.
    pub(crate) fn without_ipv6() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        command("ip link add weft0 up address 02:00:00:00:00:77 type bridge");
        command("ip link add routed0 up type bridge");
        host.set_sysctl("net/ipv6/conf/weft0/disable_ipv6", "1");
        for family in ["ipv4", "ipv6"] {
            host.set_sysctl(&format!("net/{family}/conf/routed0/forwarding"), "1");
        }
        command("ip link add routed1 type veth peer name router1");
        host.set_sysctl("net/ipv6/conf/routed1/accept_dad", "0");
        for link in ["routed1", "router1"] {
            command(&format!("ip link set {link} up"));
        }
        advertise_router(host.netns(), "router1", || {
            !command("ip -6 route show default proto ra").is_empty()
        });
        let network = Network::dual().with(&json!({ "guard": false, "isolation": "none" }));
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: None }
    }

    /// What another container has masqueraded is to end.
    pub(crate) fn unmasqueraded() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        let network = Network::dual().with(&json!({ "guard": false, "isolation": "none" }));
        let exempt = json!({ "ipMasq": true, "noMasquerade": ["203.0.113.0/24", "2001:db8:77::/48"] });
        network.clone().with(&exempt).add(&neighbour);
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network, before, _others: None }
    }

    /// The network had another subnet, of which no container is left.
    pub(crate) fn renumbered() -> Self {
        let (host, pod, neighbour) = (Host::new(), Pod::new(), Pod::new());
        let keys = json!({ "guard": false, "isolation": "none", "ipMasq": true, "isDefaultGateway": true });
        let former = Network::new("net4", &["10.97.0.0/24"]).with(&keys);
        former.add(&neighbour);
        former.del(&neighbour);
        let network = Network::v4().with(&keys).with(&json!({ "forceAddress": true }));
        let before = World::of(&host, &[&pod, &neighbour]);
        Self { host, pod, neighbour: Some(neighbour), network, before, _others: None }
    }

    /// This host has a lease, but knows no way to others yet, and its bridge is down.
    pub(crate) fn spanning() -> Self {
        let (host, pod) = (Host::new(), Pod::new());
        let others = Etcd::beside(&host);
        let network = Weftd::network(&others.1);
        network.add(&pod);
        network.del(&pod);
        command("ip link delete weft.1");
        command("ip link set weft0 down");
        command("ip addr add fd00:77::1/64 dev weft0 nodad");
        let before = World::of(&host, &[&pod]);
        Self { host, pod, neighbour: None, network, before, _others: Some(others) }
    }

    fn pods(&self) -> Vec<&Pod> {
        std::iter::once(&self.pod).chain(&self.neighbour).collect()
    }

    /// Whether the network's first ADD of the boot is to come, which makes more system calls than the next one.
    pub(crate) fn is_first(&self) -> bool {
        !Path::new("/run/weft").join(self.network.name()).exists()
    }

    pub(crate) fn add(&self) -> Call {
        self.network.add_call(&self.pod)
    }

    /// What is wrong after a call in which something failed.
    pub(crate) fn problems(&self, reply: &Reply, line: &str) -> Vec<String> {
        if reply.succeeded() {
            // What failed was not needed, or was done in another way: then the attachment is whole.
            let check = self.network.check(&self.pod, &reply.result());
            let problem = || format!("ADD succeeded, but CHECK does not: {:?}", check.error());
            return if check.succeeded() { Vec::new() } else { vec![problem()] };
        }
        // Standard output itself may be what failed.
        if !line.starts_with("write(1,") {
            reply.any_error();
        }
        let lost = lost(reply);
        if lost {
            self.network.del(&self.pod);
        }
        let mut differences = self.before.differences(&World::of(&self.host, &self.pods()));
        // An empty record is the attachment's lock file and says nothing.
        differences.retain(|line| !(line.contains("/attachments/") && line.ends_with(" \"\"")));
        if lost {
            differences.retain(|line| line.contains("kind veth") || line.contains("file "));
        }
        differences
    }
}
