//! Settings of one container: kernel settings of its namespace, and flags of its interface.

use cni_protocol::{Code, Error, IfName};
use nix::errno::Errno;
use weft_net::sysctl::Sysctl;
use weft_net::{Link, NetError};

use crate::conf::tuning::{Setting, Tuning};
use crate::fault::Fault;
use crate::pod::Pod;
use crate::step::{Journal, Step};

/// Sets what was asked for. The interface is not up yet.
pub fn apply(journal: &mut Journal, pod: &mut Pod, ifname: &IfName, tuning: &Tuning) -> Result<(), Error> {
    for setting in &tuning.sysctls {
        let Some(sysctl) = setting.sysctl(ifname) else { continue };
        let before =
            journal.within(Step::Sysctl(sysctl.clone(), String::new()), || set(pod, &sysctl, setting))?;
        journal.note(Step::Sysctl(sysctl, before));
    }
    if !tuning.leaves_interface() {
        journal.within(Step::Tune(ifname.clone()), || {
            let flags = (tuning.promiscuous, tuning.all_multicast.unwrap_or_default());
            pod.netlink.tune(ifname.as_str(), flags, tuning.queue_length)
        })?;
    }
    Ok(())
}

/// Has a container that sends everything by the host go on doing so. The host tells of a shorter way, on the link, as soon as it passes
/// packets on between all containers of the network, and that way is closed when it does so no more. For IPv4 either of two settings is
/// enough for the kernel to believe it (`IN_DEV_RX_REDIRECTS` of linux/inetdevice.h).
pub fn refuse_redirects(journal: &mut Journal, pod: &Pod, ifname: &IfName) -> Result<(), Error> {
    const KEY: &str = "accept_redirects";
    let of_interface = [Sysctl::ipv6_of, Sysctl::ipv4_of].map(|of| of(ifname.as_str(), KEY));
    let of_all = Sysctl::ipv4_of("all", KEY);
    let refuse = || {
        of_interface.iter().try_for_each(|setting| setting.set("0"))?;
        of_all.get().and_then(|before| of_all.set("0").map(|()| before))
    };
    let step = Step::Sysctl(of_all.clone(), String::new());
    let before = journal.within(step, || Ok::<_, Fault>(pod.inside(refuse)??))?;
    // The interface's go with it.
    if let Some(before) = before {
        journal.note(Step::Sysctl(of_all, before));
    }
    Ok(())
}

/// Writes a setting, and returns what it was.
fn set(pod: &Pod, sysctl: &Sysctl, setting: &Setting) -> Result<String, Fault> {
    let value = &setting.value;
    let refused = |why: String| Error::new(Code::InvalidConfig, why);
    pod.inside(|| {
        let Some(before) = sysctl.get()? else {
            return Err(refused(format!(
                "{sysctl} is no setting of this kernel: correct the name, or load its module"
            ))
            .into());
        };
        match sysctl.set(value) {
            Err(NetError { errno: Errno::EINVAL, .. }) => {
                Err(refused(format!("{sysctl} cannot be {value}: correct the value")).into())
            }
            Err(NetError { errno: Errno::EACCES, .. }) if sysctl.is_read_only()? => {
                let why = "this setting is the whole host's, it cannot be set for one container: take it out of sysctl";
                Err(refused(format!("{sysctl} can only be read: {why}")).into())
            }
            other => Ok(other.map(|()| before)?),
        }
    })?
}

/// Gives a setting back the value that it had.
pub fn restore(pod: &Pod, sysctl: &Sysctl, before: &str) -> Result<(), Fault> {
    Ok(pod.inside(|| sysctl.set(before))??)
}

/// What is different from what was asked for.
pub fn differences(pod: &Pod, ifname: &IfName, link: &Link, tuning: &Tuning) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    for setting in &tuning.sysctls {
        let Some(sysctl) = setting.sysctl(ifname) else { continue };
        let value = pod.inside(|| sysctl.get())??.unwrap_or_default();
        if !value.split_whitespace().eq(setting.value.split_whitespace()) {
            found.push(format!("{sysctl} is {value} instead of {} in the container", setting.value));
        }
    }
    let mut flag = |name: &str, is: bool, wanted: Option<bool>| {
        if wanted.is_some_and(|wanted| wanted != is) {
            found.push(format!("{ifname} is {} {name}", if is { "" } else { "not" }).replace("  ", " "));
        }
    };
    // An interface that is promiscuous without being asked captures packets: that is no one's damage.
    flag("promiscuous", link.promiscuous, tuning.promiscuous.then_some(true));
    flag("all-multicast", link.all_multicast, tuning.all_multicast);
    if let Some(length) = tuning.queue_length.filter(|length| *length != link.queue_length) {
        found.push(format!("{ifname} has queue length {} instead of {length}", link.queue_length));
    }
    Ok(found)
}
