//! What addresses need on the host: gateways on the bridge, forwarding, masquerade. All of it is shared.

use cni_protocol::Error;
use ipnetwork::IpNetwork;
use weft_net::Link;

use super::Attachment;
use crate::bridge::{self, former};
use crate::fault::Change;
use crate::forwarding;
use crate::masquerade::{self, Ensured, ending};
use crate::plan::Plan;
use crate::ruleset::Rules;
use crate::step::{Shared, Step};

impl Attachment {
    /// What the addresses need on the host, also shared: gateway addresses, forwarding, masquerade.
    pub(super) fn ensure_routing(&mut self, bridge: &Link, plan: &Plan) -> Result<(), Error> {
        for &gateway in &plan.gateways {
            self.ensure_gateway(bridge, plan, gateway)?;
        }
        let host = &mut self.host;
        for &family in &plan.forwarding {
            forwarding::ensure(&mut self.journal, host, family)?;
        }
        if plan.masquerade.is_nothing() { self.end_masquerade() } else { self.ensure_masquerade(plan) }
    }

    fn ensure_gateway(&mut self, bridge: &Link, plan: &Plan, gateway: IpNetwork) -> Result<(), Error> {
        let (host, network, key) = (&mut self.host, &self.network, &self.key);
        let step = Step::Shared(Shared::Gateway(network.bridge.clone(), gateway));
        let in_the_way =
            self.journal.within(step.clone(), || bridge::in_the_way(host, network, bridge, gateway, plan))?;
        let Some(in_the_way) = in_the_way else { return Ok(()) };
        let mut former = Vec::new();
        if network.force_address && gateway.is_ipv4() {
            former = self.journal.within(step.clone(), || former::find(host, network, bridge, plan, key))?;
            former.retain(|whole| !in_the_way.contains(whole));
        }
        for other in in_the_way.iter().chain(&former) {
            let replace = Shared::ReplaceAddress(network.bridge.clone(), Box::new(other.clone()));
            self.journal.run(Step::Shared(replace), || {
                host.take_away(other).map(|was_there| ((), Change::from(was_there)))
            })?;
        }
        if !former.is_empty() {
            self.journal.within(step.clone(), || former::give_back(host, network, &former, key))?;
        }
        if gateway.is_ipv6() {
            let ipv6 = Step::Shared(Shared::Ipv6(network.bridge.clone()));
            self.journal
                .run(ipv6, || bridge::ensure_ipv6(network.bridge.as_str()).map(|change| ((), change)))?;
        }
        self.journal.run(step, || bridge::ensure_gateway(host, bridge, gateway).map(|change| ((), change)))
    }

    fn ensure_masquerade(&mut self, plan: &Plan) -> Result<(), Error> {
        let network = &self.network;
        let ensured = self.journal.within(Step::Shared(Shared::Masquerade(Ensured::Nothing)), || {
            let opened = self.rules.take().map_or_else(|| Rules::open(self.args.call.deadline), Ok)?;
            let nft = &mut self.rules.insert(opened).nft;
            masquerade::ensure(nft, &network.name, &plan.masquerade)
        })?;
        let has_moved = matches!(&ensured, Ensured::Elements { added, .. } if !added.is_empty());
        self.journal.note(Step::Shared(Shared::Masquerade(ensured)));
        self.journal.content.masquerade.clone_from(&plan.masquerade);
        if has_moved { self.retire_prefixes(plan) } else { Ok(()) }
    }

    /// Where the network has got other prefixes, ends former configurations' prefixes that no container has any more.
    fn retire_prefixes(&mut self, plan: &Plan) -> Result<(), Error> {
        let Some(rules) = &mut self.rules else { return Ok(()) };
        let (state_dir, of) = (&self.network.state_dir, (&self.network.name, Some(self.key.hash())));
        let step =
            |replaced| Step::Shared(Shared::Masquerade(Ensured::Elements { added: Vec::new(), replaced }));
        let look = || ending::stale(&mut rules.nft, state_dir, of, &plan.masquerade);
        let stale = self.journal.within(step(Vec::new()), look)?;
        if stale.is_empty() {
            return Ok(());
        }
        self.journal.note(step(stale.clone()));
        self.journal.within(step(Vec::new()), || ending::retire(&mut rules.nft, state_dir, of, stale))
    }

    /// What a former configuration had masqueraded ends with the first container of one without masquerade. A container without
    /// addresses has not asked for the rules, and leaves that to others.
    fn end_masquerade(&mut self) -> Result<(), Error> {
        let (Some(rules), false) = (&mut self.rules, self.network.masquerade) else { return Ok(()) };
        let (state_dir, name) = (&self.network.state_dir, &self.network.name);
        let step = |former| Step::Shared(Shared::EndMasquerade(former));
        let look = || ending::left(&mut rules.nft, state_dir, name);
        let Some(former) = self.journal.within(step(None), look)? else { return Ok(()) };
        log::info!("network {name}: ipMasq is false by now, so its masquerade ends");
        self.journal.note(step(Some(former)));
        self.journal.within(step(None), || ending::end(&mut rules.nft, state_dir, name))
    }
}
