//! TLS: what a failed handshake means, and what to do about it.
//!
//! Architecture invariant: knows rustls and PEM, and neither AMQP nor SQL. Broker and store pass
//! their errors in, and get the same answer for the same fault.

mod files;

use std::error::Error;
use std::io;
use std::path::Path;

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};

pub use self::files::{authorities, check_identity, check_key};

/// What a failed handshake calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailureKind {
    /// We refuse the server, or have no protocol in common with it: settings have to change.
    Untrusted,
    /// The server requires a client certificate, or does not accept ours.
    ClientCertificate,
    /// The server's certificate has expired or is not valid yet. It can be renewed meanwhile.
    OutOfDate,
}

/// A failed handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFailure {
    pub kind: TlsFailureKind,
    /// What rustls says.
    pub text: String,
}

/// The variables of one server's connection, for remedies.
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

impl TlsFailure {
    /// Returns the failure if `error` is about TLS.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        use AlertDescription as Alert;
        use CertificateError as E;
        let error = tls_error(error)?;
        let kind = match error {
            TlsError::InvalidCertificate(
                E::Expired
                | E::ExpiredContext { .. }
                | E::NotValidYet
                | E::NotValidYetContext { .. },
            ) => TlsFailureKind::OutOfDate,
            // A client's certificate is missing, or the server does not accept it.
            TlsError::AlertReceived(
                Alert::CertificateRequired
                | Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied,
            ) => TlsFailureKind::ClientCertificate,
            TlsError::InvalidCertificate(_)
            // A first answer that is not a TLS record.
            | TlsError::InvalidMessage(InvalidMessage::InvalidContentType)
            | TlsError::PeerIncompatible(_)
            | TlsError::AlertReceived(
                Alert::ProtocolVersion | Alert::InsufficientSecurity | Alert::HandshakeFailure,
            )
            | TlsError::InconsistentKeys(_)
            | TlsError::UnsupportedNameType => TlsFailureKind::Untrusted,
            _ => return None,
        };
        Some(Self { kind, text: error.to_string() })
    }

    /// Returns the whole message: what failed, for which server, and what to do. `authorities` is the
    /// configured file.
    pub fn message(
        &self,
        place: &str,
        variables: &Variables,
        authorities: Option<&Path>,
    ) -> String {
        let Variables { host, port, mode, ca_file, cert_file, key_file } = variables;
        let remedy = match self.kind {
            TlsFailureKind::Untrusted => {
                let authorities = match authorities {
                    Some(path) => format!("those of {ca_file} ({})", path.display()),
                    None => format!("the system's alone, since {ca_file} is not set"),
                };
                format!(
                    "Check that {host} is a name in the server's certificate, that the server \
                     listens with TLS 1.2 or 1.3 on {port} ({mode}), and that a trusted authority \
                     signed its certificate; trusted are {authorities}. If it asks for a client's \
                     certificate, set {cert_file} and {key_file}"
                )
            }
            TlsFailureKind::ClientCertificate => format!(
                "The server refuses the client certificate, or requires one: set {cert_file} and \
                 {key_file} to a certificate that is valid today and signed by an authority that \
                 the server trusts for clients"
            ),
            TlsFailureKind::OutOfDate => "Renew it on the server, and check this machine's clock; \
                                          the service retries until then"
                .to_owned(),
        };
        format!("{}; {place}. {remedy}", self.text)
    }
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
        use TlsFailureKind::{ClientCertificate, OutOfDate, Untrusted};
        let certificate = TlsError::InvalidCertificate;
        let not_tls = TlsError::InvalidMessage(InvalidMessage::InvalidContentType);
        for (error, kind, named) in [
            (certificate(CertificateError::UnknownIssuer), Untrusted, "THE_CA (/etc/ca.pem)"),
            (certificate(CertificateError::NotValidForName), Untrusted, "THE_HOST"),
            (certificate(CertificateError::Revoked), Untrusted, "THE_CA"),
            (certificate(CertificateError::Expired), OutOfDate, "Renew"),
            (certificate(CertificateError::NotValidYet), OutOfDate, "clock"),
            (not_tls, Untrusted, "THE_PORT (THE_MODE)"),
            (TlsError::AlertReceived(AlertDescription::HandshakeFailure), Untrusted, "TLS 1.2"),
            (
                TlsError::AlertReceived(AlertDescription::UnknownCA),
                ClientCertificate,
                "set THE_CERT and THE_KEY",
            ),
        ] {
            let text = error.to_string();
            let failure = failure(error);
            assert_eq!(failure.kind, kind);
            let ca_file = Some(Path::new("/etc/ca.pem"));
            let message = failure.message("RabbitMQ on mq.example", &VARIABLES, ca_file);
            assert!(message.starts_with(&format!("{text}; RabbitMQ on mq.example. ")), "{message}");
            assert!(message.contains(named), "{message}");
        }
        let unknown = failure(certificate(CertificateError::UnknownIssuer));
        assert!(unknown.message("", &VARIABLES, None).contains("THE_CA is not set"));
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
