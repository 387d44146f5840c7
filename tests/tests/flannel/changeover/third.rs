//! A third host, which leaves while the first one is nobody's: whoever comes next is not told of it.

use weft_tests::{eventually, records};

use super::{Changing, PATIENCE, shell};
use crate::flannel::peers::SUBNETS;

/// As the page has them.
pub(super) const FLUSH_FLANNELS_ROUTES: [&str; 2] =
    ["ip route flush root 10.240.0.0/12 proto boot", "ip -6 route flush root fd00:42::/48 proto boot"];
pub(super) const FLUSH_WEFTS_ROUTES: [&str; 2] = ["ip route flush proto 119", "ip -6 route flush proto 119"];

pub(super) struct Third {
    key: String,
    /// As routes name them.
    subnets: Vec<String>,
}

impl Third {
    /// The first host learns of it.
    pub(super) fn come(changing: &Changing) -> Self {
        let (key, mut value) = records::of_a_host(&changing.families);
        if !changing.has_devices {
            value = value.replace("vxlan", "host-gw");
        }
        let third = Self { subnets: key.split('&').map(|part| part.replace('-', "/")).collect(), key };
        changing.fleet.etcd.put(&format!("{SUBNETS}{}", third.key), value);
        eventually(PATIENCE, "the third host is known", || {
            (third.ways(changing) == third.subnets.len()).then_some(())
        });
        third
    }

    pub(super) fn leave(&self, changing: &Changing) {
        changing.fleet.etcd.del(&format!("{SUBNETS}{}", self.key));
    }

    fn ways(&self, changing: &Changing) -> usize {
        let routes = shell(changing.node(), "ip route && ip -6 route");
        self.subnets.iter().filter(|subnet| routes.contains(*subnet)).count()
    }

    #[track_caller]
    pub(super) fn assert_is_forgotten(&self, changing: &Changing) {
        eventually(PATIENCE, "the third host is forgotten", || (self.ways(changing) == 0).then_some(()));
    }
}

impl Changing {
    /// Those of a daemon that is called so where Weft's have these names.
    pub(super) fn delete_devices(&self, named: impl Fn(&str) -> String) {
        for family in self.families.iter().filter(|_| self.has_devices) {
            self.node().command(&format!("ip link delete {}", named(family.device())));
        }
    }

    pub(super) fn flush_routes(&self, commands: [&str; 2]) {
        for (command, _) in commands.iter().zip(&self.families).filter(|_| !self.has_devices) {
            shell(self.node(), command);
        }
    }
}
