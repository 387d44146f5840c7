//! The table `filter` of iptables-legacy: `iptables-legacy -S`, `ip6tables-legacy -S`.
//!
//! Sources: linux/netfilter/x_tables.h, linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h,
//! linux/netfilter/xt_conntrack.h. The table is one block of bytes; everything in it is the kernel's own.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::nft::{matched, target};
use super::{Chain, Condition, Pattern, RULES_MAX, Rule, TableOf, Verdict};
use crate::{Family, NlResult};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, for both families.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME_LEN: usize = 32;
/// `struct ipt_getinfo`: the name, `valid_hooks`, five entries, five underflows, `num_entries`, `size`.
const INFO_LEN: usize = NAME_LEN + 4 + 20 + 20 + 4 + 4;
/// Before the entries of `struct ipt_get_entries`: name, size, and what alignment adds.
const ENTRIES_AT: usize = 40;
/// `NF_INET_FORWARD`
const FORWARD: usize = 2;
/// `IFNAMSIZ`
const IFNAME_LEN: usize = 16;
/// `XT_STANDARD_TARGET` is nameless; user chains begin with this one, and the table ends with it.
const ERROR_TARGET: &str = "ERROR";
/// `struct xt_entry_target` and `xt_entry_match`: size, name, revision.
const EXTENSION_HEADER: usize = 32;
const XT_INV_VIA_IN: u8 = 0x01;
const XT_INV_VIA_OUT: u8 = 0x02;

/// The chains of the table with their rules; none where iptables-legacy is not in use. `Err(E2BIG)`: more rules than
/// anybody looks through.
///
/// # Errors
/// What getsockopt(2) says.
pub fn legacy_chains(family: Family) -> NlResult<Vec<(Chain, Vec<Rule>)>> {
    // Asking for a table makes it, so first see whether there is one.
    let (names, domain, level) = match family {
        Family::V4 => ("/proc/self/net/ip_tables_names", AddressFamily::Inet, libc::IPPROTO_IP),
        Family::V6 => ("/proc/self/net/ip6_tables_names", AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    if !fs::read_to_string(names).unwrap_or_default().lines().any(|name| name == "filter") {
        return Ok(Vec::new());
    }
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let info = ask(&socket, level, GET_INFO, named("filter", INFO_LEN))?;
    let (count, size) = (number(&info, INFO_LEN - 8), number(&info, INFO_LEN - 4));
    if count > RULES_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut request = named("filter", ENTRIES_AT + size as usize);
    request[NAME_LEN..NAME_LEN + 4].copy_from_slice(&size.to_ne_bytes());
    let answer = ask(&socket, level, GET_ENTRIES, request)?;
    let hook = |from: usize| number(&info, NAME_LEN + 4 + from + FORWARD * 4) as usize;
    let entries = answer.get(ENTRIES_AT..).unwrap_or_default();
    Ok(chains(family, entries, (hook(0), hook(20))))
}

fn named(table: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..table.len()].copy_from_slice(table.as_bytes());
    bytes
}

fn ask(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, mut bytes: Vec<u8>) -> NlResult<Vec<u8>> {
    let mut len = libc::socklen_t::try_from(bytes.len()).ok().ok_or(Errno::E2BIG)?;
    #[expect(unsafe_code, reason = "nix has no such option")]
    // SAFETY: the kernel writes at most `len` bytes, which the buffer has.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(answer)?;
    Ok(bytes)
}

/// Cuts the block into chains. A chain of a user begins with an entry that has its name; FORWARD lies between two offsets,
/// with its policy as the last rule.
fn chains(family: Family, block: &[u8], (forward, policy): (usize, usize)) -> Vec<(Chain, Vec<Rule>)> {
    let entries: Vec<Entry> = Entry::all(family, block);
    let heads: Vec<(usize, String)> =
        entries.iter().filter_map(|entry| Some((entry.next(), entry.user_chain()?))).collect();
    let name_at = |at: usize| heads.iter().find(|(start, _)| *start == at).map(|(_, name)| name.clone());
    let chain = |name: String, policy| Chain { table: TableOf::Legacy(family), name, policy, uses: 0 };
    let rules = |entries: &[Entry]| entries.iter().map(|entry| entry.rule(&name_at)).collect::<Vec<_>>();
    let of_forward: Vec<Entry> =
        entries.iter().filter(|entry| (forward..policy).contains(&entry.at)).copied().collect();
    let last = entries.iter().find(|entry| entry.at == policy).map(|entry| entry.rule(&name_at).verdict);
    let mut all = vec![(chain("FORWARD".to_owned(), last), rules(&of_forward))];
    for (start, name) in &heads {
        let body = entries.iter().skip_while(|entry| entry.at < *start).take_while(|entry| !entry.is_head());
        let body: Vec<Entry> = body.copied().collect();
        // The last entry returns to the chain that jumped.
        all.push((chain(name.clone(), None), rules(&body)));
    }
    all
}

/// `struct ipt_entry` or `struct ip6t_entry`.
#[derive(Clone, Copy)]
struct Entry<'a> {
    at: usize,
    family: Family,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    fn all(family: Family, block: &'a [u8]) -> Vec<Self> {
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(rest) = block.get(at..).filter(|rest| rest.len() >= head_len(family)) {
            let len = usize::from(short(rest, offsets_at(family) + 2));
            let Some(bytes) = rest.get(..len).filter(|_| len >= head_len(family)) else { break };
            all.push(Self { at, family, bytes });
            at += len;
        }
        all
    }

    fn next(&self) -> usize {
        self.at + self.bytes.len()
    }

    fn target(&self) -> &'a [u8] {
        self.bytes.get(usize::from(short(self.bytes, offsets_at(self.family)))..).unwrap_or_default()
    }

    fn target_name(&self) -> String {
        string(self.target().get(2..EXTENSION_HEADER - 1).unwrap_or_default())
    }

    fn is_head(&self) -> bool {
        self.target_name() == ERROR_TARGET
    }

    /// The chain that begins behind this entry; the table's last entry has the target's own name for one.
    fn user_chain(&self) -> Option<String> {
        let name = string(self.target().get(EXTENSION_HEADER..).unwrap_or_default());
        (self.is_head() && name != ERROR_TARGET).then_some(name)
    }

    fn rule(&self, chain_at: &dyn Fn(usize) -> Option<String>) -> Rule {
        let mut conditions = self.interfaces();
        if self.asks_more() {
            conditions.push(Condition::Other);
        }
        let end = usize::from(short(self.bytes, offsets_at(self.family)));
        let mut matches = self.bytes.get(head_len(self.family)..end).unwrap_or_default();
        while matches.len() >= EXTENSION_HEADER {
            let (name, len) = (string(&matches[2..EXTENSION_HEADER - 1]), usize::from(short(matches, 0)));
            conditions.extend(matched(&name, matches.get(EXTENSION_HEADER..)));
            matches = matches.get(len.max(EXTENSION_HEADER)..).unwrap_or_default();
        }
        Rule { conditions, verdict: self.verdict(chain_at) }
    }

    /// `iniface`, `outiface`, their masks and how they are inverted, behind two addresses with masks.
    fn interfaces(&self) -> Vec<Condition> {
        let (names, invert) = match self.family {
            Family::V4 => (16, self.bytes[83]),
            Family::V6 => (64, self.bytes[132]),
        };
        let pattern = |at: usize| {
            let (name, mask) =
                (self.bytes.get(at..at + IFNAME_LEN)?, self.bytes.get(at + 32..at + 32 + IFNAME_LEN)?);
            let asked = mask.iter().filter(|byte| **byte != 0).count();
            let text = string(name);
            (asked > 0).then_some(Pattern { is_prefix: asked <= text.len(), text })
        };
        let input = pattern(names).map(|name| Condition::Input { name, is: invert & XT_INV_VIA_IN == 0 });
        let output = pattern(names + IFNAME_LEN)
            .map(|name| Condition::Output { name, is: invert & XT_INV_VIA_OUT == 0 });
        input.into_iter().chain(output).collect()
    }

    /// Whether it asks for addresses, a protocol or fragments.
    fn asks_more(&self) -> bool {
        let any = |range: std::ops::Range<usize>| {
            self.bytes.get(range).is_some_and(|part| part.iter().any(|b| *b != 0))
        };
        match self.family {
            // Masks; protocol, and flags of which 1 is about fragments and 2 means goto.
            Family::V4 => any(8..16) || any(80..82) || self.bytes[82] & 1 != 0,
            // Flags: 1 for a protocol, 2 for a traffic class, 4 means goto.
            Family::V6 => any(32..64) || any(128..130) || self.bytes[131] & 2 != 0,
        }
    }

    fn is_goto(&self) -> bool {
        match self.family {
            Family::V4 => self.bytes[82] & 2 != 0,
            Family::V6 => self.bytes[131] & 4 != 0,
        }
    }

    /// The nameless target has a number: where to go on in the block, or a verdict.
    fn verdict(&self, chain_at: &dyn Fn(usize) -> Option<String>) -> Verdict {
        /// `XT_RETURN`, `-NF_DROP - 1`, `-NF_ACCEPT - 1`
        const RETURN: i32 = -5;
        const DROP: i32 = -1;
        const ACCEPT: i32 = -2;
        let name = self.target_name();
        if !name.is_empty() {
            return target(&name);
        }
        match number(self.target(), EXTENSION_HEADER).cast_signed() {
            ACCEPT => Verdict::Accept,
            DROP => Verdict::Drop,
            RETURN => Verdict::Return,
            to => match usize::try_from(to) {
                Ok(to) if to == self.next() => Verdict::Continue,
                Ok(to) => match chain_at(to) {
                    Some(chain) if self.is_goto() => Verdict::Goto(chain),
                    Some(chain) => Verdict::Jump(chain),
                    None => Verdict::Unknown,
                },
                Err(_) => Verdict::Unknown,
            },
        }
    }
}

/// `xt_conntrack_mtinfo2` and `xt_conntrack_mtinfo3`, as far as only the state is asked for.
pub(super) fn conntrack(info: &[u8]) -> Condition {
    const FLAGS_AT: usize = 146;
    const STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_ALIAS`: it was written as `-m state`.
    const ALIAS: u16 = 1 << 13;
    if info.len() < FLAGS_AT + 6 || short(info, FLAGS_AT) & !ALIAS != STATE {
        return Condition::Other;
    }
    let is = short(info, FLAGS_AT + 2) & STATE == 0;
    Condition::State { bits: u32::from(short(info, FLAGS_AT + 4)), is }
}

/// The size of an entry without matches and target.
fn head_len(family: Family) -> usize {
    match family {
        Family::V4 => 112,
        Family::V6 => 168,
    }
}

/// Where `target_offset` and `next_offset` are.
fn offsets_at(family: Family) -> usize {
    match family {
        Family::V4 => 88,
        Family::V6 => 140,
    }
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes).unwrap_or_default()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default()
}

fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the kernel says, it is cut into chains without an end being missed.
        #[test]
        fn any_block_is_read(
            mut block in prop::collection::vec(any::<u8>(), 0..1500),
            lengths in prop::collection::vec(100..300_u16, 0..8),
            forward in 0..600_usize,
            policy in 0..1200_usize,
        ) {
            for family in Family::ALL {
                // Entries that follow each other, so that more than the first one is looked at.
                let mut at = offsets_at(family) + 2;
                for length in &lengths {
                    if let Some(place) = block.get_mut(at..at + 2) {
                        place.copy_from_slice(&length.to_ne_bytes());
                    }
                    at += usize::from(*length);
                }
                let all = chains(family, &block, (forward, policy));
                prop_assert_eq!(&all[0].0.name, "FORWARD");
            }
        }
    }
}
