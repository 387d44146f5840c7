//! What containers send to each other.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::pod::Pod;

/// How long a connection may stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends bytes by TCP from one container to an address of another one, and as many back over the same connection. How long each
/// way took.
///
/// # Panics
/// When there is no connection, when it stands still, and when other bytes arrive than were sent.
#[track_caller]
pub fn transfer(from: &Pod, to: &Pod, address: impl Into<IpAddr>, bytes: usize) -> [Duration; 2] {
    let listener = to.listen(address);
    let target = listener.local_addr().expect("a listener has an address");
    let client = from.connect(target).unwrap_or_else(|error| panic!("{} to {target}: {error}", from.id));
    let (server, _) = listener.accept().expect("accept a connection that was made");
    // No two stretches of it are alike, so bytes that are lost, repeated or out of place are seen.
    let sent: Vec<u8> =
        (0..).flat_map(|word: u32| word.wrapping_mul(0x9e37_79b1).to_le_bytes()).take(bytes).collect();
    [("to", &client, &server), ("back from", &server, &client)].map(|(way, from, to)| {
        let start = Instant::now();
        let received = send(from, to, &sent).unwrap_or_else(|error| panic!("{way} {target}: {error}"));
        // Not assert_eq!: nobody reads megabytes.
        assert!(received == sent, "{way} {target}: other bytes arrived than were sent");
        start.elapsed()
    })
}

fn send(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || from.write_all(bytes));
        let mut received = vec![0; bytes.len()];
        let read = to.read_exact(&mut received);
        writer.join().expect("write to a connection")?;
        read.map(|()| received)
    })
}

/// Every container reaches every other one at its address, at the first attempt.
///
/// # Panics
/// When one does not, with what its host says about its network.
#[track_caller]
pub fn assert_all_reach(pods: &[(&Pod, IpAddr)]) {
    for (from, _) in pods {
        for (_, address) in pods.iter().filter(|(to, _)| to.id != from.id) {
            from.assert_reaches(*address);
        }
    }
}
