//! Chains of both tables, with their rules.

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_NONREC, NLM_F_REQUEST,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::answer::{Answer, number as read_number};
use super::bytes::{nested, number, put, text, user_data};
use super::change::{CHAIN_COMMENT, COMMENT};
use super::set::{NFTA_SET_NAME, NFTA_SET_TABLE, Set};
use super::uapi::{
    NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE, NFTA_CHAIN_USE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN, NFTA_RULE_TABLE,
};
use super::{
    Change, InetHookNumber, Nft, NlResult, POLICY_ACCEPT, Rule, TABLE, Table, message_of, unless_missing,
};

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_DELRULE: u8 = 8;
const NFT_MSG_GETSET: u8 = 10;
const NFT_MSG_DELSET: u8 = 11;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFTA_CHAIN_USERDATA: u16 = 12;

/// Where a chain stands in the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Others jump to it.
    Regular,
    /// `type KIND hook HOOK priority PRIORITY; policy accept`
    Base { kind: &'static str, hook: InetHookNumber, priority: i32 },
}

impl Change {
    /// `nft add table FAMILY weft`. One that is there is no error, and is not dormant any more.
    pub fn ensure_table(table: Table) -> Self {
        let attributes = vec![text(NFTA_TABLE_NAME, TABLE), number(NFTA_TABLE_FLAGS, 0)];
        Self::raw(table, NFT_MSG_NEWTABLE, attributes, NLM_F_CREATE, "add it")
    }

    /// Deletes the table if nothing is in it; else the batch fails with `EBUSY`.
    pub fn delete_table_if_empty(table: Table) -> Self {
        Self::raw(table, NFT_MSG_DELTABLE, vec![text(NFTA_TABLE_NAME, TABLE)], NLM_F_NONREC, "delete it")
    }

    /// `nft create chain FAMILY weft NAME { … }`. One that is there makes the batch fail with `EEXIST`.
    pub fn new_chain(table: Table, name: &str, kind: ChainKind) -> Self {
        let mut attributes = vec![text(NFTA_CHAIN_TABLE, TABLE), text(NFTA_CHAIN_NAME, name)];
        if let ChainKind::Base { kind, hook, priority } = kind {
            attributes.push(text(NFTA_CHAIN_TYPE, kind));
            attributes.push(number(NFTA_CHAIN_POLICY, POLICY_ACCEPT));
            attributes.push(nested(NFTA_CHAIN_HOOK, |bytes| {
                put(bytes, NFTA_HOOK_HOOKNUM, |bytes| bytes.extend(u32::from(hook).to_be_bytes()));
                put(bytes, NFTA_HOOK_PRIORITY, |bytes| bytes.extend(priority.to_be_bytes()));
            }));
        }
        let comment = user_data(CHAIN_COMMENT, format!("{COMMENT}\0").as_bytes());
        attributes.push(DefaultNla::new(NFTA_CHAIN_USERDATA, comment));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        Self::raw(table, NFT_MSG_NEWCHAIN, attributes, flags, &format!("create chain {name}"))
    }

    /// `nft delete chain FAMILY weft NAME`, with the rules in it.
    pub fn remove_chain(table: Table, name: &str) -> Self {
        let attributes = vec![text(NFTA_CHAIN_TABLE, TABLE), text(NFTA_CHAIN_NAME, name)];
        Self::raw(table, NFT_MSG_DELCHAIN, attributes, 0, &format!("delete chain {name}"))
    }

    /// `nft flush chain FAMILY weft NAME`
    pub fn flush_chain(table: Table, name: &str) -> Self {
        Self::raw(table, NFT_MSG_DELRULE, rules_of(name), 0, &format!("flush chain {name}"))
    }

    /// `nft add rule FAMILY weft CHAIN …`: appends it.
    pub fn append(table: Table, chain: &str, rule: &Rule) -> Self {
        let mut attributes = rules_of(chain);
        attributes.push(rule.to_nla());
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        Self::raw(table, NFT_MSG_NEWRULE, attributes, flags, &format!("add rule to chain {chain}"))
    }

    /// `nft delete set FAMILY weft NAME`. A rule that uses it makes the batch fail with `EBUSY`.
    pub fn remove_set(set: &Set) -> Self {
        let attributes = vec![text(NFTA_SET_TABLE, TABLE), text(NFTA_SET_NAME, set.name)];
        Self::raw(set.table, NFT_MSG_DELSET, attributes, 0, &format!("delete set {}", set.name))
    }

    fn raw(table: Table, message_type: u8, attributes: Vec<DefaultNla>, flags: u16, text: &str) -> Self {
        let message = NfTablesMessage::Other { message_type, attributes };
        Self { table, message, flags, text: format!("table {table}: {text}") }
    }
}

impl Nft {
    /// Whether no packet comes to a table's chains: `flags dormant`.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn is_dormant(&mut self, table: Table) -> NlResult<bool> {
        let attributes = vec![text(NFTA_TABLE_NAME, TABLE)];
        let query = NfTablesMessage::Other { message_type: NFT_MSG_GETTABLE, attributes };
        let answers: Vec<Answer> = unless_missing(self.socket.request(message_of(table, query), 0))?;
        let flags = answers.first().and_then(|answer| answer.get(NFTA_TABLE_FLAGS)).and_then(read_number);
        Ok(flags.is_some_and(|flags| flags & NFT_TABLE_F_DORMANT != 0))
    }

    /// How often each of these chains is in use: its rules, and the jumps to it. Asked in one go. `None` where
    /// one of them is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn uses(&mut self, table: Table, chains: &[&str]) -> NlResult<Option<Vec<u32>>> {
        let query = |(position, name): (usize, &&str)| {
            let attributes = vec![text(NFTA_CHAIN_TABLE, TABLE), text(NFTA_CHAIN_NAME, name)];
            let message = NfTablesMessage::Other { message_type: NFT_MSG_GETCHAIN, attributes };
            let last = if position + 1 == chains.len() { NLM_F_ACK } else { 0 };
            (message_of(table, message), NLM_F_REQUEST | last)
        };
        let answers = self.socket.request_all(chains.iter().enumerate().map(query).collect());
        let answers: Vec<Answer> = unless_missing(answers)?;
        let uses = answers.iter().filter_map(|answer| answer.get(NFTA_CHAIN_USE).and_then(read_number));
        Ok(Some(uses.collect::<Vec<_>>()).filter(|uses| uses.len() == chains.len()))
    }

    /// Whether a chain of that name is there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn has_chain(&mut self, table: Table, name: &str) -> NlResult<bool> {
        Ok(self.uses(table, &[name])?.is_some())
    }

    /// Whether a base chain stands where it should; a regular one always does.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn is_placed(&mut self, table: Table, name: &str, kind: ChainKind) -> NlResult<bool> {
        let ChainKind::Base { kind, hook, priority } = kind else { return Ok(true) };
        let attributes = vec![text(NFTA_CHAIN_TABLE, TABLE), text(NFTA_CHAIN_NAME, name)];
        let query = NfTablesMessage::Other { message_type: NFT_MSG_GETCHAIN, attributes };
        let answers = unless_missing(self.socket.request(message_of(table, query), 0))?;
        let wanted = super::Chain { kind: kind.into(), hook, priority, policy: POLICY_ACCEPT };
        Ok(answers.first().map(super::Chain::from_answer) == Some(wanted))
    }

    /// `nft list chain FAMILY weft NAME`, its rules in order. No rules where the chain is not there.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn rules_in(&mut self, table: Table, chain: &str) -> NlResult<Vec<Rule>> {
        let query = NfTablesMessage::Other { message_type: NFT_MSG_GETRULE, attributes: rules_of(chain) };
        let answers = unless_missing(self.socket.dump(&message_of(table, query)))?;
        Ok(answers.iter().map(Rule::from_answer).collect())
    }

    /// Whether a set of that name is there, and whether it is as wanted.
    ///
    /// # Errors
    /// What the kernel says to the query.
    pub fn has_set(&mut self, set: &Set) -> NlResult<Option<bool>> {
        let attributes = vec![text(NFTA_SET_TABLE, TABLE), text(NFTA_SET_NAME, set.name)];
        let query = NfTablesMessage::Other { message_type: NFT_MSG_GETSET, attributes };
        let answers = unless_missing(self.socket.request(message_of(set.table, query), 0))?;
        Ok(answers.first().map(|answer| set.is(|kind| answer.get(kind).and_then(read_number))))
    }
}

fn rules_of(chain: &str) -> Vec<DefaultNla> {
    vec![text(NFTA_RULE_TABLE, TABLE), text(NFTA_RULE_CHAIN, chain)]
}
