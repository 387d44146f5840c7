//! What a batch can consist of.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_NONREC};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, NfTablesMessage, RuleAttribute, RuleMessage,
    SetAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute, TableMessage,
};

use super::bytes::user_data;
use super::{Chain, Interval, Rule, SetKind, TABLE, Table, interval};

/// The comment that `nft list ruleset` shows at what Weft made.
pub(super) const COMMENT: &str = "managed by weft";
/// `NFTNL_UDATA_CHAIN_COMMENT` of libnftnl's udata.h.
pub(super) const CHAIN_COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER` of libnftnl's udata.h.
pub(super) const SET_KEYBYTEORDER: u8 = 0;
/// `BYTEORDER_BIG_ENDIAN` of nft's datatype.h: how nft has to read the keys to print them.
pub(super) const BIG_ENDIAN: u32 = 2;

/// One change to Weft's tables; [`super::Nft::batch`] carries it out. Those of this file are to `inet weft`.
#[derive(Debug, Clone)]
pub struct Change {
    pub(super) table: Table,
    pub(super) message: NfTablesMessage,
    pub(super) flags: u16,
    /// Names step and object in an error.
    pub(super) text: String,
}

impl Change {
    /// Deletes table `inet weft` if nothing is in it; else the batch fails with `EBUSY`.
    pub fn delete_empty_table() -> Self {
        let attributes = vec![TableAttribute::Name(TABLE.into())];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::DeleteTable(TableMessage { attributes }),
            flags: NLM_F_NONREC,
            text: format!("delete table inet {TABLE}"),
        }
    }

    /// `nft create chain inet weft NAME { type … hook … priority … ; policy … ; }`. One that is there makes
    /// the batch fail with `EEXIST`.
    pub fn create_chain(name: &str, chain: &Chain) -> Self {
        let attributes = vec![
            ChainAttribute::Table(TABLE.into()),
            ChainAttribute::Name(name.into()),
            ChainAttribute::Type(chain.kind.clone()),
            ChainAttribute::Policy(chain.policy),
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(chain.hook)),
                Hook::Priority(chain.priority.cast_unsigned()),
            ]),
            ChainAttribute::UserData(user_data(CHAIN_COMMENT, format!("{COMMENT}\0").as_bytes())),
        ];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::NewChain(ChainMessage { attributes }),
            flags: NLM_F_CREATE | NLM_F_EXCL,
            text: format!("create chain {name} in table inet {TABLE}"),
        }
    }

    /// `nft delete chain inet weft NAME`, with the rules in it.
    pub fn delete_chain(name: &str) -> Self {
        let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(name.into())];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::DeleteChain(ChainMessage { attributes }),
            flags: 0,
            text: format!("delete chain {name} of table inet {TABLE}"),
        }
    }

    /// `nft add rule inet weft CHAIN …`: appends it.
    pub fn add_rule(chain: &str, rule: &Rule) -> Self {
        let attributes =
            vec![RuleAttribute::Table(TABLE.into()), RuleAttribute::Chain(chain.into()), rule.to_attribute()];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::NewRule(RuleMessage { attributes }),
            flags: NLM_F_CREATE | NLM_F_APPEND,
            text: format!("add rule to chain {chain} of table inet {TABLE}"),
        }
    }

    /// `nft create set inet weft NAME { type …; flags …; }`. One that is there makes the batch fail with
    /// `EEXIST`.
    pub fn create_set(name: &str, kind: SetKind) -> Self {
        let attributes = vec![
            SetAttribute::Table(TABLE.into()),
            SetAttribute::Name(name.into()),
            SetAttribute::Flags(kind.flags),
            SetAttribute::KeyType(kind.key_type),
            SetAttribute::KeyLen(kind.key_len),
            // Wanted by the kernel, and for nothing: everything here finds the set by its name.
            SetAttribute::Id(1),
            SetAttribute::UserData(user_data(SET_KEYBYTEORDER, &BIG_ENDIAN.to_ne_bytes())),
        ];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::NewSet(SetMessage { attributes }),
            flags: NLM_F_CREATE | NLM_F_EXCL,
            text: format!("create set {name} in table inet {TABLE}"),
        }
    }

    /// `nft delete set inet weft NAME`. A rule that uses it makes the batch fail with `EBUSY`.
    pub fn delete_set(name: &str) -> Self {
        let attributes = vec![SetAttribute::Table(TABLE.into()), SetAttribute::Name(name.into())];
        Self {
            table: Table::Inet,
            message: NfTablesMessage::DeleteSet(SetMessage { attributes }),
            flags: 0,
            text: format!("delete set {name} of table inet {TABLE}"),
        }
    }

    /// `nft add element inet weft SET { … }`. One that is there is no error; one that overlaps another makes
    /// the batch fail with `ENOTEMPTY` or `EEXIST`.
    pub fn add_elements(set: &str, intervals: &[Interval]) -> Self {
        Self {
            table: Table::Inet,
            message: NfTablesMessage::NewSetElement(elements(set, intervals)),
            flags: NLM_F_CREATE,
            text: format!("add {} to set {set} of table inet {TABLE}", joined(intervals)),
        }
    }

    /// `nft delete element inet weft SET { … }`. One that is not there makes the batch fail with `ENOENT`.
    pub fn delete_elements(set: &str, intervals: &[Interval]) -> Self {
        Self {
            table: Table::Inet,
            message: NfTablesMessage::DeleteSetElement(elements(set, intervals)),
            flags: 0,
            text: format!("delete {} from set {set} of table inet {TABLE}", joined(intervals)),
        }
    }
}

fn elements(set: &str, intervals: &[Interval]) -> SetElementMessage {
    let attributes = vec![
        SetElementList::Table(TABLE.into()),
        SetElementList::Set(set.into()),
        SetElementList::Elements(interval::to_elements(intervals)),
    ];
    SetElementMessage { attributes }
}

fn joined(intervals: &[Interval]) -> String {
    intervals.iter().map(Interval::to_string).collect::<Vec<_>>().join(", ")
}
