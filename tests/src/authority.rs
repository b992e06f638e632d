//! A certificate authority of a test's own, and the identities of servers that it vouches for: good
//! ones, and those that a client must refuse.

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::sync::Arc;

/// An authority that nobody trusts unless a test says so.
pub struct Authority {
    certificate: Certificate,
    key: KeyPair,
    pem: String,
}

/// What a server shows to its clients.
#[derive(Clone)]
pub struct Identity {
    pub(crate) tls: Arc<ServerConfig>,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now and for a long time.
    Now,
    /// Until some years ago.
    Past,
}

impl Authority {
    /// Makes an authority with a key of its own.
    ///
    /// # Errors
    /// If the name can't stand in a certificate, or no key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let pem = certificate.pem();
        Ok(Self {
            certificate,
            key,
            pem,
        })
    }

    /// Returns its certificate as PEM, for those who are to trust it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Vouches for a server with these names and addresses.
    ///
    /// # Errors
    /// If a name can't stand in a certificate, or no key can be made.
    pub fn identity(&self, names: &[&str], validity: Validity) -> anyhow::Result<Identity> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        if validity == Validity::Past {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.certificate, &self.key)?;
        let chain = vec![CertificateDer::from(certificate)];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Identity { tls: Arc::new(tls) })
    }

    /// Vouches for a server on this machine.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub fn loopback(&self) -> anyhow::Result<Identity> {
        self.identity(&["127.0.0.1", "::1", "localhost"], Validity::Now)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;
    use crate::processes::{TOPIC_ID, standin_config};
    use crate::standin::{Clock, Config, Standin};
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{IpAddr, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    async fn standin(identity: Identity) -> Standin {
        let config = Config {
            identity: Some(identity),
            ..standin_config()
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let started = Standin::start(address, config, Clock::system(), None).await;
        started.unwrap()
    }

    /// Asks a stand-in for its counts over TLS, as one who trusts `authority`.
    async fn ask(standin: &Standin, authority: &Authority) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = standin.address();
        let name = ServerName::IpAddress(IpAddr::from(address.ip()));
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(tls));
        let mut stream = connector.connect(name, stream).await?;
        let request = "GET /stats HTTP/1.1\r\nhost: cls\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_standin_speaks_tls_to_those_who_trust_it() {
        let authority = Authority::new("good").unwrap();
        let standin = standin(authority.loopback().unwrap()).await;
        assert!(standin.endpoint().starts_with("https://127.0.0.1:"));
        let answer = ask(&standin, &authority).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // What is no upload is answered without TLS as well.
        let plain = client::call(standin.address(), "GET", "/stats").await;
        assert!(plain.is_ok());
        let path = format!("/structuredlog?topic_id={TOPIC_ID}");
        let refused = client::call(standin.address(), "POST", &path).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("without TLS"), "{refused}");
    }

    #[tokio::test]
    async fn bad_identities_are_refused_for_what_they_are() {
        let authority = Authority::new("good").unwrap();
        let foreign = Authority::new("foreign").unwrap();
        for (identity, expected) in [
            (
                authority.identity(&["127.0.0.1"], Validity::Past),
                "expired",
            ),
            (foreign.loopback(), "UnknownIssuer"),
            (
                authority.identity(&["cls.example.com"], Validity::Now),
                "not valid for name",
            ),
        ] {
            let standin = standin(identity.unwrap()).await;
            let refused = ask(&standin, &authority).await.unwrap_err().to_string();
            assert!(refused.contains(expected), "{expected}: {refused}");
        }
    }
}
