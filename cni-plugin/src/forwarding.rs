//! Whether the host routes packets between its links.
//!
//! Where anything of the host forwards IPv6, the kernel drops the routes that it has from advertisements of routers, and takes no more, except
//! on links that are told to take them even then. So links are told first, or a host would lose its default route to its first container.

use cni_protocol::Error;
use nix::errno::Errno;

use crate::step::{Journal, Shared, Step};
use weft_net::sysctl::Sysctl;
use weft_net::{Family, NetError, Netlink, NlResult};

/// Sees to it that the host routes packets.
pub fn ensure(journal: &mut Journal, netlink: &mut Netlink, family: Family) -> Result<(), Error> {
    let step = |alone| Step::Shared(Shared::Forwarding(family, alone));
    if !journal.within(step(Vec::new()), || is_off(netlink, family))? {
        return Ok(());
    }
    if family == Family::V6 {
        let keep = |settings| Step::Shared(Shared::Advertisements(settings));
        let settings = journal.within(keep(Vec::new()), || netlink.advertised())?;
        if !settings.is_empty() {
            journal.note(keep(settings.clone()));
            journal.within(keep(Vec::new()), || accept(&settings))?;
        }
    }
    let set = || {
        let alone = Sysctl::all_forwarding_at(family)?;
        Sysctl::forwarding(family).set("1")?;
        Ok::<_, NetError>(alone)
    };
    let alone = journal.within(step(Vec::new()), set)?;
    journal.note(step(alone));
    Ok(())
}

/// Whether the host could route packets, and does not.
fn is_off(netlink: &mut Netlink, family: Family) -> NlResult<bool> {
    match netlink.forwards(family) {
        Ok(true) => return Ok(false),
        // A kernel without the family has no such setting either.
        Err(error) if error.errno != Errno::EOPNOTSUPP => return Err(error),
        _ => {}
    }
    Ok(Sysctl::forwarding(family).get()?.is_some_and(|value| value != "1"))
}

/// Stops the host from routing packets, except between interfaces where it did before.
pub fn stop(family: Family, alone: &[Sysctl]) -> NlResult<()> {
    Sysctl::forwarding(family).set("0")?;
    // One that cannot be written is no reason to leave out the others.
    alone.iter().map(|setting| setting.set("1")).fold(Ok(()), Result::and)
}

/// Switches on a setting by which the host, or one link of it, forwards; whether it was off.
pub fn switch_on(netlink: &mut Netlink, family: Family, setting: &Sysctl) -> NlResult<bool> {
    if setting.get()?.is_none_or(|value| value == "1") {
        return Ok(false);
    }
    if family == Family::V6 {
        accept(&netlink.advertised()?)?;
    }
    setting.set("1").map(|()| true)
}

/// Has links take advertisements of routers whatever forwards.
fn accept(settings: &[Sysctl]) -> NlResult<()> {
    settings.iter().try_for_each(|setting| {
        log::info!("set {setting} to 2: by that link the host has routes that routers advertise");
        setting.set("2")
    })
}

/// Has links take them only where nothing forwards.
pub fn accept_no_more(settings: &[Sysctl]) -> NlResult<()> {
    settings.iter().map(|setting| setting.set("1")).fold(Ok(()), Result::and)
}
