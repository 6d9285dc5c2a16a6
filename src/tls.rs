//! TLS: what a handshake that failed means, in words and for what comes next.
//!
//! Architecture invariant: knows rustls and PEM, and neither AMQP nor SQL. Broker and store hand
//! their errors in, and get the same answer for the same fault.

mod files;

use std::error::Error;
use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use self::files::{authorities, check_identity, check_key};

/// What a failed handshake calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// We refuse the server, or the two have no protocol in common: settings have to change, here
    /// or there.
    Mismatch,
    /// The server refuses us: our certificate, or that we have none.
    Refused,
    /// The server's certificate is not valid today. It is the right server, and somebody renews it.
    OutOfDate,
}

/// A failed handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub verdict: Verdict,
    /// What failed, with rustls's own words in it.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// One side's settings, for advice that names them.
#[derive(Clone, Debug)]
pub struct Side {
    pub host: String,
    /// Authorities beside the system's.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub variables: Variables,
}

/// The variables of one side.
#[derive(Clone, Copy, Debug)]
pub struct Variables {
    pub host: &'static str,
    pub port: &'static str,
    /// Whether, or how, a connection is encrypted.
    pub mode: &'static str,
    pub ca_file: &'static str,
    pub cert_file: &'static str,
    pub key_file: &'static str,
}

impl Side {
    /// What `error` means if TLS is at the bottom of it.
    pub fn trouble(&self, error: &(dyn Error + 'static)) -> Option<Trouble> {
        let original = tls_error(error)?;
        let (verdict, what, advice) = self.judge(original)?;
        Some(Trouble { verdict, what: format!("{what} ({original})"), advice })
    }

    fn judge(&self, error: &TlsError) -> Option<(Verdict, String, String)> {
        let Variables { host, port, mode, cert_file, key_file, .. } = self.variables;
        let (verdict, what, advice) = match error {
            TlsError::InvalidCertificate(reason) => return Some(self.judge_certificate(reason)),
            // A first answer that is no TLS record: the peer speaks plaintext.
            TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => (
                Verdict::Mismatch,
                "the server does not speak TLS on this port".to_owned(),
                format!("Check {port}, {mode}, and that the server listens with TLS there"),
            ),
            TlsError::PeerIncompatible(_)
            | TlsError::AlertReceived(
                AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity
                | AlertDescription::HandshakeFailure,
            ) => (
                Verdict::Mismatch,
                "the server and we have no TLS version and cipher in common".to_owned(),
                format!(
                    "Allow TLS 1.2 or 1.3 on the server; if it asks for a client's certificate, \
                     check {cert_file}, too"
                ),
            ),
            TlsError::AlertReceived(alert) if is_about_our_certificate(*alert) => {
                let what = match &self.cert_file {
                    None => {
                        "the server asks for a client's certificate and we have none".to_owned()
                    }
                    Some(path) => format!("the server refuses our certificate {}", path.display()),
                };
                (
                    Verdict::Refused,
                    what,
                    format!(
                        "Set {cert_file} and {key_file} to a certificate that is valid today and \
                         signed by an authority that the server trusts for clients"
                    ),
                )
            }
            TlsError::InconsistentKeys(_) => (
                Verdict::Mismatch,
                "the private key does not belong to our certificate".to_owned(),
                format!("Check {cert_file} and {key_file}"),
            ),
            TlsError::UnsupportedNameType => (
                Verdict::Mismatch,
                format!("{:?} is no name that a certificate can have", self.host),
                format!("Check {host}"),
            ),
            _ => return None,
        };
        Some((verdict, what, advice))
    }

    fn judge_certificate(&self, reason: &CertificateError) -> (Verdict, String, String) {
        use CertificateError as E;
        let Variables { host, ca_file, .. } = self.variables;
        let renew = || {
            "Renew it on the server, and check this machine's clock; it is tried again until then"
                .to_owned()
        };
        match reason {
            E::UnknownIssuer => (
                Verdict::Mismatch,
                "the server's certificate is not signed by an authority that we trust".to_owned(),
                match &self.ca_file {
                    Some(path) => format!(
                        "Check that {ca_file} ({}) holds the authority that signed it",
                        path.display()
                    ),
                    None => format!(
                        "Set {ca_file} to the certificate of the authority that signed it; now \
                         only the system's authorities are trusted"
                    ),
                },
            ),
            E::NotValidForName | E::NotValidForNameContext { .. } => (
                Verdict::Mismatch,
                format!("the server's certificate does not name the host {:?}", self.host),
                format!("Check {host}, or have the certificate issued for that name"),
            ),
            E::Expired => {
                (Verdict::OutOfDate, "the server's certificate has expired".to_owned(), renew())
            }
            E::ExpiredContext { not_after, .. } => (
                Verdict::OutOfDate,
                format!("the server's certificate has expired on {}", date(not_after.as_secs())),
                renew(),
            ),
            E::NotValidYet => (
                Verdict::OutOfDate,
                "the server's certificate is not valid yet".to_owned(),
                renew(),
            ),
            E::NotValidYetContext { not_before, .. } => (
                Verdict::OutOfDate,
                format!(
                    "the server's certificate is not valid before {}",
                    date(not_before.as_secs())
                ),
                renew(),
            ),
            _ => (
                Verdict::Mismatch,
                "the server's certificate is not acceptable".to_owned(),
                format!(
                    "Have it issued anew, by an authority in {ca_file} and for use by a server"
                ),
            ),
        }
    }
}

impl Trouble {
    /// The whole message, with the place of the server.
    pub fn at(&self, place: &str) -> String {
        format!("{}; {place}. {}", self.what, self.advice)
    }
}

/// The alerts that a server sends when a client's certificate is missing or not to its liking.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// rustls's error at the bottom of another. An `io::Error` hides what it holds from `source`.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn date(unix_seconds: u64) -> String {
    let date = i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok());
    date.unwrap_or_else(|| "a date out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::UnixTime;

    use super::*;

    fn side(ca_file: Option<&str>, cert_file: Option<&str>) -> Side {
        Side {
            host: "mq.example".to_owned(),
            ca_file: ca_file.map(PathBuf::from),
            cert_file: cert_file.map(PathBuf::from),
            variables: Variables {
                host: "THE_HOST",
                port: "THE_PORT",
                mode: "THE_MODE",
                ca_file: "THE_CA",
                cert_file: "THE_CERT",
                key_file: "THE_KEY",
            },
        }
    }

    fn trouble(side: &Side, error: TlsError) -> Trouble {
        // As a socket reports it.
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        side.trouble(&error).expect("TLS is at the bottom of it")
    }

    #[test]
    fn every_trouble_says_what_and_what_to_do_and_keeps_the_original() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let certificate = TlsError::InvalidCertificate;
        let cases = [
            (
                certificate(CertificateError::UnknownIssuer),
                Verdict::Mismatch,
                "UnknownIssuer",
                "THE_CA",
            ),
            (
                certificate(CertificateError::NotValidForName),
                Verdict::Mismatch,
                "mq.example",
                "THE_HOST",
            ),
            (certificate(CertificateError::Revoked), Verdict::Mismatch, "Revoked", "THE_CA"),
            (
                certificate(CertificateError::ExpiredContext { time: at(9), not_after: at(3) }),
                Verdict::OutOfDate,
                "1970-01-01T00:00:03Z",
                "Renew",
            ),
            (
                certificate(CertificateError::NotValidYetContext {
                    time: at(3),
                    not_before: at(9),
                }),
                Verdict::OutOfDate,
                "1970-01-01T00:00:09Z",
                "clock",
            ),
            (
                TlsError::InvalidMessage(InvalidMessage::InvalidContentType),
                Verdict::Mismatch,
                "does not speak TLS",
                "THE_PORT",
            ),
            (
                TlsError::AlertReceived(AlertDescription::HandshakeFailure),
                Verdict::Mismatch,
                "HandshakeFailure",
                "TLS 1.2",
            ),
            (
                TlsError::AlertReceived(AlertDescription::UnknownCA),
                Verdict::Refused,
                "UnknownCA",
                "THE_KEY",
            ),
        ];
        for (error, verdict, what, advice) in cases {
            let original = error.to_string();
            let trouble = trouble(&side(None, None), error);
            assert_eq!(trouble.verdict, verdict, "{trouble:?}");
            assert!(trouble.what.contains(what), "{trouble:?}");
            assert!(trouble.what.contains(&original), "{trouble:?}");
            assert!(trouble.advice.contains(advice), "{trouble:?}");
        }
    }

    #[test]
    fn files_are_named_when_there_are_any() {
        let unknown = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let alert = || TlsError::AlertReceived(AlertDescription::CertificateExpired);
        let files = side(Some("/etc/ca.pem"), Some("/etc/cert.pem"));
        assert!(trouble(&files, unknown()).advice.contains("/etc/ca.pem"));
        assert!(trouble(&files, alert()).what.contains("/etc/cert.pem"));
        let none = side(None, None);
        assert!(trouble(&none, unknown()).advice.contains("system's"));
        assert!(trouble(&none, alert()).what.contains("we have none"));
    }

    #[test]
    fn what_is_no_trouble_of_tls_is_left_alone() {
        let side = side(None, None);
        for error in [
            io::Error::from(io::ErrorKind::ConnectionReset),
            io::Error::other("closed"),
            // The peer may only be about to stop.
            io::Error::other(TlsError::AlertReceived(AlertDescription::InternalError)),
        ] {
            assert_eq!(side.trouble(&error), None, "{error}");
        }
    }

    #[test]
    fn an_error_is_found_however_deep() {
        let tls = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let deep = io::Error::other(io::Error::other(tls));
        assert!(side(None, None).trouble(&deep).is_some());
    }
}
