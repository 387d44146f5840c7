//! What the agent says of itself over HTTP: `/metrics`, `/healthz`, `/readyz`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use cni_protocol::{Code, Error};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinHandle, spawn_local};

use super::conf::Listen;

/// Connections at a time. Anybody on this machine may connect; the agent's own descriptors must not run out. When there are
/// more, the oldest gives way: those who ask are answered at once, and need none for long.
const CONNECTIONS: usize = 32;
/// How long a connection may last, all told.
const PATIENCE: Duration = Duration::from_secs(10);

/// One page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) ok: bool,
    pub(super) kind: &'static str,
    pub(super) text: String,
}

impl Page {
    /// Plain text, and whether it is good news.
    pub(super) fn plain(ok: bool, text: String) -> Self {
        Self { ok, kind: "text/plain; charset=utf-8", text }
    }
}

/// Makes the page at a path, if there is one.
pub(super) type Pages = Rc<dyn Fn(&str) -> Option<Page>>;

/// An open socket.
pub(super) enum Server {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Opens it; the socket's file of an agent that has ended is replaced.
    ///
    /// # Errors
    /// [`Code::Io`] when the address is in use or the file cannot be made.
    pub(super) fn bind(listen: &Listen) -> Result<Self, Error> {
        let bound = match listen {
            // Of std, since tokio's is asynchronous for the sake of host names.
            Listen::Tcp(address) => std::net::TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .and_then(TcpListener::from_std)
                .map(Self::Tcp),
            Listen::Unix(path) => unix(path).map(Self::Unix),
        };
        bound.map_err(|error| {
            let place = match listen {
                Listen::Tcp(address) => address.to_string(),
                Listen::Unix(path) => path.display().to_string(),
            };
            let remedy = "end what uses it, or choose another one with the key listen";
            Error::new(Code::Io, format!("listen at {place}: {error}: {remedy}"))
        })
    }

    /// Answers for ever.
    pub(super) async fn run(self, pages: Pages) {
        let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
        loop {
            let pages = Rc::clone(&pages);
            let accepted = match &self {
                Self::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| spawn_local(converse(stream, pages)))
                }
                Self::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| spawn_local(converse(stream, pages)))
                }
            };
            match accepted {
                Ok(connection) => connections.push_back(connection),
                Err(error) => {
                    log::warn!("accept a connection: {error}");
                    // Out of descriptors, most likely: that does not pass at once.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            connections.retain(|connection| !connection.is_finished());
            if connections.len() > CONNECTIONS
                && let Some(oldest) = connections.pop_front()
            {
                oldest.abort();
            }
            // Each has its turn, and may be over, before there are more.
            tokio::task::yield_now().await;
        }
    }
}

fn unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let refused = std::os::unix::net::UnixStream::connect(path).err();
            if refused.is_none_or(|refused| refused.kind() != io::ErrorKind::ConnectionRefused) {
                return Err(error);
            }
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(error.kind(), "the file is no socket"));
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

/// One request and its answer.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, pages: Pages) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, pages.as_ref());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, connection).await {
        log::debug!("a connection broke: {error}");
    }
}

fn answer<B>(request: &Request<B>, page: &dyn Fn(&str) -> Option<Page>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let Some(page) = page(request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".into());
    };
    let status = if page.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = text(status, page.text);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(page.kind));
    response
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str) -> Option<Page> {
        match path {
            "/healthz" => Some(Page::plain(true, "ok\n".into())),
            "/readyz" => Some(Page::plain(false, "not ready\n".into())),
            _ => None,
        }
    }

    /// Asks a server on a thread of its own, as its runtime has only this one.
    fn ask(listen: &Listen, requests: &'static [&'static str]) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let server = Server::bind(listen).unwrap();
            let address = match &server {
                Server::Tcp(listener) => Some(listener.local_addr().unwrap()),
                Server::Unix(_) => None,
            };
            let path = match listen {
                Listen::Unix(path) => path.clone(),
                Listen::Tcp(_) => "".into(),
            };
            let client = tokio::task::spawn_blocking(move || {
                let answers = requests.iter().map(|request| match address {
                    Some(address) => talk(std::net::TcpStream::connect(address).unwrap(), request),
                    None => talk(std::os::unix::net::UnixStream::connect(&path).unwrap(), request),
                });
                answers.collect()
            });
            tokio::select! {
                () = server.run(Rc::new(page)) => unreachable!(),
                answers = client => answers.unwrap(),
            }
        })
    }

    /// Without a process: between fork and exec that would have the sockets of other tests.
    fn loopback_up() {
        let deadline = cni_protocol::Deadline::after(PATIENCE);
        weft_net::Netlink::open(deadline).unwrap().set_up("lo").unwrap();
    }

    fn talk(mut stream: impl io::Read + io::Write, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    const REQUESTS: &[&str] = &[
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /readyz?verbose HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "POST /healthz HTTP/1.0\r\n\r\n",
        "HEAD /healthz HTTP/1.0\r\n\r\n",
        "nonsense\r\n\r\n",
    ];

    fn check(answers: &[String]) {
        let expected =
            [("200", "\r\nok\n"), ("503", "\r\nnot ready\n"), ("404", "/metrics"), ("405", "use GET")];
        for (answer, (status, body)) in answers.iter().zip(expected) {
            assert!(answer.split_whitespace().nth(1) == Some(status) && answer.contains(body), "{answer}");
        }
        assert!(answers[4].contains(" 200 ") && answers[4].ends_with("\r\n\r\n"), "{}", answers[4]);
        assert!(answers[5].contains(" 400 "), "{}", answers[5]);
    }

    #[test]
    fn pages_over_tcp() {
        loopback_up();
        check(&ask(&Listen::Tcp("127.0.0.1:0".parse().unwrap()), REQUESTS));
    }

    #[test]
    fn pages_over_a_socket_file_also_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/weftd.sock");
        for _ in 0..2 {
            // The file is left behind, as when the agent was killed.
            check(&ask(&Listen::Unix(path.clone()), REQUESTS));
            assert!(path.exists());
        }
        let _living = std::os::unix::net::UnixListener::bind(dir.path().join("other")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let file = dir.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        for name in ["precious", "link", "."] {
            let error = Server::bind(&Listen::Unix(dir.path().join(name))).err().unwrap();
            assert!(error.msg.contains("is no socket"), "{}", error.msg);
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
        let error = Server::bind(&Listen::Unix(dir.path().join("other"))).err().unwrap();
        assert!(error.msg.contains("other") && error.msg.contains("the key listen"), "{}", error.msg);
    }

    #[test]
    fn silent_clients_keep_nobody_waiting() {
        loopback_up();
        // Time passes only where it is waited for.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        tasks.block_on(&runtime, async {
            let server = Server::bind(&Listen::Unix(path.clone())).unwrap();
            let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
            let silent: Vec<_> = (0..2 * CONNECTIONS).map(|_| connect()).collect();
            let mut asks = tokio::net::UnixStream::connect(&path).await.unwrap();
            let behind: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
            let start = tokio::time::Instant::now();
            let asked = async {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                asks.write_all(REQUESTS[0].as_bytes()).await.unwrap();
                let mut answer = String::new();
                asks.read_to_string(&mut answer).await.unwrap();
                assert!(answer.contains(" 200 "), "{answer}");
            };
            tokio::select! {
                () = server.run(Rc::new(page)) => unreachable!(),
                () = asked => {}
            }
            assert_eq!(start.elapsed(), Duration::ZERO);
            drop((silent, behind));
        });
    }
}
