use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefixes(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_link_local_address_is_the_kernels() {
    let mac = "52:74:f2:b1:a8:7f".parse().unwrap();
    assert_eq!(link_local(mac), "fe80::5074:f2ff:feb1:a87f".parse::<Ipv6Addr>().unwrap());
}

#[test]
fn the_gateway_is_in_no_range() {
    let gateways = [ip("10.0.0.1"), ip("fd00::1")];
    let ranges =
        further(&prefixes(&["10.0.0.0/30", "10.0.0.2", "fd00::/127", "192.0.2.7"]), &gateways).unwrap();
    assert_eq!(
        ranges,
        [
            (ip("10.0.0.0"), ip("10.0.0.0")),
            (ip("10.0.0.2"), ip("10.0.0.3")),
            (ip("192.0.2.7"), ip("192.0.2.7")),
            (ip("fd00::"), ip("fd00::")),
        ]
    );
    let error = further(&prefixes(&["10.0.0.1"]), &gateways).unwrap_err();
    assert!(error.msg.contains("10.0.0.1") && error.msg.contains("gateway"), "{error}");
}

proptest! {
    /// Whatever is allowed: each address is in one range exactly when a prefix has it and it is no gateway's. The kernel
    /// refuses ranges that overlap.
    #[test]
    fn ranges_have_what_the_prefixes_have(
        allowed in proptest::collection::vec((0..64_u8, 24..=32_u8), 0..8),
        gateway in 0..64_u8,
    ) {
        let allowed: Vec<IpNetwork> = allowed
            .into_iter()
            .map(|(last, length)| {
                let prefix = IpNetwork::new([10, 0, 0, last].into(), length).unwrap();
                IpNetwork::new(prefix.network(), length).unwrap()
            })
            .collect();
        let gateway: IpAddr = [10, 0, 0, gateway].into();
        let Ok(ranges) = further(&allowed, &[gateway]) else {
            prop_assert!(allowed.contains(&IpNetwork::from(gateway)));
            return Ok(());
        };
        for last in 0..=255 {
            let address: IpAddr = [10, 0, 0, last].into();
            let within = ranges.iter().filter(|(first, last)| *first <= address && address <= *last).count();
            let wanted = address != gateway && allowed.iter().any(|prefix| prefix.contains(address));
            prop_assert_eq!(within, usize::from(wanted), "{} in {:?}", address, ranges);
        }
    }
}
