//! A reservation while it is made.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cni_protocol::{Code, Error};
use weft_state::monotonic;

use crate::record::{Owner, Record};
use crate::sticky::Name;
use crate::store::{Store, addresses_in, failed, make_dir, private_dir, remove_file};

impl Store {
    /// Begins a reservation of so many addresses, for a name where they are to stay with one. What a killed command left of the same owner is taken away before, and
    /// its addresses are in [`Reservation::before`].
    ///
    /// # Errors
    /// [`Code::Io`] when the store cannot be written.
    pub fn begin<'a>(
        &'a self,
        owner: &'a Owner,
        of: usize,
        name: Option<&Name>,
    ) -> Result<Reservation<'a>, Error> {
        let dir = self.part("pending", owner.hash());
        let mut before = Vec::new();
        let made = match private_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => self.mend().map(|()| private_dir(&dir))?,
            made => made,
        };
        if let Err(e) = made {
            if e.kind() != ErrorKind::AlreadyExists {
                return Err(failed("create", &dir, &e));
            }
            before = addresses_in(&dir)?;
            log::info!("{owner}: taking up the unfinished reservation of {before:?}");
            self.sweep_or_fail(&dir)?;
            make_dir(&dir)?;
        }
        let record = Record::bytes(owner, monotonic(), of, name);
        Ok(Reservation { store: self, owner, dir, record, before })
    }

    fn sweep_or_fail(&self, dir: &Path) -> Result<(), Error> {
        let left = self.sweep(dir);
        if left.is_empty() {
            return Ok(());
        }
        let error = Error::new(Code::Io, format!("take away the unfinished reservation {}", dir.display()));
        Err(left.into_iter().fold(error, Error::detail))
    }
}

/// A reservation under way. Dropped without [`Reservation::commit`] it stays in `pending/`, as after
/// a kill.
#[derive(Debug)]
pub struct Reservation<'a> {
    pub(crate) store: &'a Store,
    owner: &'a Owner,
    dir: PathBuf,
    record: Vec<u8>,
    before: Vec<IpAddr>,
}

impl Reservation<'_> {
    /// What a killed command of the same owner had reserved: to be preferred.
    #[must_use]
    pub fn before(&self) -> &[IpAddr] {
        &self.before
    }

    /// Takes `ip`, if nobody holds it.
    ///
    /// # Errors
    /// [`Code::Io`] when the store cannot be written.
    pub fn claim(&self, ip: IpAddr) -> Result<bool, Error> {
        let address = self.store.address_file(ip);
        match fs::symlink_metadata(&address) {
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed("look at", &address, &e)),
        }
        let link = self.dir.join(ip.to_string());
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&link);
        file.and_then(|mut f| f.write_all(&self.record)).map_err(|e| failed("write", &link, &e))?;
        match fs::hard_link(&link, &address) {
            // Others are held too, which is seen again then.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.store.mend()?;
                remove_file(&link).map_err(|e| failed("remove", &link, &e))?;
                self.claim(ip)
            }
            linked => linked.map(|()| true).map_err(|e| failed("link", &address, &e)),
        }
    }

    /// Makes the reservation a finished one.
    ///
    /// # Errors
    /// [`Code::Io`] when the directory cannot be renamed; the reservation is then taken back.
    pub fn commit(self) -> Result<(), Error> {
        let owned = self.store.part("owner", self.owner.hash());
        match fs::rename(&self.dir, &owned) {
            Ok(()) => Ok(()),
            Err(e) => Err(self.abort(failed("rename to", &owned, &e))),
        }
    }

    /// Takes the reservation back because of `cause`; what could not be taken back is in its details.
    #[must_use]
    pub fn abort(self, cause: Error) -> Error {
        self.store.sweep(&self.dir).into_iter().fold(cause, Error::detail)
    }
}
