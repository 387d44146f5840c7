//! The options of `tbf` on the wire: `struct tc_tbf_qopt` and `TCA_TBF_*` of linux/pkt_sched.h.

use netlink_packet_core::DefaultNla;

use super::{FoundBucket, TokenBucket};
use crate::attribute;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_PRATE64: u16 = 5;
const TCA_TBF_BURST: u16 = 6;
const TCA_TBF_PBURST: u16 = 7;

/// `TC_LINKLAYER_ETHERNET`. Named, so that the kernel does not ask for tables of rates.
const LINKLAYER_ETHERNET: u8 = 1;
/// Nanoseconds of a `PSCHED_TICK` (net/pkt_sched.h).
pub(super) const TICK: u64 = 64;
/// Bytes per second of a peak that nothing comes near to.
const PEAK: u64 = 1 << 40;

/// The options that make a bucket.
pub(super) fn bucket(bucket: &TokenBucket) -> Vec<DefaultNla> {
    let peak = if bucket.divides() { PEAK.max(bucket.rate.saturating_mul(2)) } else { 0 };
    // Burst and largest packet come as bytes below, and not as times here.
    let params = [rate(bucket.rate), rate(peak), bucket.queue.to_ne_bytes().to_vec(), vec![0; 8]].concat();
    let mut options = vec![
        DefaultNla::new(TCA_TBF_PARMS, params),
        DefaultNla::new(TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()),
        DefaultNla::new(TCA_TBF_BURST, bucket.burst.to_ne_bytes().to_vec()),
    ];
    if bucket.divides() {
        options.push(DefaultNla::new(TCA_TBF_PRATE64, peak.to_ne_bytes().to_vec()));
        options.push(DefaultNla::new(TCA_TBF_PBURST, bucket.packet.to_ne_bytes().to_vec()));
    }
    options
}

/// `struct tc_ratespec`. A rate of 2^32 and more has its own attribute.
fn rate(rate: u64) -> Vec<u8> {
    let low = u32::try_from(rate).unwrap_or(u32::MAX);
    let mut bytes = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    bytes.extend(low.to_ne_bytes());
    bytes
}

/// What the kernel says of a bucket.
pub(super) fn found(nest: &[u8]) -> Option<FoundBucket> {
    let params = attribute::find(nest, TCA_TBF_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*params.get(at..)?.first_chunk()?));
    let (low, peak, queue, buffer) = (word(8)?, word(20)?, word(24)?, word(28)?);
    let rate64 = attribute::find(nest, TCA_TBF_RATE64).and_then(|value| Some(*value.first_chunk()?));
    Some(FoundBucket {
        rate: rate64.map_or(u64::from(low), u64::from_ne_bytes),
        burst_time: u64::from(buffer) * TICK,
        queue,
        divides: peak != 0,
    })
}
