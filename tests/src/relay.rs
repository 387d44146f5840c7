//! A stretch of wire that is slow, or loses something.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::node::Node;

/// Stands between the clients on a node and a server of gRPC, of which they see only this: an address on the node's
/// loopback interface. Here a byte can be made to wait, which takes netem elsewhere, and one message be lost while its
/// connection lives on, which no wire does. It ends with this value.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    delay: Mutex<Duration>,
    /// What the message contains that will be lost.
    lose: Mutex<Option<Vec<u8>>>,
    connections: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Relay {
    /// Passes everything on at once, both ways, until told otherwise.
    pub fn start(node: &Node, server: SocketAddr) -> Self {
        let listener =
            node.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen on loopback"));
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        // The thread is where it was made: so are its sockets.
        node.inside(|| thread::spawn(move || accept(&listener, server, &theirs)));
        Self { address, shared }
    }

    /// The URL that clients are configured with.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every byte arrives that much later, in either direction.
    pub fn delay(&self, delay: Duration) {
        *locked(&self.shared.delay) = delay;
    }

    /// The next message of the server that contains these bytes does not arrive.
    pub fn lose(&self, bytes: &str) {
        *locked(&self.shared.lose) = Some(bytes.into());
    }

    /// Whether a message was lost since [`Relay::lose`].
    pub fn has_lost(&self) -> bool {
        locked(&self.shared.lose).is_none()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for connection in locked(&self.shared.connections).iter() {
            let _ended_already = connection.shutdown(Shutdown::Both);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often it is looked whether the relay has ended.
const LOOK: Duration = Duration::from_millis(20);

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    listener.set_nonblocking(true).expect("accept without waiting");
    while !shared.ended.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((client, _)) => pair(client, server, shared),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(error) => panic!("accept a connection: {error}"),
        }
    }
}

/// Joins a client with the server. A server that cannot be reached is a connection that ends at once.
fn pair(client: TcpStream, server: SocketAddr, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(server) else { return };
    client.set_nonblocking(false).expect("read with waiting");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("send at once");
        locked(&shared.connections).push(stream.try_clone().expect("share a connection"));
    }
    let other = |stream: &TcpStream| stream.try_clone().expect("share a connection");
    carry(shared, (other(&client), other(&server)), chunk);
    carry(shared, (server, client), frame);
}

/// Carries what is read from one end to the other, piece by piece, until one of them ends. Pieces that are under way do
/// not keep the next ones from setting out: it is time that a piece needs, not room.
fn carry(
    shared: &Arc<Shared>,
    (mut from, mut to): (TcpStream, TcpStream),
    next: fn(&mut TcpStream) -> std::io::Result<Vec<u8>>,
) {
    let (sender, way) = mpsc::channel::<(Instant, Vec<u8>)>();
    let shared = shared.clone();
    thread::spawn(move || {
        while let Ok(piece) = next(&mut from) {
            let arrival = Instant::now() + *locked(&shared.delay);
            let ends = piece.is_empty();
            if !is_lost(&shared, &piece) && (ends || sender.send((arrival, piece)).is_err()) {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (arrival, piece) in way {
            thread::sleep(arrival.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ended_already = to.shutdown(Shutdown::Both);
    });
}

/// Whatever there is; nothing at the end.
fn chunk(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    let length = from.read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The bytes before the content of an HTTP/2 frame: three of length, type, flags, four of the stream (RFC 9113, 4.1).
const HEADER: usize = 9;
/// The type of frames that carry messages.
const DATA: u8 = 0;
/// Before a message of gRPC: whether it is compressed, and four bytes of length.
const PREFIX: usize = 5;

/// One frame. A server's side of a connection is nothing but frames.
fn frame(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame)?;
    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
    frame.resize(HEADER + length, 0);
    from.read_exact(&mut frame[HEADER..])?;
    Ok(frame)
}

/// Whether this is the message to be lost. Only one that is a frame of its own can be: less would break the stream.
fn is_lost(shared: &Shared, piece: &[u8]) -> bool {
    let mut lose = locked(&shared.lose);
    let Some(bytes) = lose.as_deref() else { return false };
    if piece.len() < HEADER + PREFIX || piece[3] != DATA {
        return false;
    }
    let length = u32::from_be_bytes(piece[HEADER + 1..HEADER + PREFIX].try_into().expect("four bytes"));
    let lost = piece.len() == HEADER + PREFIX + length as usize
        && piece.windows(bytes.len()).any(|window| window == bytes);
    if lost {
        *lose = None;
    }
    lost
}
