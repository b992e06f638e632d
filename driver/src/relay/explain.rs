//! Why a shipper can't be used, and what to do: the causes of an error in one line, with a hint
//! where the cause is a setting.

use super::connect::ConnectError;
use crate::config::Endpoint;
use rustls::{CertificateError, Error as TlsError};
use std::error::Error;
use std::fmt;
use std::io;

/// Bytes of a shipper's text that go into a message: enough for its reason, and no more than a
/// reader of `docker run` or of the engine's log can use.
const SHOWN_BYTES_MAX: usize = 1 << 10;

/// Returns what a shipper wrote as it goes into a message: cut, on one line, and without characters
/// that would steer a terminal.
pub(crate) fn shown(text: &str) -> String {
    proto::text::shown(text, SHOWN_BYTES_MAX)
}

/// What is wrong with an endpoint.
#[derive(Debug)]
pub(crate) struct Explanation {
    cause: String,
    hint: Option<&'static str>,
}

impl Explanation {
    /// Returns an explanation without a hint.
    pub(crate) fn plain(cause: String) -> Self {
        Self { cause, hint: None }
    }

    /// Explains an error: all its causes, and a hint.
    pub(crate) fn new(endpoint: &Endpoint, error: &(dyn Error + 'static)) -> Self {
        let mut text = String::new();
        let mut hint = None;
        let mut cause = Some(error);
        while let Some(error) = cause {
            let sentence = match error.downcast_ref::<tonic::Status>() {
                Some(status) => format!("the call failed: {}", shown(status.message())),
                None => error.to_string(),
            };
            // Some errors quote their cause.
            if !text.ends_with(&sentence) {
                let separator = if text.is_empty() { "" } else { ": " };
                text = format!("{text}{separator}{sentence}");
            }
            hint = hint
                .or_else(|| tls_error(error).map(tls_hint))
                .or_else(|| rights_hint(endpoint, error));
            cause = error.source();
        }
        Self {
            cause: text,
            hint: hint.or_else(|| broken_call_hint(endpoint, error)),
        }
    }

    /// Returns what stays the same while the trouble does: how a connection breaks depends on who
    /// is faster.
    pub(crate) fn kind(&self) -> &str {
        self.hint.unwrap_or(&self.cause)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hint {
            Some(hint) => write!(f, "{}; {hint}", self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

/// Returns the TLS library's error if `error` is one, or carries one.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    let carried = error
        .downcast_ref::<io::Error>()
        .and_then(|error| error.get_ref())
        .and_then(|inner| inner.downcast_ref());
    carried.or_else(|| error.downcast_ref())
}

fn tls_hint(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(fault) => certificate_hint(fault),
        TlsError::InvalidMessage(_) => {
            "this port speaks no TLS: begin SHIPPER with http://, or set [listen.tls] on the shipper"
        }
        TlsError::AlertReceived(_) => {
            "the shipper refuses this host's certificate: SHIPPER_CERT_FILE must be valid now and \
             signed by the shipper's client_ca_file"
        }
        _ => "compare SHIPPER and its certificates with [listen.tls] of the shipper",
    }
}

fn certificate_hint(fault: &CertificateError) -> &'static str {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the shipper's certificate has expired: renew its cert_file, and look at both clocks"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the shipper's certificate is not valid yet: look at both clocks"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "SHIPPER must use a name that is in the shipper's cert_file"
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "SHIPPER_CA_FILE must hold the CA that signed the shipper's cert_file"
        }
        // The library that verifies has no public type for it here.
        other if other.to_string().contains("CaUsedAsEndEntity") => {
            "the shipper's cert_file is that of an authority (CA:TRUE): it needs one that the \
             authority has signed"
        }
        _ => "the shipper's cert_file can't be used",
    }
}

/// Returns a hint for a file or a socket that this process may not touch. Root without capabilities
/// has the rights of any other user where it is not the owner.
fn rights_hint(endpoint: &Endpoint, error: &(dyn Error + 'static)) -> Option<&'static str> {
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    if let Some(ConnectError::File { source, .. }) = error.downcast_ref() {
        return is_refused(source).then_some(
            "the driver is root without capabilities: the file must belong to root or be readable \
             by all, its folder likewise, and it may not lead out of that folder by a symlink that \
             is newer than the driver's start",
        );
    }
    let is_refused_socket = matches!(endpoint, Endpoint::Unix(_))
        && error.downcast_ref::<io::Error>().is_some_and(is_refused);
    is_refused_socket.then_some(
        "the driver is root without capabilities: the shipper must run as root, as \
         docker-compose.yml has it, or listen on tcp",
    )
}

/// Returns a hint for a connection that was made and then broke before it was of use. Under TLS 1.3
/// a client is connected before the server has seen its certificate, and a server that refuses it
/// breaks the connection: whether its alert is read is a matter of time.
fn broken_call_hint(endpoint: &Endpoint, error: &(dyn Error + 'static)) -> Option<&'static str> {
    error.downcast_ref::<tonic::Status>()?.source()?;
    match endpoint {
        Endpoint::Unix(_) => None,
        Endpoint::Http(_) => Some("if the shipper has [listen.tls], begin SHIPPER with https://"),
        Endpoint::Https(_) => Some(
            "if SHIPPER_CERT_FILE is set, it must be valid now and signed by the shipper's \
             client_ca_file; the shipper's log says more",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoint: &str, error: &(dyn Error + 'static), expected: &str) {
        let endpoint = match endpoint.split_once("://") {
            Some(("https", _)) => Endpoint::Https(endpoint.to_owned()),
            _ => Endpoint::Http(endpoint.to_owned()),
        };
        assert_eq!(Explanation::new(&endpoint, error).to_string(), expected);
    }

    #[test]
    fn a_fault_of_tls_says_which_setting_to_look_at() {
        let expired = TlsError::InvalidCertificate(CertificateError::Expired);
        let text = expired.to_string();
        let hint = "the shipper's certificate has expired: renew its cert_file, and look at both \
                    clocks";
        let expected = format!("{text}; {hint}");
        check("https://h:1", &io::Error::other(expired), &expected);
    }

    #[test]
    fn what_a_shipper_says_is_shown_on_one_line_and_in_part() {
        assert_eq!(shown("a rule\n\u{1b}[31mred"), "a rule  [31mred");
        let longest = "é".repeat(SHOWN_BYTES_MAX / 2);
        assert_eq!(shown(&longest), longest);
        assert_eq!(
            shown(&format!("x{longest}")).len(),
            SHOWN_BYTES_MAX - 1 + '…'.len_utf8()
        );
    }

    #[test]
    fn an_authority_that_stands_for_a_shipper_is_named() {
        let verifier = io::Error::other("CaUsedAsEndEntity");
        let other = rustls::OtherError(std::sync::Arc::new(verifier));
        let fault = TlsError::InvalidCertificate(CertificateError::Other(other));
        let endpoint = Endpoint::Https("https://h:1".to_owned());
        let text = Explanation::new(&endpoint, &io::Error::other(fault)).to_string();
        assert!(text.contains("that of an authority (CA:TRUE)"), "{text}");
    }

    #[test]
    fn what_is_no_fault_of_tls_stands_alone() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        check("https://h:1", &refused, "connection refused");
        let status = tonic::Status::unavailable("gone");
        check("http://h:1", &status, "the call failed: gone");
    }

    #[test]
    fn a_file_or_a_socket_that_is_not_the_drivers_says_whose_it_must_be() {
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        let text = refused().to_string();
        let file = ConnectError::File {
            path: "/host/tls/key.pem".into(),
            source: refused(),
        };
        let found = Explanation::new(&Endpoint::Https("https://h:1".into()), &file).to_string();
        let cause = format!("could not read /host/tls/key.pem: {text}; ");
        assert!(found.starts_with(&cause), "{found}");
        assert!(found.contains("must belong to root"), "{found}");
        let socket = Endpoint::Unix("/s".into());
        let found = Explanation::new(&socket, &refused()).to_string();
        assert!(found.contains("the shipper must run as root"), "{found}");
        // A firewall's refusal is something else.
        check("http://h:1", &refused(), &text);
    }

    #[test]
    fn a_call_that_breaks_without_tls_may_want_it() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        let status = tonic::Status::from_error(Box::new(reset));
        let endpoint = Endpoint::Http("http://h:1".to_owned());
        let text = Explanation::new(&endpoint, &status).to_string();
        assert!(text.ends_with("begin SHIPPER with https://"), "{text}");
    }
}
