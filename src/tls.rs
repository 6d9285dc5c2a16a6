//! TLS: what a failed handshake means, and what to do about it.
//!
//! Architecture invariant: knows rustls and PEM, and neither AMQP nor SQL. Broker and store pass
//! their errors in, and get the same answer for the same fault.

mod files;

use std::error::Error;
use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};

pub use self::files::{authorities, check_identity, check_key};

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailureKind {
    /// No trusted authority signed the server's certificate.
    UnknownIssuer,
    /// The server's certificate is for other names than the configured host.
    WrongName,
    /// The server's certificate has expired or is not valid yet.
    OutOfDate,
    /// The server's certificate is not acceptable for another reason.
    InvalidCertificate,
    /// The server does not speak TLS on this port.
    Plaintext,
    /// Client and server have no TLS version or cipher in common.
    NoCommonVersion,
    /// The server requires a client certificate, or does not accept ours.
    ClientCertificate,
    /// Our private key does not belong to our certificate.
    KeyMismatch,
    /// The configured host is not a name that a certificate can have.
    InvalidHost,
}

/// A failed handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFailure {
    pub kind: TlsFailureKind,
    /// What rustls says.
    pub text: String,
}

/// The settings of one server's connection, for a remedy that names them.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The configured authorities, beside the system's.
    pub authorities: Option<PathBuf>,
    /// The names of the variables.
    pub variables: &'static Variables,
}

/// The variables of one server's connection.
#[derive(Debug)]
pub struct Variables {
    pub host: &'static str,
    pub port: &'static str,
    /// Whether, or how, a connection is encrypted.
    pub mode: &'static str,
    pub ca_file: &'static str,
    pub cert_file: &'static str,
    pub key_file: &'static str,
}

impl TlsFailureKind {
    fn of(error: &TlsError) -> Option<Self> {
        use AlertDescription::{HandshakeFailure, InsufficientSecurity, ProtocolVersion};
        use CertificateError as E;
        Some(match error {
            TlsError::InvalidCertificate(reason) => match reason {
                E::UnknownIssuer => Self::UnknownIssuer,
                E::NotValidForName | E::NotValidForNameContext { .. } => Self::WrongName,
                E::Expired
                | E::ExpiredContext { .. }
                | E::NotValidYet
                | E::NotValidYetContext { .. } => Self::OutOfDate,
                _ => Self::InvalidCertificate,
            },
            // A first answer that is not a TLS record.
            TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Plaintext,
            TlsError::PeerIncompatible(_)
            | TlsError::AlertReceived(ProtocolVersion | InsufficientSecurity | HandshakeFailure) => {
                Self::NoCommonVersion
            }
            TlsError::AlertReceived(alert) if is_about_our_certificate(*alert) => {
                Self::ClientCertificate
            }
            TlsError::InconsistentKeys(_) => Self::KeyMismatch,
            TlsError::UnsupportedNameType => Self::InvalidHost,
            _ => return None,
        })
    }
}

impl TlsFailure {
    /// Returns the failure if `error` is about TLS.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let error = tls_error(error)?;
        Some(Self { kind: TlsFailureKind::of(error)?, text: error.to_string() })
    }

    /// Returns the whole message: what failed, for which server, and what to do.
    pub fn message(&self, place: &str, settings: &TlsSettings) -> String {
        let Variables { host, port, mode, ca_file, cert_file, key_file } = settings.variables;
        let remedy = match self.kind {
            TlsFailureKind::UnknownIssuer => match &settings.authorities {
                Some(path) => format!(
                    "Check that {ca_file} ({}) holds the authority that signed the server's \
                     certificate",
                    path.display()
                ),
                None => format!(
                    "Set {ca_file} to the certificate of the authority that signed the server's \
                     certificate; now only the system's authorities are trusted"
                ),
            },
            TlsFailureKind::WrongName => {
                format!("Check {host}, or have the server's certificate issued for that name")
            }
            TlsFailureKind::OutOfDate => "Renew it on the server, and check this machine's clock; \
                                          the service retries until then"
                .to_owned(),
            TlsFailureKind::InvalidCertificate => format!(
                "Have the server's certificate issued again, by an authority in {ca_file} and for \
                 use by a server"
            ),
            TlsFailureKind::Plaintext => format!(
                "The server does not speak TLS on this port: check {port}, {mode}, and that the \
                 server listens with TLS there"
            ),
            TlsFailureKind::NoCommonVersion => format!(
                "Allow TLS 1.2 or 1.3 on the server; if it asks for a client certificate, check \
                 {cert_file}, too"
            ),
            TlsFailureKind::ClientCertificate => format!(
                "The server refuses our certificate, or requires one: set {cert_file} and \
                 {key_file} to a certificate that is valid today and signed by an authority that the \
                 server trusts for clients"
            ),
            TlsFailureKind::KeyMismatch => format!("Check {cert_file} and {key_file}"),
            TlsFailureKind::InvalidHost => format!("Check {host}"),
        };
        format!("{}; {place}. {remedy}", self.text)
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

#[cfg(test)]
mod tests {
    use super::*;

    static VARIABLES: Variables = Variables {
        host: "THE_HOST",
        port: "THE_PORT",
        mode: "THE_MODE",
        ca_file: "THE_CA",
        cert_file: "THE_CERT",
        key_file: "THE_KEY",
    };

    fn failure(error: TlsError) -> TlsFailure {
        // As a socket reports it, however deep.
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        TlsFailure::of(&error).expect("it is about TLS")
    }

    #[test]
    fn a_message_says_what_failed_where_and_what_to_do() {
        let certificate = TlsError::InvalidCertificate;
        for (error, kind, named) in [
            (
                certificate(CertificateError::UnknownIssuer),
                TlsFailureKind::UnknownIssuer,
                "Set THE_CA",
            ),
            (
                certificate(CertificateError::NotValidForName),
                TlsFailureKind::WrongName,
                "Check THE_HOST",
            ),
            (
                certificate(CertificateError::Revoked),
                TlsFailureKind::InvalidCertificate,
                "authority in THE_CA",
            ),
            (certificate(CertificateError::Expired), TlsFailureKind::OutOfDate, "Renew"),
            (certificate(CertificateError::NotValidYet), TlsFailureKind::OutOfDate, "clock"),
            (
                TlsError::InvalidMessage(InvalidMessage::InvalidContentType),
                TlsFailureKind::Plaintext,
                "THE_PORT, THE_MODE",
            ),
            (
                TlsError::AlertReceived(AlertDescription::HandshakeFailure),
                TlsFailureKind::NoCommonVersion,
                "TLS 1.2",
            ),
            (
                TlsError::AlertReceived(AlertDescription::UnknownCA),
                TlsFailureKind::ClientCertificate,
                "set THE_CERT and THE_KEY",
            ),
        ] {
            let text = error.to_string();
            let failure = failure(error);
            assert_eq!(failure.kind, kind);
            let settings = TlsSettings { authorities: None, variables: &VARIABLES };
            let message = failure.message("RabbitMQ on mq.example", &settings);
            assert!(message.starts_with(&format!("{text}; RabbitMQ on mq.example. ")), "{message}");
            assert!(message.contains(named), "{message}");
        }
        let unknown = failure(certificate(CertificateError::UnknownIssuer));
        let path = Some(PathBuf::from("/etc/ca.pem"));
        let settings = TlsSettings { authorities: path, variables: &VARIABLES };
        assert!(unknown.message("", &settings).contains("THE_CA (/etc/ca.pem)"));
    }

    #[test]
    fn other_errors_are_not_about_tls() {
        for error in [
            io::Error::from(io::ErrorKind::ConnectionReset),
            io::Error::other("closed"),
            // The peer may only be about to stop.
            io::Error::other(TlsError::AlertReceived(AlertDescription::InternalError)),
        ] {
            assert_eq!(TlsFailure::of(&error), None, "{error}");
        }
    }
}
