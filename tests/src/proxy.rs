//! A forward proxy as companies have one: it opens tunnels by `CONNECT`, for those who know its
//! password, and fails in the ways in which such proxies fail.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Bytes of a request's head that are read at most.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What a proxy does with a `CONNECT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// Opens a tunnel for everybody.
    Open,
    /// Demands `user:password`: 407 without one, and this status for a wrong one. squid answers 407,
    /// tinyproxy 401.
    Password {
        /// What opens a tunnel.
        user_and_password: String,
        /// The status for a wrong password.
        wrong_status: u16,
    },
    /// Answers 403: the port may not be reached.
    Forbids,
    /// Closes the connection without an answer.
    Closes,
    /// Takes the request and never answers.
    Silent,
}

/// A running proxy. It stops, and its tunnels end, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    connect_count: AtomicU64,
    tunnel_count: AtomicU64,
}

impl Proxy {
    /// Starts a proxy on a free port of loopback.
    ///
    /// # Errors
    /// If there is no free port.
    pub async fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(manner),
            connect_count: AtomicU64::new(0),
            tunnel_count: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            tasks,
        })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does with the requests to come. Tunnels stay open.
    pub fn set(&self, manner: Manner) {
        *self.shared.lock() = manner;
    }

    /// Dies: tunnels end in the midst of what they carry, and connections are refused.
    pub async fn die(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Returns how many `CONNECT`s came.
    pub fn connect_count(&self) -> u64 {
        self.shared.connect_count.load(Ordering::Relaxed)
    }

    /// Returns how many tunnels were opened.
    pub fn tunnel_count(&self) -> u64 {
        self.shared.tunnel_count.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Manner> {
        self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A connection that breaks is the client's business.
            tunnel(stream, &shared).await.ok();
        });
    }
}

/// The head of a `CONNECT`.
struct Head {
    target: String,
    /// The header `proxy-authorization`, as it is.
    authorization: Option<String>,
}

async fn tunnel(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(head) = read_head(&mut stream).await? else {
        return refuse(&mut stream, 400).await;
    };
    shared.connect_count.fetch_add(1, Ordering::Relaxed);
    let manner = shared.lock().clone();
    match manner {
        Manner::Open => {}
        Manner::Password {
            user_and_password,
            wrong_status,
        } => {
            let expected = format!("Basic {}", BASE64_STANDARD.encode(user_and_password));
            match head.authorization {
                None => return refuse(&mut stream, 407).await,
                Some(given) if given != expected => return refuse(&mut stream, wrong_status).await,
                Some(_) => {}
            }
        }
        Manner::Forbids => return refuse(&mut stream, 403).await,
        Manner::Closes => return Ok(()),
        Manner::Silent => std::future::pending().await,
    }
    let Ok(mut far) = TcpStream::connect(&head.target).await else {
        return refuse(&mut stream, 502).await;
    };
    shared.tunnel_count.fetch_add(1, Ordering::Relaxed);
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut far).await.map(|_| ())
}

/// Reads the head of a request; `None` if it is no `CONNECT`.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Head>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let count = stream.read_line(&mut head).await?;
        if count == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| {
        let rest = line.strip_prefix("CONNECT ")?;
        Some(rest.split_once(' ')?.0.to_owned())
    });
    let authorization = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("proxy-authorization");
        is_it.then(|| value.trim().to_owned())
    });
    Ok(target.map(|target| Head {
        target,
        authorization,
    }))
}

async fn refuse(stream: &mut BufReader<TcpStream>, status: u16) -> io::Result<()> {
    let challenge = match status {
        407 => "Proxy-Authenticate: Basic realm=\"proxy\"\r\n",
        401 => "WWW-Authenticate: Basic realm=\"proxy\"\r\n",
        _ => "",
    };
    let answer = format!(
        "HTTP/1.1 {status} Refused\r\n{challenge}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// Asks for a tunnel to `far` and returns the answer's first line.
    async fn ask(proxy: &Proxy, far: SocketAddr, credentials: Option<&str>) -> String {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let header = credentials.map_or_else(String::new, |text| {
            let text = BASE64_STANDARD.encode(text);
            format!("Proxy-Authorization: Basic {text}\r\n")
        });
        let request = format!("CONNECT {far} HTTP/1.1\r\nHost: {far}\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 256];
        let count = stream.read(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..count]);
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn it_refuses_as_it_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = listener.local_addr().unwrap();
        drop(listener);
        let proxy = Proxy::start(Manner::Open).await.unwrap();
        assert!(ask(&proxy, far, None).await.contains("502"));
        proxy.set(Manner::Password {
            user_and_password: "user:right".into(),
            wrong_status: 401,
        });
        assert!(ask(&proxy, far, None).await.contains("407"));
        assert!(ask(&proxy, far, Some("user:wrong")).await.contains("401"));
        assert!(ask(&proxy, far, Some("user:right")).await.contains("502"));
        proxy.set(Manner::Forbids);
        assert!(ask(&proxy, far, None).await.contains("403"));
        proxy.set(Manner::Closes);
        assert_eq!(ask(&proxy, far, None).await, "");
        assert_eq!((proxy.connect_count(), proxy.tunnel_count()), (6, 0));
    }
}
