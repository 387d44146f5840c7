//! How much passes, and how long it waits: measured with iperf3 and ping.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::{Daemon, Host, NetNs, Network, Pod, command, eventually, ips};

use super::limited_to;

/// The gateway, at which the host can be reached.
const HOST: [&str; 2] = ["10.88.0.1", "fd00:88::1"];

/// A server of iperf3 for one measurement.
fn serve(netns: &NetNs, address: IpAddr) -> Daemon {
    netns.inside(|| {
        let mut iperf3 = Command::new("iperf3");
        iperf3.args(["--server", "--one-off", "--forceflush", "--bind", &address.to_string()]);
        let server = Daemon::start(&iperf3, Path::new("/run/testbed/iperf3.log"));
        let listens =
            || command("ss --no-header --listening --tcp --numeric").contains(":5201").then_some(());
        eventually(Duration::from_secs(10), "iperf3 listens", listens);
        server
    })
}

/// What arrives by TCP in each second, in bits.
fn received(from: &NetNs, address: IpAddr, to: &NetNs, seconds: u32) -> Vec<f64> {
    let server = serve(from, address);
    let line = format!("iperf3 --client {address} --reverse --time {seconds} --interval 1 --json");
    let report: Value = to.inside(|| weft_tests::json(&line));
    server.wait();
    let of = |interval: &Value| interval["sum"]["bits_per_second"].as_f64();
    report["intervals"].as_array().unwrap().iter().filter_map(of).take(seconds as usize).collect()
}

/// More than is allowed never arrives. Less may, where the machine has other things to do for a moment, but not every time.
fn assert_within_ten_percent(way: &str, rate: u32, measure: impl Fn() -> Vec<f64>) {
    let rate = f64::from(rate);
    let mut all = Vec::new();
    for _ in 0..4 {
        let seconds = measure();
        let (mut arrived, mut allowed) = (0.0, 0.0);
        for second in &seconds {
            arrived += second;
            allowed += rate * 1.1;
            assert!(arrived <= allowed, "{way}: {seconds:?}");
        }
        if seconds.iter().all(|second| (rate * 0.9..=rate * 1.1).contains(second)) {
            return;
        }
        all.push(seconds);
    }
    panic!("{way}: {all:?}");
}

/// The first second counts: peers let hundreds of megabytes through before they limit anything (kubernetes#90838).
#[test]
fn within_ten_percent_from_the_first_second_on() {
    let ways = |rate: u32, seconds: u32| {
        let host = Host::new();
        let pod = Pod::new();
        let result = limited_to(rate).add(&pod);
        for (ours, theirs) in host_addresses().into_iter().zip(ips(&result)) {
            assert_within_ten_percent(&format!("{rate} to {theirs}"), rate, || {
                received(host.netns(), ours, pod.netns(), seconds)
            });
            assert_within_ten_percent(&format!("{rate} from {theirs}"), rate, || {
                received(pod.netns(), theirs, host.netns(), seconds)
            });
        }
    };
    thread::scope(|scope| {
        for (rate, seconds) in [(1_000_000, 1), (10_000_000, 3), (100_000_000, 1)] {
            scope.spawn(move || ways(rate, seconds));
        }
    });
}

fn host_addresses() -> [IpAddr; 2] {
    HOST.map(|address| address.parse().unwrap())
}

/// The longest of some round trips by either family, in milliseconds, while somebody sends more than the limit allows.
fn worst_round_trip(from: &NetNs, to: &[IpAddr], count: usize) -> f64 {
    let times = |to: &IpAddr| {
        let output = from.inside(|| {
            let mut ping = Command::new("ping");
            ping.args(["-n", "-i", "0.05", "-W", "1", "-c", &count.to_string(), &to.to_string()]);
            // A packet that is dropped did not wait.
            String::from_utf8(ping.output().unwrap().stdout).unwrap()
        });
        let times =
            output.lines().filter_map(|line| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok());
        times.collect::<Vec<f64>>()
    };
    // Beside a flood most are dropped.
    let of = |to: &IpAddr| {
        let times = (0..10).map(|_| times(to)).find(|times| !times.is_empty()).expect("a round trip");
        times.into_iter().fold(0.0, f64::max)
    };
    thread::scope(|scope| {
        let pings: Vec<_> = to.iter().map(|to| scope.spawn(move || of(to))).collect();
        pings.into_iter().map(|ping| ping.join().unwrap()).fold(0.0, f64::max)
    })
}

/// Sends for as long as the value lives: by TCP as much as arrives, by UDP twice as much.
fn flood(from: &NetNs, address: IpAddr, udp: Option<u32>) -> Daemon {
    from.inside(|| {
        let mut iperf3 = Command::new("iperf3");
        iperf3.args(["--client", &address.to_string(), "--time", "60"]);
        match udp {
            Some(rate) => iperf3.args(["--udp", "--bitrate", &(rate * 2).to_string()]),
            None => iperf3.args(["--parallel", "4"]),
        };
        Daemon::start(&iperf3, Path::new("/run/testbed/flood.log"))
    })
}

fn assert_no_long_wait(network: &Network, rate: u32) {
    let host = Host::new();
    let pod = Pod::new();
    let theirs = ips(&network.add(&pod));
    for (from, to, targets) in
        [(host.netns(), pod.netns(), &*theirs), (pod.netns(), host.netns(), &host_addresses())]
    {
        for (address, udp) in targets.iter().zip([None, Some(rate)]) {
            let _server = serve(to, *address);
            let _flood = flood(from, *address, udp);
            let waits = || (worst_round_trip(from, targets, 6) > 1.0).then_some(());
            eventually(Duration::from_secs(20), "the queue fills", waits);
            let worst = worst_round_trip(from, targets, 30);
            let way = format!("{rate} bit/s to {address}{}", if udp.is_some() { " by UDP" } else { "" });
            println!("{way}: {worst} ms");
            assert!(worst < 100.0, "{way}: a packet waited {worst} ms");
        }
    }
}

#[test]
fn nothing_waits_for_a_tenth_of_a_second() {
    // A burst of a second's worth on a slow link: once it is used up, packets of 64 KiB must not block the way.
    let slow = json!({ "ingressRate": 2_000_000, "ingressBurst": 2_000_000, "egressRate": 2_000_000, "egressBurst": 2_000_000 });
    let rates = [1_000_000, 10_000_000, 100_000_000];
    let mut networks = rates.map(|rate| (limited_to(rate), rate)).to_vec();
    networks.push((Network::dual().with(&slow), 2_000_000));
    thread::scope(|scope| {
        for (network, rate) in &networks {
            scope.spawn(|| assert_no_long_wait(network, *rate));
        }
    });
}

/// Only some remote subnets count, or all but some: of both families, in both directions.
#[test]
fn subnets() {
    const NEAR: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
    const FAR: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
    for (key, slow, fast) in [("shapedSubnets", NEAR, FAR), ("unshapedSubnets", FAR, NEAR)] {
        let host = Host::new();
        for address in NEAR.iter().chain(&FAR) {
            command(&format!("ip addr add {address} dev lo"));
        }
        let prefixes = ["192.0.2.0/24", "2001:db8:1::/48"];
        let network = Network::dual()
            .with(&json!({ "ingressRate": 10_000_000, "egressRate": 10_000_000, key: prefixes }));
        let pod = Pod::new();
        let result = network.add(&pod);
        network.check(&pod, &result).done();
        assert_eq!(super::detours(&result).len(), 2);
        for (addresses, is_slow) in [(slow, true), (fast, false)] {
            for (remote, own) in addresses.iter().zip(ips(&result)) {
                let remote: IpAddr = remote.parse().unwrap();
                let to_pod = received(host.netns(), remote, pod.netns(), 1)[0];
                let from_pod = sent(&pod, own, host.netns(), remote);
                for (way, rate) in [("to", to_pod), ("from", from_pod)] {
                    assert_eq!(
                        rate < 11e6,
                        is_slow,
                        "{key}: {way} the container, with {remote}: {rate} bit/s"
                    );
                }
            }
        }
        network.del(&pod);
        assert_eq!(command("ip -o link show type ifb"), "");
    }
}

/// What arrives in a second at one of the host's addresses, in bits.
fn sent(pod: &Pod, own: IpAddr, host: &NetNs, remote: IpAddr) -> f64 {
    let server = serve(pod.netns(), own);
    let line = format!("iperf3 --client {own} --bind {remote} --reverse --time 1 --json");
    let report: Value = host.inside(|| weft_tests::json(&line));
    server.wait();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap()
}
