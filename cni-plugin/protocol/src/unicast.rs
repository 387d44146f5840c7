//! Which networks can be containers'.

use ipnetwork::IpNetwork;

/// Networks no container can have its address in, with their names. 240.0.0.0/4 is not among them:
/// Linux routes it, and clusters that ran out of private addresses use it.
const UNUSABLE: [(&str, &str); 8] = [
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0:0/96", "IPv4 in IPv6 notation"),
    ("fe80::/10", "link-local, each interface's own"),
    ("ff00::/8", "multicast"),
];

/// Why containers cannot have their addresses in `network`: the first unusable network that it overlaps. `None` when
/// they can.
#[must_use]
pub fn not_unicast(network: IpNetwork) -> Option<String> {
    let overlaps = |other: IpNetwork| other.contains(network.network()) || network.contains(other.network());
    let (text, name) = UNUSABLE.into_iter().find(|(text, _)| text.parse().is_ok_and(overlaps))?;
    Some(format!("overlaps {text} ({name})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_touch_what_is_no_unicast() {
        for (network, part) in [
            ("127.5.0.0/16", "127.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/8"),
            ("224.0.0.0/3", "224.0.0.0/4"),
            ("255.255.255.254/31", "255.255.255.255/32"),
            ("::/0", "::/127"),
            ("fe80::/16", "fe80::/10"),
            ("fe00::/8", "fe80::/10"),
            ("ff02::/64", "ff00::/8"),
        ] {
            let found = not_unicast(network.parse().unwrap());
            assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{network}: {found:?}");
        }
        for network in ["10.0.0.0/8", "169.254.0.0/16", "240.0.0.0/5", "::2/127", "fd00::/8", "fec0::/10"] {
            assert_eq!(not_unicast(network.parse().unwrap()), None, "{network}");
        }
    }
}
