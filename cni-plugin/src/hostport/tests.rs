use proptest::prelude::*;

use super::*;

fn single(port: u16) -> Claim {
    Claim { to: [10, 0, 0, 2].into(), at: None, protocol: Protocol::Tcp, first: port, last: port, port }
}

fn mapping(host_port: u16, container_port: u16) -> Mapping {
    Mapping { host_port, container_port, protocol: Protocol::Tcp, host_ip: None }
}

#[test]
fn ports_in_a_row_that_keep_their_numbers_are_one_claim() {
    let mut claims = Vec::new();
    for port in 8000..9000 {
        claim(&mut claims, &mapping(port, port), [10, 0, 0, 2].into());
    }
    claim(&mut claims, &mapping(9000, 80), [10, 0, 0, 2].into());
    claim(&mut claims, &mapping(65_535, 65_535), [10, 0, 0, 2].into());
    let claims = single_ports(claims);
    let ranges: Vec<(u16, u16)> = claims.iter().map(|claim| (claim.first, claim.last)).collect();
    assert_eq!(ranges, [(8000, 8999), (9000, 9000), (65_535, 65_535)]);
}

proptest! {
    /// However ports are asked for, each is claimed once, and two claims meet exactly when they share a port.
    #[test]
    fn every_port_is_claimed_once(mut ports in proptest::collection::vec(1..200_u16, 1..60)) {
        ports.sort_unstable();
        ports.dedup();
        let mut claims = Vec::new();
        for port in &ports {
            claim(&mut claims, &mapping(*port, *port), [10, 0, 0, 2].into());
        }
        let claims = single_ports(claims);
        let claimed: Vec<u16> = claims.iter().flat_map(|claim| claim.first..=claim.last).collect();
        prop_assert_eq!(&claimed, &ports);
        for port in 1..200 {
            let met = claims.iter().any(|claim| meets(&single(port), &claim.element()));
            prop_assert_eq!(met, ports.contains(&port), "{}", port);
        }
    }
}
