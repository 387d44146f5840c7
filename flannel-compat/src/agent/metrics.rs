//! The agent's metrics, for Prometheus. docs/weftd.md lists them.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use weft_state::lease::since_1970;

use super::addresses::ByFamily;
use super::truth::{Held, Truth};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// What is repaired: of a network, and of containers of any. docs/weftd.md says what each is.
const OF_NETWORK: [&str; 10] =
    ["link", "mac", "mtu", "address", "neighbour", "fdb", "route", "forwarding", "table", "subnet.env"];
const OF_CONTAINERS: [&str; 3] = ["bridge", "port", "rules"];

/// All of them. What is true at a moment is put in when somebody asks, what happens is counted as it happens.
pub(super) struct Metrics {
    registry: Registry,
    ready: Gauges,
    lease_age: Gauges,
    lease_left: Gauges,
    store_silence: Gauges,
    peers: Gauges,
    addresses: Gauges,
    heals: Counters,
    store_errors: Counters,
    syncs: Family<Labels, Histogram>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("weft");
        let mut gauge = |name, help| {
            let family = Gauges::default();
            registry.register(name, help, family.clone());
            family
        };
        let ready = gauge("ready", "1 when the network is ready, as /readyz says");
        let lease_age = gauge("lease_age_seconds", "Time since the lease was last renewed");
        let lease_left = gauge("lease_left_seconds", "Time until the lease ends if it is not renewed");
        let store_silence = gauge("store_silence_seconds", "Time since etcd last answered");
        let peers = gauge("peers", "Records of other hosts: state is \"valid\", or why it is rejected");
        let addresses = gauge(
            "addresses",
            "Addresses for containers on this host: family is ipv4 or ipv6, state is used or free",
        );
        let mut counter = |name, help| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        };
        let heals = counter("heals", "Kernel objects that were damaged and repaired");
        let store_errors = counter("store_errors", "Failed requests to etcd");
        for object in OF_CONTAINERS {
            drop(heals.get_or_create(&of_object("", object)));
        }
        let syncs = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.000_25, 2.0, 14))) as fn() -> _,
        );
        registry.register(
            "sync_duration_seconds",
            "Comparing and correcting the kernel's objects",
            syncs.clone(),
        );
        Self {
            registry,
            ready,
            lease_age,
            lease_left,
            store_silence,
            peers,
            addresses,
            heals,
            store_errors,
            syncs,
        }
    }

    /// So many objects of a kind were damaged and are repaired.
    pub(super) fn healed(&self, network: &str, object: &'static str, count: usize) {
        self.heals.get_or_create(&of_object(network, object)).inc_by(count as u64);
    }

    pub(super) fn store_failed(&self, network: &str) {
        self.store_errors.get_or_create(&of(network)).inc();
    }

    pub(super) fn synced(&self, network: &str, duration: Duration) {
        self.syncs.get_or_create(&of(network)).observe(duration.as_secs_f64());
    }

    /// Everything as text in the OpenMetrics format.
    pub(super) fn text<'t>(&self, networks: impl Iterator<Item = (&'t Truth, ByFamily)>) -> String {
        // Reasons for which no record is rejected any more would stay, and families that the network has not any more.
        self.peers.clear();
        self.addresses.clear();
        for (truth, addresses) in networks {
            self.record(truth, &addresses);
        }
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            log::warn!("write the metrics: {error}");
        }
        text
    }

    fn record(&self, truth: &Truth, addresses: &ByFamily) {
        let network = truth.network.as_str();
        let labels = of(network);
        let with_state = |state: &str| [&labels[..], &[("state", state.to_owned())]].concat();
        self.ready.get_or_create(&labels).set(f64::from(u8::from(truth.ready().is_ok())));
        // From 0 on: whoever looks for an increase does not see the first of what comes with its first event.
        drop(self.store_errors.get_or_create(&labels));
        for object in OF_NETWORK {
            drop(self.heals.get_or_create(&of_object(network, object)));
        }
        match &truth.lease {
            Held::Lease(lease) => {
                let age = since_1970().saturating_sub(Duration::from_secs(lease.renewed));
                self.lease_age.get_or_create(&labels).set(age.as_secs_f64());
                if lease.is_pinned() {
                    // It has no end.
                    self.lease_left.remove(&labels);
                } else {
                    self.lease_left.get_or_create(&labels).set(lease.remaining().as_secs_f64());
                }
            }
            Held::Nothing | Held::Taken { .. } => {
                self.lease_age.remove(&labels);
                self.lease_left.remove(&labels);
            }
        }
        if let Some(seen) = truth.store.seen {
            self.store_silence.get_or_create(&labels).set(Instant::now().duration_since(seen).as_secs_f64());
        }
        self.peers.get_or_create(&with_state("valid")).set(count(truth.peers));
        for (reason, number) in &truth.rejected {
            self.peers.get_or_create(&with_state(reason)).set(count(*number));
        }
        for (family, addresses) in addresses {
            for (state, number) in [("used", addresses.used), ("free", addresses.free)] {
                let labels = [&labels[..], &[("family", (*family).into()), ("state", state.into())]].concat();
                self.addresses.get_or_create(&labels).set(number);
            }
        }
    }
}

fn of(network: &str) -> Labels {
    vec![("network", network.to_owned())]
}

fn of_object(network: &str, object: &str) -> Labels {
    vec![("network", network.to_owned()), ("object", object.to_owned())]
}

/// Exact to 2^32, more hosts than a network has.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::addresses::Addresses;
    use super::super::truth::tests::truth;
    use super::*;

    fn assert_has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn everything_is_told() {
        let metrics = Metrics::new();
        metrics.healed("pods", "route", 2);
        metrics.store_failed("pods");
        metrics.synced("pods", Duration::from_millis(1));
        let mut truth = truth();
        truth.peers = 3;
        truth.rejected.insert("another VNI", 1);
        let addresses =
            [("ipv4", 251.0), ("ipv6", 1e19)].map(|(family, free)| (family, Addresses { used: 2.0, free }));
        let text = metrics.text(std::iter::once((&truth, addresses.into())));
        assert_has(
            &text,
            &[
                r#"weft_ready{network="pods"} 1.0"#,
                r#"weft_lease_age_seconds{network="pods"} "#,
                r#"weft_lease_left_seconds{network="pods"} "#,
                r#"weft_store_silence_seconds{network="pods"} 0."#,
                r#"weft_peers{network="pods",state="valid"} 3.0"#,
                r#"weft_peers{network="pods",state="another VNI"} 1.0"#,
                r#"weft_addresses{network="pods",family="ipv4",state="used"} 2.0"#,
                r#"weft_addresses{network="pods",family="ipv4",state="free"} 251.0"#,
                r#"weft_addresses{network="pods",family="ipv6",state="free"} 1"#,
                r#"weft_heals_total{network="pods",object="route"} 2"#,
                r#"weft_store_errors_total{network="pods"} 1"#,
                r#"weft_sync_duration_seconds_count{network="pods"} 1"#,
                "# EOF",
            ],
        );
    }

    #[test]
    fn what_has_not_happened_yet_is_told_as_0() {
        let text = Metrics::new().text(std::iter::once((&truth(), ByFamily::new())));
        assert_has(&text, &[r#"weft_store_errors_total{network="pods"} 0"#]);
        let manual = include_str!("../../../docs/weftd.md");
        for (network, objects) in [("pods", OF_NETWORK.as_slice()), ("", &OF_CONTAINERS)] {
            for object in objects {
                assert_has(
                    &text,
                    &[&format!(r#"weft_heals_total{{network="{network}",object="{object}"}} 0"#)],
                );
                assert!(manual.contains(&format!("`{object}`")), "docs/weftd.md does not list {object}");
            }
        }
    }

    #[test]
    fn what_is_over_is_not_told_any_more() {
        let metrics = Metrics::new();
        let mut truth = truth();
        truth.rejected.insert("another VNI", 1);
        metrics.text(std::iter::once((&truth, ByFamily::new())));
        truth.rejected.clear();
        truth.lease = Held::Nothing;
        let text = metrics.text(std::iter::once((&truth, ByFamily::new())));
        assert!(!text.contains("another VNI") && !text.contains("lease_left_seconds{"), "{text}");
        assert_has(&text, &[r#"weft_ready{network="pods"} 0.0"#]);
    }
}
