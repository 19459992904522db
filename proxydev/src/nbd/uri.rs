//! `nbd:` URIs, as the document *NBD URIs* of the NBD project has them.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, Result, limits};

/// The port that is meant where none is named.
const PORT: u16 = 10809;

/// Which export of which server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The export's name; empty for the default one.
    pub export: String,
    /// Whether TLS is wanted.
    pub secure: bool,
    /// The directory of the certificates for it.
    pub certificates: Option<PathBuf>,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// At a Unix socket.
    Unix(PathBuf),
    /// At a TCP port of a host.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl Uri {
    /// `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, both with `nbds` for TLS, that
    /// then has `tls-certificates=DIR` behind the question mark.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |what: &str| {
            Error::Invalid(format!(
                "{text}: {what}; use nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"
            ))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("no URI"))?;
        let (secure, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(bad("not a scheme of NBD")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export).ok_or_else(|| bad("the export's name is no text"))?;
        if export.len() > limits::NBD_MAX_STRING || export.contains('\0') {
            return Err(bad("the export's name is too long, or has a NUL"));
        }
        let (mut socket, mut certificates) = (None, None);
        for part in query.split(['&', ';']).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| bad("a parameter is empty"))?;
            let value = decode(value).map(PathBuf::from);
            match key {
                "socket" => socket = value,
                "tls-certificates" => certificates = value,
                _ => return Err(bad(&format!("no such parameter: {key}"))),
            }
        }
        let address = match (unix, socket) {
            (true, Some(path)) if host.is_empty() => Address::Unix(path),
            (true, Some(_)) => return Err(bad("a host and a socket")),
            (true, None) => return Err(bad("no socket")),
            (false, Some(_)) => return Err(bad("a socket of a host")),
            (false, None) => tcp(host).ok_or_else(|| bad("no host and port"))?,
        };
        Ok(Self { address, export, secure, certificates })
    }
}

fn tcp(host: &str) -> Option<Address> {
    // An address of version 6 stands in brackets.
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => match host.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| Address::Tcp(host.to_owned(), port))
}

/// Text with its `%xx` resolved.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_taken_apart() {
        let uri = Uri::parse("nbd+unix:///a%20disk?socket=/run/x%2Fy.sock").unwrap();
        assert_eq!(uri.address, Address::Unix("/run/x/y.sock".into()));
        assert_eq!((uri.export.as_str(), uri.secure), ("a disk", false));
        let tcp = |text| Uri::parse(text).unwrap().address;
        assert_eq!(tcp("nbd://localhost"), Address::Tcp("localhost".into(), 10809));
        assert_eq!(tcp("nbd://[::1]:7/x/y"), Address::Tcp("::1".into(), 7));
        let uri = Uri::parse("nbds://h:1/x?tls-certificates=/etc/pki").unwrap();
        assert!(uri.secure && uri.certificates == Some("/etc/pki".into()));
        for text in [
            "disk.img",
            "http://x/",
            "nbd://",
            "nbd://h:99999/",
            "nbd+unix:///x",
            "nbd://h/%zz",
            "nbd://h/x?socket=/y",
            "nbd+unix://h/x?socket=/y",
            "nbd://h/x?y=z",
            "nbd://h/%00",
        ] {
            let error = Uri::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
