//! What etcd's errors mean: each gets its own sentence, with what helps.

use std::error::Error as _;

use etcd_client::Error;

/// Also when nobody answers who might know it.
pub(super) const NO_NAME: &str = "has a name that cannot be looked up: correct it, or see to DNS";

/// What can be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The lease is granted already.
    LeaseThere,
    LeaseGone,
    /// This host may not, by its configuration: no endpoint will say otherwise.
    Refusal,
    /// Another endpoint, or the same a little later, may answer.
    Trouble,
}

/// By what etcd says (server/etcdserver/api/v3rpc/rpctypes/error.go): the codes alone tell too little apart.
pub(super) fn kind(error: &Error) -> Kind {
    let text = chain(error);
    let says = |part: &str| text.contains(part);
    if says("lease already exists") {
        Kind::LeaseThere
    } else if says("lease not found") {
        Kind::LeaseGone
    } else if refusal(&text).is_some() {
        Kind::Refusal
    } else {
        Kind::Trouble
    }
}

/// In one line: whose error, what it is, what helps.
pub(super) fn explain(endpoint: &str, error: &Error) -> String {
    let text = chain(error);
    let found = refusal(&text).or_else(|| trouble(&text)).or_else(|| ended(endpoint, &text));
    match found {
        Some(meaning) => format!("{endpoint} {meaning}"),
        None => format!("{endpoint}: {}", plain(error)),
    }
}

fn refusal(text: &str) -> Option<&'static str> {
    let known = [
        (
            "authentication failed",
            "does not know this user and password: correct ipam.etcd.username and passwordFile",
        ),
        ("user name is empty", "wants a user: set ipam.etcd.username and passwordFile"),
        (
            "permission denied",
            "does not let this user read and write the network's prefix: grant it with etcdctl role grant-permission",
        ),
        (
            "authentication is not enabled",
            "has no users: take ipam.etcd.username and passwordFile out, or enable its authentication",
        ),
    ];
    known.into_iter().find_map(|(part, meaning)| text.contains(part).then_some(meaning))
}

fn trouble(text: &str) -> Option<&'static str> {
    let known = [
        (
            "UnknownIssuer",
            "has a certificate that is not from the CA of ipam.etcd.caFile: name the CA that it is from",
        ),
        (
            "BadSignature",
            "has a certificate that is not from the CA of ipam.etcd.caFile: name the CA that it is from",
        ),
        ("certificate expired", "has a certificate that has expired: renew it, or correct this host's clock"),
        (
            "certificate not valid for name",
            "has a certificate for another name: use an endpoint that its certificate names",
        ),
        ("CertificateRequired", "wants a client's certificate: set ipam.etcd.certFile and keyFile"),
        (
            "BadCertificate",
            "does not accept this host's certificate: set ipam.etcd.certFile and keyFile to one from its CA that has not expired",
        ),
        (
            "UnknownCA",
            "does not accept this host's certificate: set ipam.etcd.certFile and keyFile to one from its CA that has not expired",
        ),
        ("CertificateExpired", "says that this host's certificate has expired: renew ipam.etcd.certFile"),
        ("InvalidContentType", "does not speak TLS: write http:// in ipam.etcd.endpoints, or enable its TLS"),
        ("(os error 111)", "refuses the connection: see whether etcd runs there"),
        // No answer to TCP's first packets, or to the first ones of TLS.
        (
            "deadline has elapsed",
            "takes no connection: see whether its host and etcd are up and no firewall is between",
        ),
        // By their numbers: C libraries word them differently. EHOSTUNREACH, ENETUNREACH, ECONNREFUSED.
        ("(os error 113)", "cannot be reached: no route to host: see the network between"),
        ("(os error 101)", "cannot be reached: network is unreachable: see this host's routes"),
        ("failed to lookup address", NO_NAME),
        (
            "required revision has been compacted",
            "has forgotten the history that was asked for (compaction): everything is read anew",
        ),
        ("no leader", "has no leader: see that most of etcd's members run and reach each other"),
        ("leader changed", "has just changed its leader: repeat the call"),
        (
            "request timed out",
            "did not decide in time: see that most of etcd's members run and reach each other",
        ),
        (
            "database space exceeded",
            "has no space left: compact and defragment etcd, then etcdctl alarm disarm",
        ),
        (
            "decoded message length too large",
            "has more under the prefix than a network can be: look for what does not belong there",
        ),
    ];
    known.into_iter().find_map(|(part, meaning)| text.contains(part).then_some(meaning))
}

/// A connection that is gone. In TLS 1.3 the server's reason is lost when it closes before the reason was read.
fn ended(endpoint: &str, text: &str) -> Option<&'static str> {
    let gone = ["(os error 104)", "broken pipe", "connection closed", "operation was canceled"];
    if !gone.iter().any(|part| text.contains(part)) {
        return None;
    }
    Some(if endpoint.starts_with("https:") {
        "ended the connection, perhaps as it does not accept this host's certificate: see whether that of ipam.etcd.certFile is from its CA and has not expired"
    } else {
        "ended the connection: see its log"
    })
}

/// For people: what etcd or the library says, and the innermost cause. The error's own text has the types of all causes in it.
fn plain(error: &Error) -> String {
    let said = match error {
        Error::GRpcStatus(status) if !status.message().is_empty() => status.message().to_owned(),
        other => other.to_string(),
    };
    match causes(error).last().map(ToString::to_string) {
        Some(cause) if !said.contains(&cause) => format!("{said}: {cause}"),
        _ => said,
    }
}

/// All that the error and its causes say.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
    }
    text
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(transport) => transport.source(),
        other => other.source(),
    };
    std::iter::successors(first, |&cause| cause.source())
}
