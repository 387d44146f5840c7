//! How the guard comes back where few files may be open at once.

use weft_tests::{Host, Network, Pod, World, command};

/// More than the limits below let a process have open.
const CONTAINERS: usize = 40;

/// Of a container that is attached by a process with a limit, soft and hard.
fn with_limit(limit: &str) -> [String; 2] {
    ["prlimit".to_owned(), format!("--nofile={limit}")]
}

#[test]
fn after_a_flush_all_come_back_or_the_add_fails() {
    let host = Host::new();
    let network = Network::v4();
    let pods: Vec<Pod> = (0..CONTAINERS).map(|_| Pod::new()).collect();
    pods.iter().for_each(|pod| drop(network.add(pod)));
    let before = World::of(&host, &[]);
    command("nft flush ruleset");

    let pod = Pod::new();
    let flushed = World::of(&host, &[]);
    let error = network.add_call(&pod).through(with_limit("32:32")).run().error_code(5);
    error.assert_names(&["ensure the static rules", "LimitNOFILE"]);
    flushed.assert_unchanged(&host, &[], "an ADD that could not tell what others hold");

    network.add_call(&pod).through(with_limit("32:4096")).run().result();
    let lost: Vec<String> =
        before.differences(&World::of(&host, &[])).into_iter().filter(|line| line.starts_with('-')).collect();
    assert!(lost.is_empty(), "{lost:#?}");
}

/// What nobody can read keeps out nobody.
#[test]
fn a_directory_in_place_of_a_record() {
    let _host = Host::new();
    let network = Network::v4();
    let (first, second, third) = (Pod::new(), Pod::new(), Pod::new());
    for pod in [&first, &second] {
        network.add(pod);
    }
    let link = command("ip -o link show type veth")
        .lines()
        .find_map(|line| line.contains(&first.id).then(|| line.split([' ', '@']).nth(1).unwrap().to_owned()));
    let hash = link.unwrap().strip_prefix("weft").unwrap().to_owned();
    let records = command("find /run/weft/net4 -type d -name attachments");
    let record = std::path::Path::new(records.trim()).join(hash);
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    command("nft flush ruleset");
    network.add(&third);
    let ruleset = command("nft list table bridge weft");
    for (pod, is_there) in [(&first, false), (&second, true), (&third, true)] {
        assert_eq!(ruleset.contains(&pod.id), is_there, "{ruleset}");
    }
}
