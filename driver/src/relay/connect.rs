//! How a shipper is connected to: unix socket or TCP, TLS, and the token of the host.

use super::endpoints::{Candidate, Target};
use super::resolve::LookupError;
use crate::blocking::blocking;
use crate::config::{Config, Endpoint};
use hyper_util::rt::TokioIo;
use proto::limits::{MESSAGE_BYTES_MAX, RESPONSE_BYTES_MAX};
use proto::relay::relay_client::RelayClient;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// How long an endpoint may take to answer.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);

/// A dead peer is found within the sum of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Receive windows of HTTP/2. Responses are small, and must never wait.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;

/// A connection to a shipper.
pub(crate) type Client = RelayClient<InterceptedService<Channel, Bearer>>;

/// Adds the host's token to every request.
#[derive(Clone)]
pub(crate) struct Bearer {
    token: Option<MetadataValue<Ascii>>,
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "[redacted]");
        f.debug_struct("Bearer").field("token", &token).finish()
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// An endpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A certificate, key or token could not be read.
    #[error("could not read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A token file has something else in it.
    #[error("{} holds no token: one line of visible ASCII", path.display())]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// Nobody is there, or TLS failed.
    #[error("could not connect")]
    Transport(#[from] tonic::transport::Error),
    /// Somebody is there and says nothing.
    #[error("no connection within {} s", CONNECT_WAIT_MAX.as_secs())]
    Timeout,
    /// Nobody knows where it is.
    #[error(transparent)]
    Lookup(Arc<LookupError>),
}

/// Connects to a candidate.
///
/// # Errors
/// See [`ConnectError`].
pub(super) async fn connect(
    config: &Config,
    candidate: &Candidate,
) -> Result<Client, ConnectError> {
    let token = match &config.shipper_token_file {
        Some(path) => Some(bearer(path, &read(path).await?)?),
        None => None,
    };
    let channel = match &candidate.target {
        Target::Unresolved(error) => return Err(ConnectError::Lookup(Arc::clone(error))),
        Target::Socket(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
            });
            let tuned = tune(Channel::from_static("http://shipper"));
            timeout(CONNECT_WAIT_MAX, tuned.connect_with_connector(connector)).await
        }
        Target::Address(address) => {
            let address = *address;
            let connector = tower::service_fn(move |_: http::Uri| async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            });
            let tuned = tuned(config, &candidate.endpoint).await?;
            timeout(CONNECT_WAIT_MAX, tuned.connect_with_connector(connector)).await
        }
    };
    let channel = channel.map_err(|_| ConnectError::Timeout)??;
    let client = RelayClient::with_interceptor(channel, Bearer { token });
    Ok(client
        .max_decoding_message_size(RESPONSE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// Returns how to speak to an endpoint, whichever of its addresses is connected to: a certificate
/// vouches for its name.
async fn tuned(
    config: &Config,
    endpoint: &Endpoint,
) -> Result<tonic::transport::Endpoint, ConnectError> {
    let uri = endpoint.to_string();
    let tuned = tune(Channel::from_shared(uri).map_err(|_| ConnectError::Timeout)?);
    match endpoint {
        Endpoint::Https(_) => Ok(tuned.tls_config(tls(config).await?)?),
        Endpoint::Unix(_) | Endpoint::Http(_) => Ok(tuned),
    }
}

/// Reads certificates anew at every connection: they are rotated while the driver runs.
async fn tls(config: &Config) -> Result<ClientTlsConfig, ConnectError> {
    let mut tls = ClientTlsConfig::new();
    if let Some(path) = &config.shipper_ca_file {
        tls = tls.ca_certificate(Certificate::from_pem(read(path).await?));
    }
    if let Some((certificate, key)) = &config.shipper_identity_files {
        tls = tls.identity(Identity::from_pem(
            read(certificate).await?,
            read(key).await?,
        ));
    }
    Ok(tls)
}

fn tune(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .connect_timeout(CONNECT_WAIT_MAX)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_WAIT_MAX)
        .keep_alive_while_idle(true)
}

async fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let owned = path.to_path_buf();
    let read = blocking(move || std::fs::read(owned)).await;
    let read = read.unwrap_or_else(|| Err(std::io::ErrorKind::Other.into()));
    read.map_err(|source| ConnectError::File {
        path: path.to_path_buf(),
        source,
    })
}

fn bearer(path: &Path, content: &[u8]) -> Result<MetadataValue<Ascii>, ConnectError> {
    let token_error = || ConnectError::Token {
        path: path.to_path_buf(),
    };
    let token = std::str::from_utf8(content)
        .map_err(|_| token_error())?
        .trim();
    if token.is_empty() {
        return Err(token_error());
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| token_error())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_and_never_shown() {
        let path = Path::new("/token");
        let token = bearer(path, b"  s3cret\n").unwrap();
        assert_eq!(token.to_str().unwrap(), "Bearer s3cret");
        let bearer_of = Bearer { token: Some(token) };
        assert!(!format!("{bearer_of:?}").contains("s3cret"));
        for bad in [&b""[..], b" \n", b"a\nb", b"\xff"] {
            assert!(bearer(path, bad).is_err(), "{bad:?}");
        }
    }
}
