//! The HTTP client of a road: built when it is first needed, and anew when one of its files changes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Url;
use rustls::RootCertStore;
use tracing::{info, warn};

use crate::base::chain::Chain;
use crate::base::pem::{self, PemError};
use crate::base::secret::Secret;
use crate::base::watched::Watched;
use crate::config::road::{Password, Proxy, Road};

/// Idle connections are closed by us first: CLS does not document its own time, and a request on
/// a connection that just closed is a retry and possibly a duplicate.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Bound of the TCP and TLS handshake, inside the request's own timeout; also of a proxy's answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no HTTP client. No variant holds a part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// The authorities can't be read.
    #[error("[upload] ca_file")]
    Roots(#[from] PemError),
    /// A file can't be looked at.
    #[error("a file of [upload]: {}", list(.paths))]
    Look {
        /// The files, one of which it is.
        paths: Vec<PathBuf>,
        /// Why.
        source: std::io::Error,
    },
    /// The proxy's address is none to the HTTP library.
    #[error("[upload] proxy is no address")]
    Proxy,
    /// The HTTP library refuses its configuration.
    #[error("HTTP client")]
    Build(#[source] reqwest::Error),
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

/// A road with its HTTP client.
pub(super) struct OpenRoad {
    road: Road,
    http: Watched<reqwest::Client>,
    fault_count: AtomicU64,
}

/// Shows what the configuration does; the HTTP library would show the proxy's password.
impl fmt::Debug for OpenRoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRoad")
            .field("road", &self.road)
            .finish_non_exhaustive()
    }
}

/// What [`Watched`] needs to tell a file that is gone from one that is bad.
enum ReadError {
    Look(std::io::Error),
    Road(RoadError),
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        Self::Look(error)
    }
}

impl OpenRoad {
    pub(super) fn new(road: Road) -> Self {
        let proxies = [&road.https_proxy, &road.http_proxy].into_iter().flatten();
        let passwords = proxies.filter_map(|proxy| match &proxy.password {
            Some(Password::File(path)) => Some(path),
            _ => None,
        });
        let mut paths: Vec<PathBuf> = road.ca_file.iter().chain(passwords).cloned().collect();
        paths.dedup();
        Self {
            road,
            http: Watched::new(paths),
            fault_count: AtomicU64::new(0),
        }
    }

    pub(super) fn road(&self) -> &Road {
        &self.road
    }

    /// Returns the client as of now. Where a file has changed and can't be used, the last good client
    /// stays in use.
    pub(super) fn http(&self) -> Result<reqwest::Client, RoadError> {
        let read = self
            .http
            .get(|_| build(&self.road).map_err(ReadError::Road));
        let error = match read {
            Ok(http) => {
                if self.fault_count.swap(0, Ordering::Relaxed) > 0 {
                    info!("the files of [upload] can be used again");
                }
                return Ok((*http).clone());
            }
            Err(ReadError::Road(error)) => error,
            Err(ReadError::Look(source)) => RoadError::Look {
                paths: self.http.paths().to_vec(),
                source,
            },
        };
        let Some(last) = self.http.last() else {
            return Err(error);
        };
        let count = self.fault_count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            warn!(error = %Chain(&error), count,
                "a file of [upload] has changed and can't be used, the last good one stays in use");
        }
        Ok((*last).clone())
    }

    /// Returns an error's causes in one line, without the URL, with whose fault it is where that is
    /// known.
    pub(super) fn cause(&self, error: reqwest::Error) -> String {
        let error = error.without_url();
        let (is_late, is_connect) = (error.is_timeout(), error.is_connect());
        let text = Chain(&error).to_string();
        let proxy = self
            .road
            .https_proxy
            .as_ref()
            .or(self.road.http_proxy.as_ref());
        if let Some(proxy) =
            proxy.filter(|_| text.contains("tunnel error") || is_late && is_connect)
        {
            let what = proxy_fault(&text, is_late);
            return format!("the proxy {} {what}: {text}", proxy.url);
        }
        match certificate_hint(&text) {
            Some(hint) => format!("{hint}: {text}"),
            None => text,
        }
    }
}

/// Says what a proxy did, by the words of the HTTP library, which keeps the status to itself.
fn proxy_fault(text: &str, is_late: bool) -> &'static str {
    if is_late {
        "does not answer in time, or does not reach the endpoint"
    } else if text.contains("authorization required") {
        "demands another user or password (407)"
    } else if text.contains("unsuccessful") {
        "refuses to connect us, for its rules or for a wrong password (some say 401 or 403 for that)"
    } else if text.contains("failed to create underlying connection") {
        "can't be reached"
    } else {
        "has broken the connection off"
    }
}

/// Says what is to be done about a certificate that is not accepted.
fn certificate_hint(text: &str) -> Option<&'static str> {
    let hints = [
        (
            "UnknownIssuer",
            "the server's certificate comes from an authority that is not trusted, name it in [upload] ca_file \
             if it is yours",
        ),
        (
            "CaUsedAsEndEntity",
            "the server shows the certificate of an authority as its own, let it sign one for the server",
        ),
        (
            "certificate expired",
            "the server's certificate has expired, or this machine's clock is wrong",
        ),
        (
            "not valid for name",
            "the server's certificate is for another name than the endpoint's",
        ),
        (
            "NotValidForName",
            "the server's certificate is for another name than the endpoint's",
        ),
        (
            "certificate not valid yet",
            "the server's certificate is not valid yet, or this machine's clock is wrong",
        ),
    ];
    let hint = hints.iter().find(|(word, _)| text.contains(word));
    hint.map(|(_, hint)| *hint)
}

fn build(road: &Road) -> Result<reqwest::Client, RoadError> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = &road.ca_file {
        pem::add_roots(path, &mut roots)?;
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("ring supports the default protocol versions")
    .with_root_certificates(roots)
    .with_no_client_auth();
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("cls-docker-log-driver/", env!("CARGO_PKG_VERSION")))
        .pool_idle_timeout(IDLE_MAX)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    let builder = match proxy(road)? {
        Some(proxy) => builder.proxy(proxy),
        None => builder,
    };
    builder.build().map_err(RoadError::Build)
}

fn proxy(road: &Road) -> Result<Option<reqwest::Proxy>, RoadError> {
    let https = road.https_proxy.as_ref().map(proxy_url).transpose()?;
    let http = road.http_proxy.as_ref().map(proxy_url).transpose()?;
    if https.is_none() && http.is_none() {
        return Ok(None);
    }
    let no_proxy = road.no_proxy.clone();
    Ok(Some(reqwest::Proxy::custom(move |url| {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let is_direct = no_proxy.matches(host, port);
        let proxy = if url.scheme() == "https" {
            &https
        } else {
            &http
        };
        proxy.clone().filter(|_| !is_direct)
    })))
}

/// Returns a proxy's address with user and password, as the HTTP library wants them.
fn proxy_url(proxy: &Proxy) -> Result<Url, RoadError> {
    let mut url: Url = proxy.url.parse().map_err(|_| RoadError::Proxy)?;
    let password = match &proxy.password {
        None => None,
        Some(Password::Inline(secret)) => Some(secret.clone()),
        Some(Password::File(path)) => {
            let text = std::fs::read_to_string(path).map_err(|source| RoadError::Look {
                paths: vec![path.clone()],
                source,
            })?;
            Some(Secret::new(text.trim().to_owned()))
        }
    };
    let set = url
        .set_username(proxy.user.as_deref().unwrap_or_default())
        .and_then(|()| url.set_password(password.as_ref().map(Secret::expose)));
    set.map_err(|()| RoadError::Proxy)?;
    Ok(url)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    struct Authority(rcgen::Certificate, KeyPair);

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(params.self_signed(&key).unwrap(), key)
        }

        /// A server for `name` that answers 200 to everything.
        async fn serve(&self, name: &str, tasks: &mut JoinSet<()>) -> SocketAddr {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.0, &self.1).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tasks.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        continue;
                    };
                    let read = stream.read(&mut [0; 1024]).await;
                    assert!(read.is_ok());
                    let answer =
                        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    stream.write_all(answer).await.ok();
                    stream.shutdown().await.ok();
                }
            });
            address
        }
    }

    async fn get(road: &OpenRoad, url: &str) -> Result<u16, String> {
        let http = road.http().map_err(|error| Chain(&error).to_string())?;
        let sent = http.get(url).timeout(Duration::from_secs(8)).send().await;
        sent.map(|answer| answer.status().as_u16())
            .map_err(|error| road.cause(error))
    }

    fn trusting(path: &Path) -> OpenRoad {
        OpenRoad::new(Road {
            ca_file: Some(path.to_owned()),
            ..Road::default()
        })
    }

    #[tokio::test]
    async fn authorities_are_added_and_read_again_when_the_file_changes() {
        let mut tasks = JoinSet::new();
        let [first, second] = [Authority::new(), Authority::new()];
        let of_first = first.serve("localhost", &mut tasks).await.port();
        let of_second = second.serve("localhost", &mut tasks).await.port();
        let [of_first, of_second] =
            [of_first, of_second].map(|port| format!("https://localhost:{port}"));
        let foreign = get(&OpenRoad::new(Road::default()), &of_first)
            .await
            .unwrap_err();
        assert!(
            foreign.contains("not trusted, name it in [upload] ca_file"),
            "{foreign}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let road = trusting(&path);
        let missing = get(&road, &of_first).await.unwrap_err();
        assert!(missing.contains("ca.pem"), "{missing}");
        std::fs::write(&path, format!("\u{feff}{}", first.0.pem())).unwrap();
        assert_eq!(get(&road, &of_first).await, Ok(200));
        assert!(get(&road, &of_second).await.is_err());
        std::fs::write(&path, first.0.pem() + &second.0.pem()).unwrap();
        assert_eq!(get(&road, &of_second).await, Ok(200));
        std::fs::write(&path, "gone").unwrap();
        assert_eq!(
            get(&road, &of_first).await,
            Ok(200),
            "the last good file counts"
        );
        let fresh = get(&trusting(&path), &of_first).await.unwrap_err();
        assert!(fresh.contains("holds no certificate"), "{fresh}");
        let other = first.serve("other.example", &mut tasks).await.port();
        std::fs::write(&path, first.0.pem()).unwrap();
        let misnamed = get(&road, &format!("https://localhost:{other}"))
            .await
            .unwrap_err();
        assert!(misnamed.contains("is for another name"), "{misnamed}");
    }

    /// A proxy that answers every CONNECT with `answer`, or with nothing.
    async fn proxy(answer: &'static str, tasks: &mut JoinSet<()>) -> OpenRoad {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                // The base64 of us@er:p:ss.
                let login = "proxy-authorization: Basic dXNAZXI6cDpzcw==";
                assert!(request.starts_with("CONNECT cls.example:443 "), "{request}");
                assert!(request.contains(login), "{request}");
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        via(url)
    }

    fn via(url: String) -> OpenRoad {
        let password = Some(Password::Inline(Secret::new("p:ss".into())));
        OpenRoad::new(Road {
            https_proxy: Some(Proxy {
                url,
                user: Some("us@er".into()),
                password,
            }),
            no_proxy: crate::config::road::NoProxy::parse(["localhost"]).unwrap(),
            ..Road::default()
        })
    }

    #[tokio::test]
    async fn what_a_proxy_does_is_named_as_its_fault() {
        let mut tasks = JoinSet::new();
        for (answer, expected) in [
            (
                "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n",
                "demands another user or password",
            ),
            (
                "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
                "refuses to connect us",
            ),
            (
                "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
                "refuses to connect us",
            ),
            ("", "has broken the connection off"),
        ] {
            let road = proxy(answer, &mut tasks).await;
            let fault = get(&road, "https://cls.example/").await.unwrap_err();
            assert!(fault.starts_with("the proxy http://127.0.0.1:"), "{fault}");
            assert!(fault.contains(expected), "{fault}");
            let shown = format!("{fault} {road:?}");
            assert!(!shown.contains("p:ss"), "{shown}");
        }
        let closed = via("http://127.0.0.1:1".into());
        let fault = get(&closed, "https://cls.example/").await.unwrap_err();
        assert!(fault.contains("can't be reached"), "{fault}");
        let direct = get(&closed, "https://localhost:1/").await.unwrap_err();
        assert!(!direct.contains("proxy"), "{direct}");
    }
}
