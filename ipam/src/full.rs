//! Blocks of addresses that are all held, so that a search passes over a long run of them in few steps.
//!
//! ```text
//! <dataDir>/<network>/<boot id>/ipam/
//!     full/<ip>   by the first address of a block: which of its addresses, first and last, are all held
//! ```
//!
//! A mark is made by a search that found a block full, and removed before one of the block's addresses is. So after a kill
//! anywhere it may be missing, which costs the next search one look at the block, but it is never wrong. A mark that is wrong all
//! the same, as somebody removed files by hand, hides addresses until the pool looks exhausted: then the marks are not believed.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;

use cni_protocol::Error;
use weft_net::Family;
use weft_state::open_to_write;

use crate::pool::RangeSet;
use crate::range::{Span, address, number};
use crate::reservation::Reservation;
use crate::sticky::Name;
use crate::store::{Store, failed, ignore_missing, names_in, private_dir, read_text, remove_file};

const FULL: &str = "full";

impl Reservation<'_> {
    /// Takes the first address behind `last` that is free and not kept for another than `name`. For a block that is
    /// known to be full one file is read; the addresses of other blocks are looked at one by one.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`] when the store cannot be read or written.
    pub(crate) fn claim_next(
        &self,
        set: &RangeSet,
        last: Option<IpAddr>,
        name: Option<&Name>,
    ) -> Result<Option<IpAddr>, Error> {
        for piece in set.pieces_after(last) {
            if self.store.is_full(set.family(), piece) {
                continue;
            }
            let mut all_held = true;
            for ip in (piece.first..=piece.last).map(|number| address(set.family(), number)) {
                if self.store.kept_for_another(ip, name).is_some() {
                    all_held = false;
                } else if self.claim(ip)? {
                    return Ok(Some(ip));
                }
            }
            if all_held {
                self.store.mark_full(set.family(), piece);
            }
        }
        Ok(None)
    }
}

impl Store {
    fn full_file(&self, family: Family, number: u128) -> PathBuf {
        self.part(FULL, &address(family, Span::block_of(number).first).to_string())
    }

    fn is_full(&self, family: Family, piece: Span) -> bool {
        let text = read_text(&self.full_file(family, piece.first));
        let mut ends = text.split(' ').filter_map(|end| end.parse().ok().map(number));
        match (ends.next(), ends.next()) {
            (Some(first), Some(last)) => first <= piece.first && piece.last <= last,
            _ => false,
        }
    }

    /// It is a help, and not worth a container: what cannot be written is looked through again.
    fn mark_full(&self, family: Family, piece: Span) {
        let path = self.full_file(family, piece.first);
        let text = format!("{} {}", address(family, piece.first), address(family, piece.last));
        let open = || match open_to_write(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                private_dir(&self.dir().join(FULL))?;
                open_to_write(&path, true)
            }
            other => other,
        };
        let write = || open()?.write_all(text.as_bytes());
        if let Err(error) = write() {
            log::warn!("write {}: {error}", path.display());
        }
    }

    /// Removes the file of an address, which is free then; its block's mark goes before.
    pub(crate) fn remove_address(&self, name: &str) -> io::Result<()> {
        if let Ok(ip) = name.parse() {
            remove_file(&self.full_file(Family::of(ip), number(ip)))?;
        }
        remove_file(&self.part("addr", name))
    }

    /// Removes all marks.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn forget_full(&self) -> Result<(), Error> {
        let dir = self.dir().join(FULL);
        let forget = || {
            for name in names_in(&dir)?.unwrap_or_default() {
                remove_file(&dir.join(name))?;
            }
            ignore_missing(fs::remove_dir(&dir))
        };
        forget().map_err(|error| failed("remove", &dir, &error))
    }
}

#[cfg(test)]
mod tests;
