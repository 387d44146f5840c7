//! Among many network namespaces. No runtime has a part in it, but the real root: nobody else may have a procfs of its own.

use std::fs;

use weft_tests::{Host, Injection, Network, Pod, Tampered, command};

/// More than ADD looks through for a container's settings.
const MANY: usize = 110;

fn is_off(pod: &Pod) -> bool {
    let setting = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
    pod.inside(|| fs::read_to_string(setting).expect("the kernel has IPv6")).trim() == "1"
}

#[test]
fn settings_are_found_among_those_of_many_namespaces() {
    let _host = Host::new();
    let network = Network::v4();
    let attach = |pod: &Pod| {
        let calls = Injection::survey(Tampered::Weft, network.add_call(pod));
        assert!(is_off(pod));
        network.del(pod);
        calls.contains_key("fsopen")
    };
    // It stays, as the number of one that has gone would be the next one's.
    let first = Pod::new();
    assert!(!attach(&first), "to look among few takes less time than a procfs");
    let lines = (0..MANY).map(|number| format!("netns add n{number}\nnetns set n{number} auto\n"));
    fs::write("/run/netns/.batch", lines.collect::<String>()).expect("write a file");
    command("ip -batch /run/netns/.batch");
    let pod = Pod::new();
    assert!(attach(&pod));
    let result = network.add(&pod);
    network.check(&pod, &result).done();
    assert!(is_off(&pod));
}
