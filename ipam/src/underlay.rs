//! The address at which other hosts reach this one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use cni_protocol::{Code, Error};

use crate::etcd_conf::EtcdConf;

/// This host's public address of a family: the configured one, else that of the default route.
///
/// # Errors
/// [`Code::InvalidConfig`] when there is none.
pub fn choose(conf: &EtcdConf, v4: bool) -> Result<IpAddr, Error> {
    if let Some(given) = conf.public.iter().find(|ip| ip.is_ipv4() == v4) {
        return Ok(*given);
    }
    // Documentation addresses: nothing is sent, the kernel only looks for the way there.
    let (any, far): (IpAddr, IpAddr) = if v4 {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 1).into())
    } else {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
    };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((far, 9))?;
        socket.local_addr()
    });
    found.map(|address| address.ip()).map_err(|error| {
        Error::new(Code::InvalidConfig, format!("find this host's address: {error}: set publicIP or iface"))
    })
}
