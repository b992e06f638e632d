//! Certificates as they stand in files of other people's making.
//!
//! The parser takes a file without a PEM block for an empty one, and does not see the first block
//! behind a byte order mark. Here both are faults, with what the file seems to be.

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Why a file gives no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It can't be read.
    #[error("certificate file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error("certificate file {} {found}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        found: String,
    },
}

/// Reads all certificates of a file, at least one.
///
/// # Errors
/// The file can't be read, holds no certificate, or one that can't be decoded.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let bytes = std::fs::read(path).map_err(|source| PemError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes).map_err(|found| PemError::Content {
        path: path.to_owned(),
        found,
    })
}

/// Reads a file of authorities' certificates into a set of roots.
///
/// # Errors
/// As [`certificates`]; or one of them is no certificate.
pub fn add_roots(path: &Path, roots: &mut RootCertStore) -> Result<(), PemError> {
    for (index, certificate) in certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| PemError::Content {
            path: path.to_owned(),
            found: format!("has a bad certificate, number {}: {error}", index + 1),
        })?;
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    if text.contains("-----BEGIN TRUSTED CERTIFICATE-----") {
        return Err(
            "has a TRUSTED CERTIFICATE of openssl, which is another format: write it anew with \
             openssl x509 -in FILE"
                .into(),
        );
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is damaged PEM: {error}"))?;
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    Err(if bytes.iter().all(u8::is_ascii_whitespace) {
        "is empty".into()
    } else if bytes.starts_with(&[0x30, 0x82]) {
        "is DER, it must be PEM: write it anew with openssl x509 -inform DER -in FILE".into()
    } else {
        "holds no certificate, it must be PEM with -----BEGIN CERTIFICATE-----".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate in name only: it is decoded, not verified.
    const BLOCK: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_file_without_certificates_says_what_it_is() {
        for (bytes, expected) in [
            (&b""[..], "is empty"),
            (b" \n", "is empty"),
            (b"\x30\x82\x01\x00", "is DER, it must be PEM"),
            (b"not pem", "holds no certificate"),
            (
                b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n",
                "is damaged PEM",
            ),
            (
                b"-----BEGIN TRUSTED CERTIFICATE-----\nMAA=\n-----END TRUSTED CERTIFICATE-----\n",
                "has a TRUSTED CERTIFICATE",
            ),
        ] {
            let fault = parse(bytes).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn all_certificates_are_found_behind_a_byte_order_mark_and_between_text() {
        for (text, count) in [
            (format!("\u{feff}{BLOCK}"), 1),
            (format!("\u{feff}{BLOCK}# and\r\n{BLOCK}"), 2),
            (format!("a text\n{BLOCK}"), 1),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().len(), count, "{text:?}");
        }
    }
}
