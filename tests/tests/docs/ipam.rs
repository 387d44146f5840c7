//! The keys in docs/ipam.md are those of `weft-ipam`.

use std::fs;

use serde_json::{Value, json};
use weft_tests::{Host, Network, Pod, peers};

use crate::{reads, root};

/// The tables of keys, by how their first lines begin.
const OF_IPAM: &str = "| key | meaning | default | example |";
const OF_A_RANGE: &str = "| key | meaning | default |\n";
const OF_LEASES: &str = "| key of `ipam` |";
const OF_ETCD: &str = "| key of `etcd` |";

/// A row of a table: its keys, and its other columns.
struct Row {
    keys: Vec<String>,
    columns: Vec<String>,
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows(table: &str) -> Vec<Row> {
    let page = fs::read_to_string(root().join("docs/ipam.md")).expect("docs/ipam.md");
    let (_, rest) = page.split_once(table).unwrap_or_else(|| panic!("docs/ipam.md has no table {table}"));
    let row = |line: &str| {
        let mut columns = line.trim_matches(['|', ' ']).split(" | ").map(str::to_owned);
        Row { keys: quoted(&columns.next().expect("a first column")), columns: columns.collect() }
    };
    let lines = rest.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    lines.take_while(|line| line.starts_with('|')).map(row).collect()
}

fn keys<'t>(tables: impl IntoIterator<Item = &'t str>) -> Vec<String> {
    let mut keys: Vec<String> = tables.into_iter().flat_map(rows).flat_map(|row| row.keys).collect();
    keys.sort();
    keys
}

/// The words of a list in the source of `weft-ipam`.
fn known(file: &str, list: &str) -> Vec<String> {
    let path = root().join("ipam/src").join(file);
    let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let begin = format!("const {list}: ");
    let list = source.split(&begin).nth(1).and_then(|rest| rest.split(" =").nth(1)?.split("];").next());
    let list = list.unwrap_or_else(|| panic!("{} has no {begin}", path.display()));
    let mut words: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    words.sort();
    words
}

#[test]
fn keys_of_ipam_are_documented() {
    let mut of_ipam = [known("conf.rs", "IPAM_KEYS"), known("conf/etcd.rs", "KEYS")].concat();
    of_ipam.sort();
    assert_eq!(keys([OF_IPAM, OF_LEASES]), of_ipam);
    assert_eq!(keys([OF_A_RANGE]), known("conf.rs", "RANGE_KEYS"));
    let routes = rows(OF_IPAM).into_iter().find(|row| row.keys == ["routes"]).expect("a row of routes");
    let mut of_a_route = quoted(&routes.columns[0]);
    of_a_route.sort();
    assert_eq!(of_a_route, known("conf.rs", "ROUTE_KEYS"));
    // With the variables of the environment.
    let variables = rows(OF_ETCD).into_iter().flat_map(|row| quoted(&row.columns[2])).collect();
    let mut of_etcd = [keys([OF_ETCD]), variables].concat();
    of_etcd.sort();
    assert_eq!(of_etcd, known("conf/etcd.rs", "ETCD_KEYS"));
}

/// Each key's example makes a network to which a container is attached; something else in its place is refused by the key's name.
#[test]
fn keys_of_ipam_are_documented_with_values_that_it_takes() {
    let _host = Host::new();
    let network = Network::new("documented", &["10.99.0.0/24"]);
    for row in rows(OF_IPAM) {
        let key = &row.keys[0];
        let with = |value: Value| {
            let mut network = network.clone();
            // The name's time is nothing without the name.
            network.conf["ipam"]["sticky"] = json!("name");
            network.conf["ipam"][key] = value;
            network
        };
        let [example] = quoted(&row.columns[2]).try_into().unwrap_or_else(|_| panic!("{key} has no example"));
        let example = serde_json::from_str(&example).unwrap_or_else(|error| panic!("{example}: {error}"));
        let (pod, attached) = (Pod::new(), with(example));
        attached.add(&pod);
        attached.del(&pod);
        if key != "type" {
            let refused = with(json!({ "no": ["such"] })).add_call(&pod).run();
            refused.error_code(7).assert_names(&[&format!("ipam.{key}")]);
        }
    }
}

/// A key that is not said to be Weft's own is one that `host-local` reads.
#[test]
fn keys_of_host_local_are_its() {
    let host_local = fs::read(peers().join("host-local")).expect("host-local");
    for row in [OF_IPAM, OF_A_RANGE].into_iter().flat_map(rows) {
        let is_own = row.columns[0].contains("not in host-local");
        for key in row.keys {
            assert_eq!(reads(&host_local, &key), !is_own, "host-local and {key}");
        }
    }
}
