use proptest::prelude::*;

use super::*;

fn key() -> AttachmentKey {
    AttachmentKey::new(&"net".parse().unwrap(), &"a".parse().unwrap(), &"eth0".parse().unwrap())
}

const LIMIT: Option<Limit> = Some(Limit { rate: 8_000, burst: None });

#[test]
fn a_burst_that_nobody_asked_for_is_a_part_of_the_queue() {
    let bucket = bucket(Limit { rate: 100_000_000, burst: None }, 1500);
    assert_eq!(bucket, TokenBucket { rate: 12_500_000, burst: 78_125, queue: 625_000, packet: 78_125 });
}

#[test]
fn whoever_asks_for_a_burst_gets_it_in_packets_that_do_not_hold_up_others() {
    let bucket = bucket(Limit { rate: 8_000_000, burst: Some(80_000_000) }, 1500);
    assert_eq!(bucket, TokenBucket { rate: 1_000_000, burst: 10_000_000, queue: 50_000, packet: 6_250 });
}

proptest! {
    #[test]
    fn packets_pass_and_nothing_waits_long(
        rate in 1_000_u64..=1_000_000_000_000_000,
        burst in proptest::option::of(1_u64..2_147_483_647),
        mtu in 68_u32..=65_535,
    ) {
        let bucket = bucket(Limit { rate, burst }, mtu);
        let frame = mtu + HEADERS;
        prop_assert!(frame <= bucket.packet && bucket.packet <= bucket.burst && bucket.packet <= bucket.queue);
        // Two frames may wait, however slow they are.
        let waits = u128::from(bucket.queue) * 1000 / u128::from(bucket.rate);
        prop_assert!(waits <= u128::from(QUEUE_MS) || bucket.queue == 2 * frame);
        if burst.is_none() {
            prop_assert!(bucket.burst <= (bucket.queue / 8).max(2 * frame));
        }
    }
}

#[test]
fn one_direction_needs_a_detour_and_the_other_only_for_subnets() {
    let mut shaping = Shaping { ingress: LIMIT, egress: LIMIT, ..Shaping::default() };
    let detours = |shaping: &Shaping| -> Vec<bool> {
        ways(&key(), shaping, 1500).iter().map(|way| way.detour.is_some()).collect()
    };
    assert_eq!(detours(&shaping), [false, true]);
    shaping.subnets = Subnets::Only(vec!["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(detours(&shaping), [true, true]);
    assert_eq!(detours(&Shaping::default()), [false; 0]);
}

#[test]
fn what_is_excepted_passes_before_the_rest_is_sent_through() {
    let subnets = Subnets::Except(vec!["fd00::/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    let detour = Detour { ifb: "ifb".into(), hook: Hook::Ingress, subnets };
    let filters: Vec<_> = detour.filters(7).iter().map(|filter| (filter.priority, filter.through)).collect();
    assert_eq!(filters, [(2, None), (1, None), (3, Some(7))]);
}
