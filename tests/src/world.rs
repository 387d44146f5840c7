//! Everything that a call may change, to be compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use serde_json::Value;

use crate::host::Host;
use crate::pod::Pod;
use crate::tools;

/// Links, addresses, routes, permanent neighbours, queueing disciplines, forwarding, IPv6 and advertisements of routers of each link, rules of the host and of containers, and
/// the host's files below `/run` and `/var/lib`, each as a line.
///
/// Left out, as nobody's promise: what the kernel makes by itself and in its own time (link-local and loopback addresses, local
/// and multicast routes, learned neighbours, carrier), the inodes and numbers of things, lock files, directories that are kept for whoever
/// comes next, and which address was the last given: addresses are not soon reused, not even after a failed ADD.
#[derive(Clone, PartialEq, Eq)]
pub struct World {
    lines: BTreeSet<String>,
}

impl World {
    /// The world of now.
    pub fn of(host: &Host, pods: &[&Pod]) -> Self {
        let mut lines = BTreeSet::new();
        host.netns().inside(|| namespace("host", &mut lines));
        for pod in pods {
            pod.inside(|| namespace(&pod.id, &mut lines));
        }
        for root in ["/run", "/var/lib"] {
            files(Path::new(root), &mut lines);
        }
        Self { lines }
    }

    /// What differs, one line each: `-` was there before, `+` came.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let lost = self.lines.difference(&later.lines).map(|line| format!("- {line}"));
        let come = later.lines.difference(&self.lines).map(|line| format!("+ {line}"));
        lost.chain(come).collect()
    }

    /// Panics when the world of now is another one, and says in what.
    #[track_caller]
    pub fn assert_unchanged(&self, host: &Host, pods: &[&Pod], after: &str) {
        let differences = self.differences(&Self::of(host, pods));
        assert!(differences.is_empty(), "{after}: the world is not as it was\n{}", differences.join("\n"));
    }

    /// The lines that contain a text.
    pub fn matching(&self, text: &str) -> Vec<&str> {
        self.lines.iter().map(String::as_str).filter(|line| line.contains(text)).collect()
    }
}

fn namespace(label: &str, lines: &mut BTreeSet<String>) {
    for info in list(&tools::json("ip -j -d addr")) {
        links(label, info, lines);
    }
    for (family, option) in [("v4", "-4"), ("v6", "-6")] {
        for route in list(&tools::json(&format!("ip -j {option} route show table all"))) {
            if let Some(text) = route_line(route) {
                lines.insert(format!("{label} route {family} {text}"));
            }
        }
    }
    for neighbour in list(&tools::json("ip -j neigh show nud permanent")) {
        lines.insert(format!("{label} neighbour {neighbour}"));
    }
    for qdisc in list(&tools::json("tc -j qdisc show")) {
        // What a link has by default is nobody's.
        if qdisc["kind"] != "noqueue" {
            lines.insert(format!("{label} qdisc {qdisc}"));
        }
    }
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/core/somaxconn"] {
        let value = fs::read_to_string(Path::new("/proc/sys").join(setting)).expect("read a kernel setting");
        lines.insert(format!("{label} sysctl {setting} {}", value.trim()));
    }
    for (family, keys) in
        [("ipv4", &["forwarding"][..]), ("ipv6", &["forwarding", "disable_ipv6", "accept_ra"])]
    {
        let all = Path::new("/proc/sys/net").join(family).join("conf");
        let links = fs::read_dir(&all).expect("list settings of links");
        for link in links.map(|link| link.expect("a link's settings").path()) {
            for key in keys {
                // A link may go away meanwhile, as after a DEL.
                if let Ok(value) = fs::read_to_string(link.join(key)) {
                    lines.insert(format!("{label} sysctl {} {}", link.join(key).display(), value.trim()));
                }
            }
        }
    }
    ruleset(label, lines);
}

fn ruleset(label: &str, lines: &mut BTreeSet<String>) {
    let printed = tools::command("nft -j list ruleset");
    let has_flags = |table: &str| table.split('}').next().is_some_and(|own| own.contains(r#""flags""#));
    if printed.split(r#"{"table": {"#).skip(1).any(has_flags) {
        // nft 1.0.6 prints a stray text for the flags of a table, and nothing behind them where that is no UTF-8.
        let listed = tools::command("nft -s list ruleset");
        lines.extend(listed.lines().enumerate().map(|(at, line)| format!("{label} nft {at} {line}")));
        return;
    }
    let ruleset: Value = serde_json::from_str(&printed).expect("nft prints JSON");
    for object in list(&ruleset["nftables"]) {
        let mut object = object.clone();
        if object.get("metainfo").is_none() {
            forget(&mut object, &["handle", "packets", "bytes"]);
            for kind in ["set", "map"] {
                // Each element is a line of its own: which ones there are is the state, not their order.
                let set = object.get_mut(kind).and_then(Value::as_object_mut);
                let elements = set.and_then(|set| set.remove("elem")).unwrap_or_default();
                for element in list(&elements) {
                    let set = &object[kind];
                    lines.insert(format!("{label} nft {} {} {element}", set["family"], set["name"]));
                }
            }
            lines.insert(format!("{label} nft {object}"));
        }
    }
}

fn links(label: &str, info: &Value, lines: &mut BTreeSet<String>) {
    let name = text(&info["ifname"]);
    let flags: Vec<&str> = list(&info["flags"])
        .iter()
        .filter_map(Value::as_str)
        .filter(|flag| ["UP", "PROMISC", "ALLMULTI", "NOARP"].contains(flag))
        .collect();
    let kind = text(&info["linkinfo"]["info_kind"]);
    let port = &info["linkinfo"]["info_slave_data"];
    let settings: Vec<String> =
        ["hairpin", "isolated", "learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress"]
            .iter()
            .filter(|key| !port[**key].is_null())
            .map(|key| format!("{key}={}", port[*key]))
            .collect();
    lines.insert(format!(
        "{label} link {name} kind {kind} master {} mtu {} mac {} flags {flags:?} alias {} promiscuity {} port {settings:?}",
        text(&info["master"]),
        info["mtu"],
        text(&info["address"]),
        text(&info["ifalias"]),
        info["promiscuity"],
    ));
    for address in list(&info["addr_info"]) {
        // Lifetimes are of the next full hour, as they pass. The kernel gives link-local addresses when the carrier comes, and loopback ones when lo is set up.
        if address["scope"] != "link" && address["scope"] != "host" {
            let mut address = address.clone();
            let hours = |lifetime: &Value| lifetime.as_u64().unwrap_or_default().div_ceil(3600);
            let lifetimes = [&address["valid_life_time"], &address["preferred_life_time"]].map(hours);
            forget(&mut address, &["tentative", "valid_life_time", "preferred_life_time"]);
            lines.insert(format!("{label} address {name} {address} for {lifetimes:?} h"));
        }
    }
}

fn route_line(route: &Value) -> Option<String> {
    let kind = text(&route["type"]);
    let destination = text(&route["dst"]);
    // These follow from addresses and carrier; only routes that somebody made are promises.
    let own = ["local", "broadcast", "multicast", "anycast"].contains(&kind);
    if own || destination.starts_with("fe80:") || destination.starts_with("ff00:") {
        return None;
    }
    let mut route = route.clone();
    forget(&mut route, &["flags", "expires", "pref"]);
    Some(route.to_string())
}

fn files(directory: &Path, lines: &mut BTreeSet<String>) {
    let mut is_empty = true;
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let entry = entry.expect("read a directory");
        let path = entry.path();
        is_empty = false;
        // Namespaces are mounted below /run/netns; they have no content. The testbed's own files are no state.
        if [Path::new("/run/netns"), Path::new("/run/boot_id"), Path::new(tools::OWN)]
            .contains(&path.as_path())
        {
            continue;
        }
        // A directory may go away meanwhile: deletion in the background is looked at afterwards.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&path, lines),
            // A FIFO holds nothing, and to open it would wait for somebody to write.
            Ok(kind) if kind.is_fifo() || is_no_promise(&path) => {}
            Ok(_) => {
                let content = fs::read(&path).unwrap_or_default();
                lines.insert(format!("file {} {:?}", path.display(), String::from_utf8_lossy(&content)));
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    if is_empty && !stays_empty(directory) {
        lines.insert(format!("directory {}", directory.display()));
    }
}

/// The names below the state directory of Weft, or of others. What else is there is none of a plugin's.
fn below<'p>(path: &'p Path, directory: &str) -> Option<Vec<&'p str>> {
    let mut names = path.iter().filter_map(|name| name.to_str());
    names.find(|name| *name == directory).map(|_| names.collect())
}

/// A lock, or which address was the last given.
fn is_no_promise(path: &Path) -> bool {
    let of_weft = match below(path, "weft").as_deref() {
        Some([".lock"] | [_, "lock" | "overlay.lock" | "agent.lock"]) => true,
        Some([_, _, "meeting.lock"] | [_, _, "ipam", "lock"]) => true,
        Some([name]) => name.starts_with(".lease-") && name.ends_with(".lock"),
        Some([_, _, "ipam", name]) => name.starts_with("last."),
        _ => false,
    };
    let of_others = match below(path, "cni").as_deref() {
        Some(["networks", _, name]) => *name == "lock" || name.starts_with("last_reserved_ip."),
        Some(["flannel", name]) => name.ends_with(".lock"),
        _ => path == Path::new("/run/xtables.lock"),
    };
    of_weft || of_others
}

/// A directory that stays for whoever comes next, also when nothing is in it.
fn stays_empty(directory: &Path) -> bool {
    match below(directory, "weft").as_deref() {
        None | Some([] | [_] | [_, _] | [".hostport" | ".networks", ..]) => true,
        Some([_, _, "attachments" | "allow" | "ipam"]) => true,
        Some([_, _, "ipam", part]) => ["addr", "owner", "pending", "full", "name", "kept"].contains(part),
        // Of names and labels that rules are about.
        Some([_, _, "allow", _]) => true,
        // Which was found in place of a record.
        Some([_, _, name]) => name.starts_with("no-record-"),
        _ => false,
    }
}

fn forget(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !keys.contains(&key.as_str()));
            object.values_mut().for_each(|inner| forget(inner, keys));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| forget(inner, keys)),
        _ => {}
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
