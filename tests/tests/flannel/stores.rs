//! Two stores of addresses, host-local's and `weft-ipam`'s: never does one give what a container has from the other.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};
use weft_tests::{Call, Pod, World, command, dist, ips};

use super::super::{ENV, FILE, Merged as _, call, conf, leased};

const DIRECTORY: &str = "/var/lib/cni/networks/cbr0";

/// A container of flannel's own plugin: its delegate `bridge`, as it was told, has host-local give the address.
fn attached_before(pod: &Pod) -> (Value, IpAddr) {
    let delegate = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.240.34.0/24" }]] }
    });
    let result = Call::any("bridge", "ADD", delegate.to_string()).pod(pod).run().result();
    (delegate, ips(&result)[0])
}

/// flannel's own file has a container's interface by the container alone: a later interface of Weft's, in another network or the
/// same one, comes and goes beside it.
#[test]
fn what_flannel_attached_is_known_until_it_goes() {
    let host = leased(ENV);
    for (network, bridge, subnet) in [("second", "cni1", "10.240.35"), ("cbr0", "cni0", "10.240.34")] {
        let pod = Pod::new();
        let (delegate, address) = attached_before(&pod);
        let known = Path::new("/var/lib/cni/flannel").join(&pod.id);
        fs::create_dir_all("/var/lib/cni/flannel").expect("make a directory");
        fs::write(&known, delegate.to_string()).expect("note what the delegate was told");

        fs::write(FILE, ENV.replace("10.240.34", subnet)).expect("write subnet.env");
        let ipam = json!({ "type": "weft-ipam", "exclude": [address] });
        let later = conf(&json!({ "name": network, "delegate": { "bridge": bridge }, "ipam": ipam }));
        let result = call("ADD", &later, &pod).ifname("eth1").run().result();
        let reserved = || World::of(&host, &[]).matching(&format!("/ipam/addr/{} ", ips(&result)[0])).len();
        assert_eq!(reserved(), 1);
        let with_result = later.clone().merged(&json!({ "prevResult": result }));
        call("CHECK", &with_result, &pod).ifname("eth1").run().done();
        call("DEL", &later, &pod).ifname("eth1").run().done();
        assert!(pod.link("eth1").is_none() && reserved() == 0, "{network}: the later one is gone");
        assert!(pod.link("eth0").is_some() && known.is_file(), "{network}: flannel's is not");

        call("DEL", &conf(&json!({})), &pod).run().done();
        assert!(pod.link("eth0").is_none() && !known.exists(), "{network}");
        assert!(!Path::new(DIRECTORY).join(address.to_string()).exists(), "{network}: host-local holds it");
    }
}

/// A call on a host whose `/opt/cni/bin` has Weft's binaries only.
fn without_host_local(verb: &str, conf: &Value, pod: &Pod) -> Call {
    call(verb, conf, pod).env("CNI_PATH", dist())
}

fn reservation(address: &str) -> String {
    fs::create_dir_all(DIRECTORY).expect("make a directory");
    let file = format!("{DIRECTORY}/{address}");
    fs::write(&file, "deadbeef\r\neth0").expect("reserve an address");
    file
}

#[track_caller]
fn assert_gives(call: Call, address: &str) {
    assert_eq!(ips(&call.run().result())[0].to_string(), address);
}

/// `/opt/cni/bin` was replaced by Weft's, and host-local with it.
#[test]
fn host_local_is_gone_and_its_containers_are_not() {
    let _host = leased(ENV);
    let pods = [(); 4].map(|()| Pod::new());
    let old = [attached_before(&pods[0]), attached_before(&pods[1])].map(|(_, ip)| ip.to_string());
    assert_eq!(old, ["10.240.34.2", "10.240.34.3"]);
    let conf = conf(&json!({}));
    let told = ["host-local", "cbr0", "put host-local back", DIRECTORY];
    without_host_local("ADD", &conf, &pods[2]).run().error_code(103).assert_names(&told);
    without_host_local("STATUS", &conf, &pods[2]).run().error_code(50).assert_names(&told);
    // Of what is not there, or was never noted, nothing is asked.
    without_host_local("DEL", &conf, &pods[2]).run().done();
    call("STATUS", &conf, &pods[2]).run().done();
    assert_gives(call("ADD", &conf, &pods[2]), "10.240.34.4");
    call("DEL", &conf, &pods[2]).run().done();
    for address in old {
        fs::remove_file(Path::new(DIRECTORY).join(address)).expect("forget a reservation");
    }
    assert_gives(without_host_local("ADD", &conf, &pods[3]), "10.240.34.2");
}

/// A package brings host-local to a host on which `weft-ipam` gives the addresses.
#[test]
fn host_local_comes_to_a_host_of_weft_ipam() {
    let _host = leased(ENV);
    let pods = [(); 4].map(|()| Pod::new());
    let conf = conf(&json!({}));
    assert_gives(without_host_local("ADD", &conf, &pods[0]), "10.240.34.2");
    assert_gives(without_host_local("ADD", &conf, &pods[1]), "10.240.34.3");
    // Somebody's by host-local all the same.
    reservation("10.240.34.4");
    call("STATUS", &conf, &pods[2]).run().done();
    assert_gives(call("ADD", &conf, &pods[2]), "10.240.34.5");
    assert_gives(without_host_local("ADD", &conf, &pods[3]), "10.240.34.6");
    for pod in &pods {
        call("DEL", &conf, pod).run().done();
    }
    assert!(!Path::new("/var/lib/cni/flannel").exists(), "all were weft-ipam's");
}

/// host-local knows of no boot and has no GC: what it has of a container that ended with its boot would stay for ever.
#[test]
fn reservations_of_another_boot_keep_nobody_with_host_local() {
    let _host = leased(ENV);
    let pods = [(); 2].map(|()| Pod::new());
    let conf = conf(&json!({}));
    let leaked = reservation("10.240.34.77");
    call("ADD", &conf, &pods[0]).run().result();
    assert!(Path::new("/var/lib/cni/flannel").exists(), "of this boot it counts");
    call("DEL", &conf, &pods[0]).run().done();
    command(&format!("touch -d 2020-01-01 {leaked}"));
    assert_gives(without_host_local("ADD", &conf, &pods[1]), "10.240.34.2");
    call("DEL", &conf, &pods[1]).run().done();
    assert_gives(call("ADD", &conf, &pods[1]), "10.240.34.3");
}
