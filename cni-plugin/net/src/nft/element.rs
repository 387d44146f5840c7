//! Elements of sets and maps: what an attachment adds and takes back.

use std::fmt;
use std::net::IpAddr;

use cni_protocol::MacAddr;
use ipnetwork::IpNetwork;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::answer::Answer;
use super::bytes::{nest, nested, put, text, user_data};
use super::interval::{from_octets, octets};
use super::set::{Set, padded};
use super::uapi::{
    NFT_MSG_GETSETELEM, NFTA_DATA_VALUE, NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
};
use super::{Change, Nft, NlResult, TABLE, message_of, unless_missing};
use crate::attribute::{self, attributes, find};

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_DELSETELEM: u8 = 14;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
/// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl's udata.h.
const ELEMENT_COMMENT: u8 = 0;
/// `NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl's udata.h, less the terminating zero.
const COMMENT_MAX: usize = 127;
/// `IFNAMSIZ` of linux/if.h.
const IFNAMSIZ: usize = 16;

/// The values of a key's or of data's fields, each at a multiple of four bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple(Vec<u8>);

impl Tuple {
    pub fn address(self, address: IpAddr) -> Self {
        self.then(&octets(address))
    }

    pub fn mac(self, mac: MacAddr) -> Self {
        self.then(&mac.octets())
    }

    /// An IP protocol's number.
    pub fn protocol(self, protocol: u8) -> Self {
        self.then(&[protocol])
    }

    pub fn port(self, port: u16) -> Self {
        self.then(&port.to_be_bytes())
    }

    /// An interface's number.
    pub fn ifindex(self, index: u32) -> Self {
        self.then(&index.to_ne_bytes())
    }

    /// The group of an interface.
    pub fn ifgroup(self, group: u32) -> Self {
        self.then(&group.to_ne_bytes())
    }

    pub fn ifname(self, ifname: &str) -> Self {
        let mut name = [0; IFNAMSIZ];
        for (byte, letter) in name[..IFNAMSIZ - 1].iter_mut().zip(ifname.bytes()) {
            *byte = letter;
        }
        self.then(&name)
    }

    /// The address, where it is the only field.
    pub fn as_address(&self) -> Option<IpAddr> {
        from_octets(&self.0)
    }

    /// The interface's name, where it is the only field.
    pub fn as_ifname(&self) -> String {
        attribute::text(&self.0)
    }

    /// The fields' bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn then(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self.0.resize(padded(self.0.len()), 0);
        self
    }
}

/// One element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub set: Set,
    pub key: Tuple,
    /// The last key, in a set of intervals.
    pub end: Option<Tuple>,
    /// What a map gives for the key.
    pub data: Option<Tuple>,
    /// Whose it is, as `nft list ruleset` shows it. See [`Element::set_comment`].
    pub comment: String,
    /// For errors: the values as text.
    pub text: String,
}

/// The first and the last value of a field.
type Ends<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

impl Element {
    /// An element of a set of single keys.
    pub fn new(set: &Set, key: Tuple, text: String) -> Self {
        Self { set: *set, key, end: None, data: None, comment: String::new(), text }
    }

    /// An element of a set of intervals: the first and the last key.
    pub fn between(set: &Set, (first, last): (Tuple, Tuple), text: String) -> Self {
        Self { end: Some(last), ..Self::new(set, first, text) }
    }

    /// The data of a map's element.
    #[must_use]
    pub fn with(self, data: Tuple) -> Self {
        Self { data: Some(data), ..self }
    }

    /// Sets the comment, as far as the kernel can keep it: what is read back later is to be equal.
    pub fn set_comment(&mut self, text: &str) {
        let end = (0..=COMMENT_MAX).rev().find_map(|end| text.get(..end.min(text.len())));
        end.unwrap_or_default().clone_into(&mut self.comment);
    }

    /// Whether it has the same place in the same set.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.set, &self.key, &self.end) == (other.set, &other.key, &other.end)
    }

    /// Whether two elements of a set have a key in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.all_fields(other, |(first, last), (other_first, other_last)| {
            first <= other_last && other_first <= last
        })
    }

    /// Whether it has all keys of another element of its set.
    pub fn covers(&self, other: &Self) -> bool {
        self.all_fields(other, |(first, last), (other_first, other_last)| {
            first <= other_first && other_last <= last
        })
    }

    /// Whether this holds for the first and last values of all fields of two elements of a set.
    fn all_fields(&self, other: &Self, holds: impl Fn(Ends<'_>, Ends<'_>) -> bool) -> bool {
        let mut offset = 0;
        self.set == other.set
            && self.set.key.iter().all(|field| {
                let at = offset..offset + field.len();
                offset = padded(at.end);
                let own = (self.key.0.get(at.clone()), self.last().get(at.clone()));
                holds(own, (other.key.0.get(at.clone()), other.last().get(at)))
            })
    }

    /// Its first field, which is of addresses, as a prefix.
    pub fn first_prefix(&self) -> Option<IpNetwork> {
        let len = self.set.key.first()?.len();
        let range = (from_octets(self.key.0.get(..len)?)?, from_octets(self.last().get(..len)?)?);
        let prefixes =
            (0..=8 * u8::try_from(len).ok()?).filter_map(|length| IpNetwork::new(range.0, length).ok());
        prefixes.into_iter().find(|prefix| ends(*prefix) == range)
    }

    fn last(&self) -> &[u8] {
        &self.end.as_ref().unwrap_or(&self.key).0
    }

    fn write(&self, bytes: &mut Vec<u8>, whole: bool) {
        let value = |bytes: &mut Vec<u8>, kind, tuple: &Tuple| {
            nest(bytes, kind, |data| put(data, NFTA_DATA_VALUE, |bytes| bytes.extend(&tuple.0)));
        };
        nest(bytes, NFTA_LIST_ELEM, |element| {
            value(element, NFTA_SET_ELEM_KEY, &self.key);
            if let Some(end) = &self.end {
                value(element, NFTA_SET_ELEM_KEY_END, end);
            }
            if let (Some(data), true) = (&self.data, whole) {
                value(element, NFTA_SET_ELEM_DATA, data);
            }
            if whole && !self.comment.is_empty() {
                let comment = user_data(ELEMENT_COMMENT, format!("{}\0", self.comment).as_bytes());
                put(element, NFTA_SET_ELEM_USERDATA, |bytes| bytes.extend(comment));
            }
        });
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of set {} of table {}", self.text, self.set.name, self.set.table)
    }
}

/// The two ends of a prefix.
pub fn ends(prefix: IpNetwork) -> (IpAddr, IpAddr) {
    (prefix.network(), prefix.broadcast())
}

/// How many elements go into one message: the length of their list has 16 bits.
const AT_ONCE: usize = 256;

impl Change {
    /// Changes of one kind for elements of several sets, in as few messages as can be.
    pub fn for_elements(elements: &[Element], change: impl Fn(&[&Element]) -> Option<Self>) -> Vec<Self> {
        let mut sets: Vec<Set> = Vec::new();
        for element in elements {
            if !sets.contains(&element.set) {
                sets.push(element.set);
            }
        }
        let mut changes = Vec::new();
        for set in sets {
            let of_set: Vec<&Element> = elements.iter().filter(|element| element.set == set).collect();
            changes.extend(of_set.chunks(AT_ONCE).filter_map(&change));
        }
        changes
    }

    /// `nft create element FAMILY weft SET { … }`: elements of one set. One that is there makes the batch fail
    /// with `EEXIST`.
    pub fn create_elements(elements: &[&Element]) -> Option<Self> {
        Self::of_elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, "add", elements)
    }

    /// `nft add element FAMILY weft SET { … }`: one that is there is no error.
    pub fn ensure_elements(elements: &[&Element]) -> Option<Self> {
        Self::of_elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, "add", elements)
    }

    /// `nft delete element FAMILY weft SET { … }`. One that is not there makes the batch fail with `ENOENT`.
    pub fn remove_elements(elements: &[&Element]) -> Option<Self> {
        Self::of_elements(NFT_MSG_DELSETELEM, 0, "delete", elements)
    }

    fn of_elements(message_type: u8, flags: u16, verb: &str, elements: &[&Element]) -> Option<Self> {
        let first = elements.first()?;
        let whole = message_type == NFT_MSG_NEWSETELEM;
        let others = if elements.len() > 1 { " and others" } else { "" };
        Some(Self {
            table: first.set.table,
            message: NfTablesMessage::Other { message_type, attributes: list(&first.set, elements, whole) },
            flags,
            text: format!("{verb} {first}{others}"),
        })
    }
}

fn list(set: &Set, elements: &[&Element], whole: bool) -> Vec<DefaultNla> {
    let mut attributes = vec![text(NFTA_SET_ELEM_LIST_TABLE, TABLE), text(NFTA_SET_ELEM_LIST_SET, set.name)];
    if !elements.is_empty() {
        attributes.push(nested(NFTA_SET_ELEM_LIST_ELEMENTS, |bytes| {
            elements.iter().for_each(|element| element.write(bytes, whole));
        }));
    }
    attributes
}

impl Nft {
    /// `nft get element FAMILY weft SET { KEY }`: the element that has the key, of a set of intervals the one
    /// that the key is in.
    ///
    /// # Errors
    /// What the kernel says to the query; no such element is no error.
    pub fn element(&mut self, key: &Element) -> NlResult<Option<Element>> {
        let query = NfTablesMessage::Other {
            message_type: NFT_MSG_GETSETELEM,
            attributes: list(&key.set, &[key], false),
        };
        let answers = unless_missing(self.socket.request(message_of(key.set.table, query), 0))?;
        Ok(elements_of(&key.set, &answers).next())
    }

    /// `nft list set FAMILY weft SET`, its elements. None where the set is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn elements(&mut self, set: &Set) -> NlResult<Vec<Element>> {
        let query =
            NfTablesMessage::Other { message_type: NFT_MSG_GETSETELEM, attributes: list(set, &[], false) };
        let answers = unless_missing(self.socket.dump(&message_of(set.table, query)))?;
        Ok(elements_of(set, &answers).collect())
    }
}

/// The type of the message that tells of elements taken out of a set.
pub(crate) const REMOVED_ELEMENTS: u16 = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_DELSETELEM as u16;

/// The comments of the elements that a message is about, given its attributes; empty for an element without one.
pub(crate) fn comments(message: &[u8]) -> impl Iterator<Item = String> + '_ {
    let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(list).map(|(_, element)| comment_of(element))
}

fn elements_of<'a>(set: &'a Set, answers: &'a [Answer]) -> impl Iterator<Item = Element> + 'a {
    let lists = answers.iter().filter_map(|answer| answer.get(NFTA_SET_ELEM_LIST_ELEMENTS));
    lists.flat_map(attributes).filter_map(|(_, element)| read(set, element))
}

fn read(set: &Set, element: &[u8]) -> Option<Element> {
    // As it is: the set may be another version's, from which nothing else would be deleted.
    let value = |kind| Some(Tuple(find(find(element, kind)?, NFTA_DATA_VALUE)?.to_vec()));
    Some(Element {
        set: *set,
        key: value(NFTA_SET_ELEM_KEY)?,
        end: value(NFTA_SET_ELEM_KEY_END),
        data: value(NFTA_SET_ELEM_DATA),
        comment: comment_of(element),
        text: "an element".to_owned(),
    })
}

fn comment_of(element: &[u8]) -> String {
    match find(element, NFTA_SET_ELEM_USERDATA) {
        Some([ELEMENT_COMMENT, _, comment @ ..]) => attribute::text(comment),
        _ => String::new(),
    }
}
