//! Filters that send packets through another link: `tc filter … u32 … action mirred egress redirect`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::header;
use crate::Family;
use crate::error::NlResult;
use crate::socket::Netlink;

/// `ETH_P_ALL`, `ETH_P_IP` and `ETH_P_IPV6` of linux/if_ether.h.
const PROTOCOLS: [u16; 3] = [0x0003, 0x0800, 0x86dd];

/// Which packets of a link a filter sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Those that come in by the link.
    Ingress,
    /// Those that leave by it.
    Egress,
}

/// One filter. Those with smaller numbers come first, and the first that fits counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// One number per family, and others at the other hook: the kernel lists u32 filters of one number at both.
    pub priority: u16,
    /// Packets to this prefix for those that come in, from it for those that leave; `None`: all.
    pub remote: Option<IpNetwork>,
    /// The index of the link that they are sent through; `None`: they pass.
    pub through: Option<u32>,
}

/// A filter as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    info: u32,
    keys: Vec<TcU32Key>,
    through: Option<u32>,
}

impl Netlink {
    /// `tc filter add dev INDEX ingress|egress protocol … prio … u32 match … [action mirred egress redirect dev …]`.
    pub fn add_filter(&mut self, index: u32, hook: Hook, filter: &Filter) -> NlResult<()> {
        let rule = Rule::of(hook, filter);
        let mut header = header(index, hook.handle(), TcHandle::default());
        header.info = rule.info;
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        selector.nkeys = u8::try_from(rule.keys.len()).unwrap_or(u8::MAX);
        selector.keys = rule.keys;
        let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
        options.push(match rule.through {
            Some(through) => TcOption::U32(TcFilterU32Option::Action(vec![redirect(through)])),
            None => TcOption::U32(TcFilterU32Option::ClassId(TcHandle { major: 1, minor: 1 })),
        });
        let attributes = vec![TcAttribute::Kind("u32".to_owned()), TcAttribute::Options(options)];
        let message = TcMessage::from_parts(header, attributes);
        self.request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// `tc filter show dev INDEX ingress|egress`: whether these filters are there and no others.
    pub fn has_filters(&mut self, index: u32, hook: Hook, filters: &[Filter]) -> NlResult<bool> {
        let query = TcMessage::from_parts(header(index, hook.handle(), TcHandle::default()), Vec::new());
        let answers = match self.socket.dump(&RouteNetlinkMessage::GetTrafficFilter(query)) {
            // There is nowhere that filters could be.
            Err(error) if error.not_found() => Vec::new(),
            answers => answers?,
        };
        let mut found: Vec<Rule> = answers.into_iter().filter_map(as_rule).collect();
        let mut wanted: Vec<Rule> = filters.iter().map(|filter| Rule::of(hook, filter)).collect();
        found.sort_by_key(|rule| rule.info);
        wanted.sort_by_key(|rule| rule.info);
        Ok(found == wanted)
    }
}

impl Hook {
    fn handle(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: u16::MAX, minor }
    }
}

impl Rule {
    fn of(hook: Hook, filter: &Filter) -> Self {
        let [all, v4, v6] = PROTOCOLS;
        let protocol = match filter.remote.map(|prefix| Family::of(prefix.ip())) {
            None => all,
            Some(Family::V4) => v4,
            Some(Family::V6) => v6,
        };
        Self {
            info: u32::from(filter.priority) << 16 | u32::from(protocol.to_be()),
            keys: keys(hook, filter.remote),
            through: filter.through,
        }
    }
}

/// The 32-bit words of the network header that a packet must have.
fn keys(hook: Hook, remote: Option<IpNetwork>) -> Vec<TcU32Key> {
    let Some(prefix) = remote else {
        // Any word will do.
        return vec![TcU32Key::default()];
    };
    // Where source and destination are (RFC 791, RFC 8200).
    let offset = match (Family::of(prefix.ip()), hook) {
        (Family::V4, Hook::Egress) => 12,
        (Family::V4, Hook::Ingress) => 16,
        (Family::V6, Hook::Egress) => 8,
        (Family::V6, Hook::Ingress) => 24,
    };
    let masks = words(prefix.mask());
    let key = |((mask, val), off)| {
        let mut key = TcU32Key::default();
        (key.mask, key.val, key.off) = (mask, val, off);
        key
    };
    let mut keys: Vec<TcU32Key> =
        masks.into_iter().zip(words(prefix.network())).zip((offset..).step_by(4)).map(key).collect();
    // A prefix of length 0 is any word of its family.
    let significant = keys.iter().filter(|key| key.mask != 0).count();
    keys.truncate(significant.max(1));
    keys
}

fn words(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(address) => vec![u32::from(address)],
        IpAddr::V6(address) => address
            .octets()
            .chunks_exact(4)
            .filter_map(|word| Some(u32::from_be_bytes(*word.first_chunk()?)))
            .collect(),
    }
}

fn redirect(through: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = through;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

/// A filter in an answer; what else the kernel tells of (tables of filters) is none.
fn as_rule(answer: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    let mut rule = Rule { info: message.header.info, keys: Vec::new(), through: None };
    let options = message.attributes.into_iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        match option {
            TcOption::U32(TcFilterU32Option::Selector(selector)) => rule.keys = selector.keys,
            TcOption::U32(TcFilterU32Option::Action(actions)) => {
                rule.through = actions.iter().find_map(target);
            }
            TcOption::U32(_) => {}
            // Another kind of filter, which somebody else made.
            _ => return Some(rule),
        }
    }
    (!rule.keys.is_empty()).then_some(rule)
}

fn target(action: &TcAction) -> Option<u32> {
    let options = action.attributes.iter().filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(hook: Hook, prefix: &str) -> Vec<(u32, u32, i32)> {
        let keys = keys(hook, Some(prefix.parse().unwrap()));
        keys.into_iter().map(|key| (key.mask, key.val, key.off)).collect()
    }

    #[test]
    fn the_other_end_is_where_packets_go_or_come_from() {
        assert_eq!(offsets(Hook::Ingress, "10.1.2.0/24"), [(0xffff_ff00, 0x0a01_0200, 16)]);
        assert_eq!(offsets(Hook::Egress, "10.1.2.0/24"), [(0xffff_ff00, 0x0a01_0200, 12)]);
        let v6 = [(u32::MAX, 0xfd00_0088, 24), (0xffff_0000, 0x0001_0000, 28)];
        assert_eq!(offsets(Hook::Ingress, "fd00:88:1::/48"), v6);
        assert_eq!(offsets(Hook::Egress, "::/0"), [(0, 0, 8)]);
        assert_eq!(offsets(Hook::Egress, "2001:db8::1/128").len(), 4);
    }
}
