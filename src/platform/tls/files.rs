//! Whether PEM files hold what their settings say. Checked at start: otherwise a mistake would show
//! only in a failed handshake.

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};

/// The number of authorities in a PEM file.
///
/// # Errors
/// What is wrong with the file, to follow its name.
pub fn authorities(pem: &[u8]) -> Result<usize, String> {
    let mut store = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates(pem)?) {
        store.add(certificate).map_err(|error| {
            format!("holds a certificate, number {number} in it, that cannot be read ({error})")
        })?;
    }
    Ok(store.len())
}

/// Whether a PEM file holds a private key that can be used.
///
/// # Errors
/// What is wrong with the file, to follow its name.
pub fn check_key(pem: &[u8]) -> Result<(), String> {
    let key = private_key(pem)?;
    let usable = rustls::crypto::ring::sign::any_supported_type(&key);
    usable.map(drop).map_err(|error| format!("holds a private key that cannot be used ({error})"))
}

/// Whether a private key is that of a certificate, both PEM.
///
/// # Errors
/// What is wrong with the file of the certificate, to follow its name.
pub fn check_identity(certificate: &[u8], key: &[u8]) -> Result<(), String> {
    let chain = certificates(certificate)?;
    // The file of the key reports a key that cannot be used.
    let Ok(key) = private_key(key) else { return Ok(()) };
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(chain, key, &provider) {
        Ok(_) => Ok(()),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err("is not the certificate of the private key".to_owned())
        }
        Err(error) => Err(format!("holds a certificate that cannot be used ({error})")),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(none) if none.is_empty() => Err("holds no certificate in PEM form".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("is not a PEM file of certificates ({error})")),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(error) => {
            let text = String::from_utf8_lossy(pem);
            let encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
            // Not the error's words: they may quote a line of the key.
            Err(match error {
                _ if encrypted.iter().any(|mark| text.contains(mark)) => {
                    "is encrypted with a passphrase, which cannot be entered".to_owned()
                }
                PemError::NoItemsFound => "holds no private key in PEM form".to_owned(),
                _ => "is not a PEM file of a private key".to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn certificate(is_ca: IsCa) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    const CA: IsCa = IsCa::Ca(BasicConstraints::Unconstrained);
    const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const TORN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n";

    #[test]
    fn authorities_are_counted_and_anything_else_is_refused() {
        let (one, key) = certificate(CA);
        let (two, _) = certificate(CA);
        assert_eq!(authorities(one.as_bytes()), Ok(1));
        assert_eq!(authorities(format!("a comment\n{one}\n{two}").as_bytes()), Ok(2));
        let broken_second = format!("{one}{BROKEN}");
        for (pem, wrong) in [
            ("", "no certificate"),
            ("x", "no certificate"),
            (&key, "no certificate"),
            (BROKEN, "number 1"),
            (&broken_second, "number 2"),
            (TORN, "not a PEM file"),
        ] {
            let refused = authorities(pem.as_bytes()).expect_err("refused");
            assert!(refused.contains(wrong), "{pem}: {refused}");
        }
    }

    #[test]
    fn a_key_must_be_one_and_the_certificates() {
        let (certificate_pem, key) = certificate(IsCa::NoCa);
        let (other, _) = certificate(IsCa::NoCa);
        assert_eq!(check_key(key.as_bytes()), Ok(()));
        assert_eq!(check_identity(certificate_pem.as_bytes(), key.as_bytes()), Ok(()));
        let mismatch = check_identity(other.as_bytes(), key.as_bytes());
        assert!(mismatch.expect_err("another's").contains("private key"));
        assert!(check_identity(BROKEN.as_bytes(), key.as_bytes()).is_err());
        for (pem, wrong) in [
            ("x", "no private key"),
            (certificate_pem.as_str(), "no private key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot be used"),
            (
                "-----BEGIN PRIVATE KEY-----\n!secret!\n-----END PRIVATE KEY-----\n",
                "not a PEM file",
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "passphrase",
            ),
        ] {
            let refused = check_key(pem.as_bytes()).expect_err("refused");
            assert!(refused.contains(wrong), "{pem}: {refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
    }
}
