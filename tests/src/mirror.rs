//! A server that tells who its clients are.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::eventually;
use crate::host::Outside;
use crate::netns::NetNs;
use crate::pod::Pod;

const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing has to come where nothing should.
const SILENCE: Duration = Duration::from_millis(400);

/// Where connections come from.
pub trait Place {
    /// Does something there.
    fn there<T>(&self, work: impl FnOnce() -> T) -> T;
}

impl Place for Pod {
    fn there<T>(&self, work: impl FnOnce() -> T) -> T {
        self.inside(work)
    }
}

impl Place for Outside {
    fn there<T>(&self, work: impl FnOnce() -> T) -> T {
        self.inside(work)
    }
}

impl Place for NetNs {
    fn there<T>(&self, work: impl FnOnce() -> T) -> T {
        self.inside(work)
    }
}

/// A server, and what it sees of its clients.
pub struct Mirror {
    listener: TcpListener,
}

impl Mirror {
    /// Listens at every address of a place.
    pub fn on(place: &impl Place, port: u16) -> Self {
        // Of both families: where only IPv6 is asked for, a host has to be set so (bindv6only).
        let listener = place.there(|| TcpListener::bind(("::", port)));
        let listener = listener.unwrap_or_else(|error| panic!("listen at {port}: {error}"));
        listener.set_nonblocking(true).expect("do not wait");
        Self { listener }
    }

    /// Connects from a place. Returns the client's address as the server saw it; `None` when there is no way.
    pub fn seen(&self, from: &impl Place, target: (IpAddr, u16)) -> Option<IpAddr> {
        let stream = from.there(|| TcpStream::connect_timeout(&SocketAddr::from(target), PATIENCE)).ok()?;
        let (mut server, client) =
            eventually(PATIENCE, "a connection arrives", || self.listener.accept().ok());
        server.set_nonblocking(false).expect("wait");
        server.write_all(b"hello").expect("answer");
        drop(server);
        let mut text = String::new();
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        (&stream).read_to_string(&mut text).expect("an answer");
        assert_eq!(text, "hello");
        Some(client.ip().to_canonical())
    }

    /// Whether nothing comes of a connection from a place.
    pub fn is_closed_to(&self, from: &impl Place, target: (IpAddr, u16)) -> bool {
        let connected = from.there(|| TcpStream::connect_timeout(&SocketAddr::from(target), SILENCE));
        if connected.is_ok() {
            // Taken off the queue, where the next one looks for its own.
            eventually(PATIENCE, "a connection arrives", || self.listener.accept().ok());
        }
        connected.is_err()
    }
}

/// Whether there is a way to a server is as expected. Where there is one, it gets more time than where there is none.
#[track_caller]
pub fn assert_way(is_open: bool, server: &Mirror, from: &impl Place, to: IpAddr, what: &str) {
    let target = (to, server.listener.local_addr().expect("its port").port());
    let is_as_expected = match is_open {
        true => server.seen(from, target).is_some(),
        false => server.is_closed_to(from, target),
    };
    assert!(is_as_expected, "{what}: to {to} there ought to be {} way", if is_open { "a" } else { "no" });
}

/// Asks a server by UDP and gets the same back from where it was asked. How long the server waits is its own affair.
pub fn is_answered(from: &impl Place, server: &UdpSocket, target: (IpAddr, u16)) -> bool {
    answered_as(from, server, target).is_some()
}

/// The same, with the client's address as the server saw it.
pub fn answered_as(from: &impl Place, server: &UdpSocket, target: (IpAddr, u16)) -> Option<IpAddr> {
    let any: IpAddr =
        if target.0.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = from.there(|| UdpSocket::bind((any, 0)).expect("a socket"));
    client.connect(target).expect("a connected socket");
    client.send(b"hello").expect("send");
    let mut buffer = [0; 8];
    let (length, seen) = server.recv_from(&mut buffer).ok()?;
    server.send_to(&buffer[..length], seen).expect("answer");
    client.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let is_answer = client.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"hello");
    is_answer.then_some(seen.ip().to_canonical())
}
