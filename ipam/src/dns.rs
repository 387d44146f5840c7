//! DNS settings from a file in the form of resolv.conf(5).

use std::fs;
use std::path::Path;

use cni_protocol::{Code, Dns, Error};

/// Reads the file that `resolvConf` names.
///
/// # Errors
/// [`Code::Io`] when it cannot be read.
pub(crate) fn read(path: &Path) -> Result<Dns, Error> {
    let text = fs::read(path).map_err(|e| {
        let remedy = "correct ipam.resolvConf or make the file readable";
        Error::new(Code::Io, format!("read DNS settings from {}: {e}; {remedy}", path.display()))
    })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The words of resolv.conf(5) that a result has a place for; others are passed over, as by every
/// reader of that file.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().or(dns.domain),
            // The last of several lines counts.
            Some("search") => dns.search = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_resolv_conf() {
        let text = "# comment\n; comment\nnameserver 10.0.0.53\nnameserver\nnameserver fd00::53 extra\n\
                    domain example.org\nsearch a.example b.example\nsearch c.example\n\
                    options ndots:5 edns0\noptions rotate\nsortlist 10.0.0.0\n\n";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["10.0.0.53", "fd00::53"]);
        assert_eq!(dns.domain.as_deref(), Some("example.org"));
        assert_eq!(dns.search, ["c.example"]);
        assert_eq!(dns.options, ["ndots:5", "edns0", "rotate"]);
        assert_eq!(parse(""), Dns::default());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nonexistent/resolv.conf")).unwrap_err();
        assert_eq!(error.code, Code::Io);
        assert!(error.msg.contains("/nonexistent/resolv.conf"), "{error}");
    }
}
