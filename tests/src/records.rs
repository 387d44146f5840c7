//! Records of other hosts, and records that are no host's, of either family and both.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use crate::family::Family;

/// Key and value of a record.
pub type Record = (String, String);

/// What a record says of one family, as it stands in JSON; the subnet as it stands in a key.
#[derive(Clone)]
struct Half {
    subnet: String,
    public: String,
    data: String,
}

/// Of a possible host with this number.
fn good(family: Family, number: usize) -> Half {
    let subnet = match family {
        Family::V4 => format!("10.244.{number}.0-24"),
        Family::V6 => format!("fd00:42:0:{number}::-64"),
    };
    let public = match family {
        Family::V4 => format!("172.30.0.{number}"),
        Family::V6 => format!("fd30::{number}"),
    };
    let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:00:{number}"}}"#);
    Half { subnet, public: format!(r#""{public}""#), data }
}

/// With something that no host has.
fn bad(family: Family, number: usize) -> Vec<Half> {
    let good = good(family, number);
    let public = |text: &str| Half { public: text.to_owned(), ..good.clone() };
    let data = |text: &str| Half { data: text.to_owned(), ..good.clone() };
    let subnet = |text: &str| Half { subnet: text.to_owned(), ..good.clone() };
    let mut all = vec![
        data("null"),
        data("[]"),
        data(r#"{"VNI":1}"#),
        data(r#"{"VNI":1,"VtepMAC":"8e:00:00:00:01"}"#),
        data(r#"{"VNI":1,"VtepMAC":"01:00:00:00:00:01"}"#),
        data(r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#),
        data(r#"{"VNI":2,"VtepMAC":"8e:00:00:00:00:01"}"#),
        data(r#"{"VNI":16777216,"VtepMAC":"8e:00:00:00:00:01"}"#),
    ];
    let (publics, subnets) = match family {
        Family::V4 => {
            (["0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255"], ["10.96.2.0-24", "10.244.0.0-20"])
        }
        Family::V6 => (["::", "ff02::1", "::1", "172.30.0.9"], ["fd00:96:0:2::-64", "fd00:42:0:100::-56"]),
    };
    all.extend(publics.map(|text| public(&format!(r#""{text}""#))));
    all.extend(subnets.map(subnet));
    all
}

fn record(v4: Option<&Half>, v6: Option<&Half>) -> Record {
    let subnet = |half: Option<&Half>| half.map_or("0.0.0.0-0", |half| &half.subnet).to_owned();
    let key = v6.map_or_else(|| subnet(v4), |v6| format!("{}&{}", subnet(v4), v6.subnet));
    let public = v4.map_or(r#""0.0.0.0""#, |half| &half.public);
    let public_v6 = v6.map_or("null", |half| &half.public);
    let data = |half: Option<&Half>| half.map_or("null", |half| &half.data).to_owned();
    let value = format!(
        r#"{{"PublicIP":{public},"PublicIPv6":{public_v6},"BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#,
        data(v4),
        data(v6)
    );
    (key, value)
}

fn halves(families: &[Family], number: usize) -> [Option<Half>; 2] {
    let of = |family: Family| families.contains(&family).then(|| good(family, number));
    [of(Family::V4), of(Family::V6)]
}

/// A network's configuration by which hosts take none of these records' subnets of IPv4, of which there are few.
pub fn apart(config: &str) -> String {
    let mut config: Value = serde_json::from_str(config).expect("a configuration");
    if let Some(network) = config["Network"].as_str() {
        let [first, second, ..] = network.parse::<Ipv4Network>().expect("a network").ip().octets();
        config["SubnetMax"] = json!(Ipv4Addr::from([first, second, 31, 0]));
    }
    config.to_string()
}

/// The record of a host with number 99 in a network of these families with VXLAN, 10.244.0.0/16 and fd00:42::/48.
pub fn of_a_host(families: &[Family]) -> Record {
    let [v4, v6] = halves(families, 99);
    record(v4.as_ref(), v6.as_ref())
}

/// Records of no host: in each one half is wrong, and the other one, if there is one, good.
pub fn of_none(families: &[Family]) -> Vec<Record> {
    let variants = |family: Family| (0..bad(family, 0).len()).map(move |variant| (family, variant));
    let cases = families.iter().copied().flat_map(variants);
    let of_case = |(number, (family, variant)): (usize, (Family, usize))| {
        let [mut v4, mut v6] = halves(families, number);
        let half = if family == Family::V4 { &mut v4 } else { &mut v6 };
        *half = Some(bad(family, number).swap_remove(variant));
        record(v4.as_ref(), v6.as_ref())
    };
    (50..).zip(cases).map(of_case).collect()
}
