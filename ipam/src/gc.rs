//! GC of the store: what belongs to nobody any more.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use cni_protocol::Error;

use crate::record::{Owner, Record, repair_record};
use crate::store::{Store, make_dir, make_parts, names_in, note, remove_file};

impl Store {
    /// Frees all that belongs to none of `valid`, except what was reserved since `started`: an ADD
    /// that ran beside this GC is not in its list. Goes on after errors and returns them all.
    ///
    /// What belongs to a valid owner and is damaged is repaired where it can be.
    pub fn collect_garbage(&self, valid: &[Owner], started: Duration) -> Vec<String> {
        let valid: HashMap<&str, &Owner> = valid.iter().map(|o| (o.hash(), o)).collect();
        let mut left = self.collect_unfinished();
        left.extend(self.collect_owned(&valid, started));
        left.extend(self.collect_unowned(&valid, started));
        self.forget();
        left
    }

    /// Nobody was told the addresses of an ADD that did not finish: neither its age nor the list of
    /// valid attachments matters.
    fn collect_unfinished(&self) -> Vec<String> {
        let (names, mut left) = self.names("pending");
        for name in names {
            log::info!("GC: freeing the unfinished reservation {name}");
            left.extend(self.sweep(&self.part("pending", &name)));
        }
        left
    }

    fn collect_owned(&self, valid: &HashMap<&str, &Owner>, started: Duration) -> Vec<String> {
        let (names, mut left) = self.names("owner");
        for name in names {
            let dir = self.part("owner", &name);
            if let Some(owner) = valid.get(name.as_str()) {
                self.restore_addresses(owner, &dir);
                for name in names_in(&dir).ok().flatten().unwrap_or_default() {
                    repair_record(owner, &dir.join(&name));
                }
            } else if !is_newer(&dir, started) {
                log::info!("GC: freeing the reservation {name}");
                left.extend(self.free(&dir));
            }
        }
        left
    }

    /// Makes directories of the store again that somebody removed; addresses of which the owner is known are held again.
    ///
    /// # Errors
    /// [`cni_protocol::Code::Io`].
    pub(crate) fn mend(&self) -> Result<(), Error> {
        log::warn!("{}: a directory is missing, and is made again", self.dir().display());
        make_parts(self.dir())?;
        let (names, _) = self.names("owner");
        names.iter().for_each(|name| self.restore_addresses(name, &self.part("owner", name)));
        Ok(())
    }

    /// Links the addresses of an owner again where the address file was lost, so that they are
    /// not given to another.
    fn restore_addresses(&self, owner: &dyn Display, dir: &Path) {
        for name in names_in(dir).ok().flatten().unwrap_or_default() {
            let address = self.part("addr", &name);
            if fs::symlink_metadata(&address).is_err() {
                match fs::hard_link(dir.join(&name), &address) {
                    Ok(()) => log::warn!("{name} of {owner} was not marked as held, repaired"),
                    Err(e) => log::warn!("{name} of {owner} is not marked as held: {e}"),
                }
            }
        }
    }

    /// Addresses without a link by owner: the directory by owner was damaged, for no order of kills
    /// makes them. The record tells whose they are; if it does not, nobody can.
    fn collect_unowned(&self, valid: &HashMap<&str, &Owner>, started: Duration) -> Vec<String> {
        let (names, mut left) = self.names("addr");
        for name in names {
            let address = self.part("addr", &name);
            if fs::symlink_metadata(&address).is_ok_and(|m| m.is_file() && m.nlink() > 1) {
                continue;
            }
            match Record::read(&address) {
                Some(record) if valid.contains_key(record.owner().hash()) => {
                    self.adopt(&record.owner(), &name, &address);
                }
                Some(record) if record.reserved_at() >= started => {}
                record => {
                    let whose = record.map_or("nobody known".to_owned(), |r| r.owner().to_string());
                    log::warn!("GC: freeing {name} of {whose}, which had no link by owner");
                    note(&mut left, "remove", &address, self.remove_address(&name));
                }
            }
        }
        left
    }

    fn adopt(&self, owner: &Owner, name: &str, address: &Path) {
        let dir = self.part("owner", owner.hash());
        let link = dir.join(name);
        // A copy has torn the link in two files of one owner: the address file is the one that counts.
        if let Err(e) = make_dir(&dir) {
            log::warn!("GC: {e}");
        }
        match remove_file(&link).and_then(|()| fs::hard_link(address, &link)) {
            Ok(()) => log::warn!("GC: {name} of {owner} had no link by owner, repaired"),
            Err(e) => log::warn!("GC: {name} of {owner} has no link by owner: {e}"),
        }
    }

    fn names(&self, part: &str) -> (Vec<String>, Vec<String>) {
        let dir = self.dir().join(part);
        match names_in(&dir) {
            Ok(names) => (names.unwrap_or_default(), Vec::new()),
            Err(e) => (Vec::new(), vec![format!("read {}: {e}", dir.display())]),
        }
    }
}

fn is_newer(dir: &Path, started: Duration) -> bool {
    let names = names_in(dir).ok().flatten().unwrap_or_default();
    names.iter().any(|n| Record::read(&dir.join(n)).is_some_and(|r| r.reserved_at() >= started))
}
