//! The forwarder: one `Ship` call to one shipper, for all streams of the host.
//!
//! ```text
//! connect ──▶ session ──call ends──▶ next place at once, the first one after the last
//!    ▲                                     │ all places failed since one was useful
//!    └──────────── backoff ◀───────────────┘
//! ```
//!
//! Within a session: when something has arrived, a pass over the streams ([`Gatherer`]) fills a
//! request, at most one per [`TICK`] unless the last one was full or credit came back. With nothing
//! to send there are requests without events, ever more rarely, and then one with each report: they
//! tell the shipper that what it misses is not on its way. Acknowledgements are saved as they come,
//! because what is not saved is sent again after a crash.
//!
//! Nothing here decides about an entry: a session that ends, for whatever reason, loses nothing,
//! and the next one goes on at the acknowledged offsets.

use crate::config::{Config, Endpoint};
use crate::containers::Table;
use crate::explain::{self, Explanation};
use crate::fifo::Signals;
use crate::gather::{Gatherer, Round};
use crate::places::{Place, Ring, Target};
use crate::resolve::{LookupError, Resolver, System};
use hyper_util::rt::TokioIo;
use proto::backoff::Backoff;
use proto::limits::{MESSAGE_BYTES_MAX, RESPONSE_BYTES_MAX};
use proto::relay::relay_client::RelayClient;
use proto::relay::{self, CheckRequest, HostReport, ReportAck, ShipRequest, ShipResponse};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Response, Status, Streaming};

/// Time that small amounts are gathered for.
const TICK: Duration = Duration::from_millis(10);

/// Delay before endpoints are tried again: first, and at most. Together with [`CONNECT_WAIT_MAX`]
/// below the 5 s within which the end of an outage is noticed.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(3);

/// How long an endpoint may take to answer.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);

/// A dead peer is found within the sum of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Receive windows of HTTP/2. Responses are small, and must never wait.
const HTTP2_WINDOW_BYTES: u32 = 1 << 20;

/// How often counters are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// When the shipper is told that nothing more has come, after the last that has; and the next time
/// after twice that, until the reports do. The second time, 1.05 s after the last entry, is just behind
/// the default of `multiline-timeout`.
const QUIET_BASE: Duration = Duration::from_millis(350);

/// Responses that are held while a pass is under way; beyond it the call is not read. Together they
/// are at most as many times [`RESPONSE_BYTES_MAX`] on the wire, and twice that in memory.
const RESPONSES_HELD_MAX: usize = 16;

/// How long a call lasts that the shipper has ended in good order, although there was nothing to ship:
/// for its age. A shipper that ends calls at once is none.
const IDLE_CALL_MIN: Duration = Duration::from_millis(500);

/// How long a stopping driver waits for the acknowledgement of what is in flight.
pub(crate) const FINISH_WAIT_MAX: Duration = Duration::from_secs(2);

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

/// A connection to a shipper, as [`Checker`] uses it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    client: Client,
    /// Until when a shipper that did not answer is not asked again. Another connection, which may
    /// lead to another shipper, begins without.
    silent_until: Arc<Mutex<Option<Instant>>>,
}

impl Connection {
    fn new(client: Client) -> Self {
        let silent_until = Arc::default();
        Self {
            client,
            silent_until,
        }
    }

    fn silent_until(&self) -> MutexGuard<'_, Option<Instant>> {
        let silent_until = self.silent_until.lock();
        silent_until.expect("whoever holds this lock does not panic")
    }
}

/// Asks a connected shipper about options.
#[derive(Debug, Clone)]
pub(crate) struct Checker {
    connection: watch::Receiver<Option<Connection>>,
}

impl Checker {
    /// How long an answer is waited for.
    pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_millis(500);

    /// How long a shipper that did not answer is left in peace: many starts in a row must not wait
    /// for it one by one. A dead one is found meanwhile.
    const SILENCE: Duration = Duration::from_secs(20);

    /// Returns what the shipper finds wrong with a container's options; nothing if it can't be
    /// asked right now, or does not answer in time.
    pub(crate) async fn faults(&self, open: &relay::Open) -> Vec<String> {
        let now = Instant::now();
        let Some(mut connection) = self.connection.borrow().clone() else {
            return Vec::new();
        };
        if connection.silent_until().is_some_and(|until| now < until) {
            return Vec::new();
        }
        let request = CheckRequest {
            container: open.container.clone(),
            log_opts: open.log_opts.clone(),
            host: open.host.clone(),
        };
        match timeout(Self::ANSWER_WAIT_MAX, connection.client.check(request)).await {
            Ok(Ok(response)) => shown_faults(response.into_inner().faults),
            Ok(Err(status)) => {
                tracing::debug!(%status, "the shipper could not check options");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!("the shipper does not answer: options are not checked");
                *connection.silent_until() = Some(now + Self::SILENCE);
                Vec::new()
            }
        }
    }
}

/// Faults of a container's options that its user is shown.
const FAULTS_SHOWN_MAX: usize = 32;

/// Returns a shipper's faults as the user of `docker run` may read them.
fn shown_faults(faults: Vec<String>) -> Vec<String> {
    let shown = faults.into_iter().take(FAULTS_SHOWN_MAX);
    shown.map(|fault| explain::shown(&fault)).collect()
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

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the driver stops")]
    Shutdown,
    #[error("the shipper ended the call")]
    Ended,
    #[error("the call failed: {}", explain::shown(.0.message()))]
    Failed(#[from] Status),
    #[error("the shipper broke the contract: {0}")]
    Fault(String),
    #[error("a pass over the journals failed")]
    Pass,
}

/// The forwarder, before it runs.
#[derive(Debug)]
pub(crate) struct Forwarder {
    config: Config,
    table: Arc<Table>,
    signals: Arc<Signals>,
    connected: watch::Sender<Option<Connection>>,
    shutdown: watch::Receiver<bool>,
    seed: u64,
}

/// Returns both ends of what tells whether a shipper is connected.
pub(crate) fn connection() -> (watch::Sender<Option<Connection>>, Checker) {
    let (connected, connection) = watch::channel(None);
    (connected, Checker { connection })
}

impl SessionEnd {
    /// Returns why, with its causes, and what to do about it.
    fn explain(&self, endpoint: &Endpoint) -> Explanation {
        match self {
            Self::Failed(status) if status.code() != tonic::Code::Unauthenticated => {
                Explanation::new(endpoint, status)
            }
            Self::Failed(_) | Self::Shutdown | Self::Ended | Self::Fault(_) | Self::Pass => {
                Explanation::plain(self.to_string())
            }
        }
    }
}

/// What is wrong with the places, since one of them was useful.
#[derive(Debug, Default)]
struct Faults {
    /// One sentence each.
    found: Vec<String>,
    /// By endpoint: addresses come and go, and their order is one of chance.
    kinds: Vec<String>,
    /// The kinds that were said last: an outage of hours is said once.
    said: Vec<String>,
    /// Places that took a connection and no call.
    refusing: Vec<String>,
}

impl Faults {
    fn add(&mut self, place: &Place, why: &Explanation) {
        tracing::debug!(endpoint = %place, %why, "an endpoint is of no use");
        self.found.push(format!("{place}: {why}"));
        self.kinds
            .push(format!("{}: {}", place.endpoint, why.kind()));
    }

    /// Says what was found, if it is news, and begins anew.
    fn say(&mut self) {
        let causes = std::mem::take(&mut self.found).join("; ");
        let mut kinds = std::mem::take(&mut self.kinds);
        kinds.sort_unstable();
        kinds.dedup();
        if self.said != kinds {
            tracing::warn!(
                causes,
                "no shipper can be reached; entries stay in the journals"
            );
        }
        self.said = kinds;
    }

    /// Says that there is a connection, unless this place refuses calls: it may do so for hours.
    fn say_connected(&mut self, place: &Place) {
        let name = place.to_string();
        let count = self.refusing.len();
        self.refusing.retain(|refusing| *refusing != name);
        if self.refusing.len() == count {
            tracing::info!(endpoint = %place, "connected to a shipper");
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Forwarder {
    /// Returns a forwarder that begins when it is run, and ends when `shutdown` turns true.
    pub(crate) fn new(
        config: Config,
        table: Arc<Table>,
        signals: Arc<Signals>,
        connected: watch::Sender<Option<Connection>>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let mut seed = [0; 8];
        // Without randomness there is no jitter, and nothing worse.
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).ok();
        Self {
            config,
            table,
            signals,
            connected,
            shutdown,
            seed: u64::from_ne_bytes(seed),
        }
    }

    /// Forwards until the driver stops.
    pub(crate) async fn run(mut self) {
        let table = Arc::clone(&self.table);
        let gatherer = Gatherer::new(table, Arc::clone(&self.signals), self.seed);
        let mut gatherer = Box::new(gatherer);
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP, self.seed);
        let mut ring = Ring::new(&self.config.shipper, self.seed, Resolver::new(System));
        let mut faults = Faults::default();
        while !*self.shutdown.borrow() {
            loop {
                let place = ring.next().await;
                let endpoint = &place.endpoint;
                match self.connect(&place).await {
                    Err(error) => faults.add(&place, &Explanation::new(endpoint, &error)),
                    Ok(client) => {
                        faults.say_connected(&place);
                        let connection = Connection::new(client.clone());
                        self.connected.send_replace(Some(connection));
                        let (returned, end, was_useful) = self.session(client, gatherer).await;
                        self.connected.send_replace(None);
                        gatherer = returned;
                        // A pass that panicked may have left anything behind: the process starts
                        // afresh.
                        if matches!(end, SessionEnd::Shutdown | SessionEnd::Pass) {
                            return;
                        }
                        if was_useful {
                            faults.clear();
                        }
                        // One that breaks the contract would do so again, and entries in flight
                        // would be sent again, each time.
                        if was_useful && !matches!(end, SessionEnd::Fault(_)) {
                            backoff.reset();
                        }
                        if was_useful && matches!(end, SessionEnd::Ended) {
                            tracing::info!(endpoint = %place, %end, "changing to the next shipper");
                            continue;
                        }
                        if was_useful {
                            tracing::warn!(
                                endpoint = %place, %end,
                                "lost a shipper; entries stay in the journals"
                            );
                            faults.add(&place, &Explanation::plain(end.to_string()));
                        } else {
                            faults.add(&place, &end.explain(endpoint));
                            faults.refusing.push(place.to_string());
                        }
                    }
                }
                if faults.found.len() >= ring.place_count() {
                    break;
                }
            }
            faults.say();
            let delay = backoff.next_delay();
            let stopped = self.shutdown.wait_for(|&is_stopping| is_stopping);
            // Either way the loop decides.
            timeout(delay, stopped).await.ok();
        }
    }

    async fn connect(&self, place: &Place) -> Result<Client, ConnectError> {
        let token = match &self.config.shipper_token_file {
            Some(path) => Some(bearer(path, &read(path).await?)?),
            None => None,
        };
        let channel = match &place.target {
            Target::Unknown(error) => return Err(ConnectError::Lookup(Arc::clone(error))),
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
                let tuned = self.tuned(&place.endpoint).await?;
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
    async fn tuned(&self, endpoint: &Endpoint) -> Result<tonic::transport::Endpoint, ConnectError> {
        let uri = endpoint.to_string();
        let tuned = tune(Channel::from_shared(uri).map_err(|_| ConnectError::Timeout)?);
        match endpoint {
            Endpoint::Https(_) => Ok(tuned.tls_config(self.tls().await?)?),
            Endpoint::Unix(_) | Endpoint::Http(_) => Ok(tuned),
        }
    }

    /// Reads certificates anew at every connection: they are rotated while the driver runs.
    async fn tls(&self) -> Result<ClientTlsConfig, ConnectError> {
        let mut tls = ClientTlsConfig::new();
        if let Some(path) = &self.config.shipper_ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(read(path).await?));
        }
        if let Some((certificate, key)) = &self.config.shipper_identity_files {
            tls = tls.identity(Identity::from_pem(
                read(certificate).await?,
                read(key).await?,
            ));
        }
        Ok(tls)
    }

    /// Runs one call until it ends. Returns whether it was of use, too: a stream was accepted in it, or
    /// it lasted without any.
    async fn session(
        &mut self,
        client: Client,
        gatherer: Box<Gatherer>,
    ) -> (Box<Gatherer>, SessionEnd, bool) {
        let (requests, outbound) = mpsc::channel(1);
        let mut shipping = client.clone();
        let mut session = Session {
            pass: Pass::start(gatherer, |gatherer| {
                gatherer.reset(Instant::now());
                Round::default()
            }),
            call: Call::Begun(Box::pin(async move {
                shipping.ship(ReceiverStream::new(outbound)).await
            })),
            reports: Reports::new(client.clone()),
            responses: Vec::new(),
            outbox: None,
            gather_at: Some(Instant::now()),
            gathered_at: None,
            quiet: Quiet::default(),
            wake_at: None,
            report_at: Instant::now(),
            finals_from: 0,
            told: None,
            finish_by: None,
            was_useful: false,
        };
        let began = Instant::now();
        let end = session.run(self, requests).await;
        let has_lasted = matches!(end, SessionEnd::Ended) && began.elapsed() >= IDLE_CALL_MIN;
        let was_useful = session.was_useful || has_lasted;
        drop(client);
        let mut responses = std::mem::take(&mut session.responses);
        let returned = session.pass.into_gatherer().await;
        let new = || {
            Box::new(Gatherer::new(
                Arc::clone(&self.table),
                Arc::clone(&self.signals),
                self.seed,
            ))
        };
        let mut gatherer = returned.unwrap_or_else(new);
        // Nothing is in flight any more: all of it may be dropped if a journal fills.
        let reset = move || {
            // What came before the end counts: an acknowledgement that is not applied is a repeat.
            let now = Instant::now();
            gatherer.apply(&mut responses, now);
            gatherer.reset(now);
            gatherer
        };
        let gatherer = crate::keeper::blocking(reset).await.unwrap_or_else(new);
        (gatherer, end, was_useful)
    }
}

/// The `Ship` call. A server may answer it only when the first request has come.
enum Call {
    Begun(Pin<Box<dyn Future<Output = Answer> + Send>>),
    Answered(Box<Streaming<ShipResponse>>),
}

type Answer = Result<Response<Streaming<ShipResponse>>, Status>;

impl Call {
    /// Returns the next response; `None` when the shipper has ended the call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn next(&mut self) -> Result<Option<ShipResponse>, Status> {
        loop {
            match self {
                Self::Begun(answer) => {
                    let answer = answer.await?;
                    *self = Self::Answered(Box::new(answer.into_inner()));
                }
                Self::Answered(responses) => return responses.message().await,
            }
        }
    }
}

/// The gatherer, at rest or at work on a blocking thread.
enum Pass {
    Idle(Option<Box<Gatherer>>),
    Running(JoinHandle<(Box<Gatherer>, Round)>),
}

impl Pass {
    fn start(
        mut gatherer: Box<Gatherer>,
        work: impl FnOnce(&mut Gatherer) -> Round + Send + 'static,
    ) -> Self {
        Self::Running(tokio::task::spawn_blocking(move || {
            let round = work(&mut gatherer);
            (gatherer, round)
        }))
    }

    fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Waits for the work to be done; for ever if there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn done(&mut self) -> Option<Round> {
        let Self::Running(work) = self else {
            return std::future::pending().await;
        };
        match work.await {
            Ok((gatherer, round)) => {
                *self = Self::Idle(Some(gatherer));
                Some(round)
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the journals has failed");
                *self = Self::Idle(None);
                None
            }
        }
    }

    async fn into_gatherer(mut self) -> Option<Box<Gatherer>> {
        if self.is_running() {
            self.done().await;
        }
        match self {
            Self::Idle(gatherer) => gatherer,
            Self::Running(_) => None,
        }
    }
}

/// The `Report` calls: one per report, since the answer to a call says that what it told is noted.
/// The last one stays open until the next report, so that there is always one which a connection
/// that breaks ends: a `Ship` call that has not begun goes to the next connection, perhaps to
/// another shipper, and lives on.
struct Reports {
    client: Client,
    /// With what keeps it open.
    open: Option<(Reporting, mpsc::Sender<HostReport>)>,
    /// The one before, until it is answered.
    closed: Option<Reporting>,
}

/// One `Report` call.
struct Reporting {
    answer: Pin<Box<dyn Future<Output = Result<Response<ReportAck>, Status>> + Send>>,
    /// Number behind the last stream that is over of which it tells.
    finals_next: u64,
}

impl Reports {
    fn new(client: Client) -> Self {
        Self {
            client,
            open: None,
            closed: None,
        }
    }

    /// Sends a report, unless the last but one still waits for its answer; returns whether it did.
    fn send(&mut self, report: HostReport, finals_next: u64) -> bool {
        if self.closed.is_some() {
            return false;
        }
        let (sender, reports) = mpsc::channel(1);
        // The channel is empty: there is room.
        sender.try_send(report).ok();
        let mut client = self.client.clone();
        let answer = Box::pin(async move { client.report(ReceiverStream::new(reports)).await });
        let reporting = Reporting {
            answer,
            finals_next,
        };
        let last = self.open.replace((reporting, sender));
        self.closed = last.map(|(reporting, _)| reporting);
        true
    }

    /// Waits until a call ends, for ever if there is none. Returns up to which number the shipper
    /// has noted the streams that are over.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn ended(&mut self) -> Result<u64, Status> {
        let Self { open, closed, .. } = self;
        let open_ends = async {
            match open {
                Some((reporting, _)) => (&mut reporting.answer).await,
                None => std::future::pending().await,
            }
        };
        let closed_ends = async {
            match closed {
                Some(reporting) => (&mut reporting.answer).await.map(|_| reporting.finals_next),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = closed_ends => {
                self.closed = None;
                told
            }
            ended = open_ends => {
                self.open = None;
                Err(ended.err().unwrap_or_else(|| Status::cancelled("the shipper ended the call")))
            }
        }
    }
}

/// When the shipper is to be told that nothing more has come, and after what delay; `None` if a
/// report is soon enough.
#[derive(Debug, Default)]
struct Quiet(Option<(Instant, Duration)>);

impl Quiet {
    fn due(&self) -> Option<Instant> {
        self.0.map(|(at, _)| at)
    }

    /// Learns of a request.
    fn follow(&mut self, request: &ShipRequest, now: Instant) {
        let delay = match self.0 {
            _ if !request.events.is_empty() => Some(QUIET_BASE),
            // It came with a report.
            Some((at, _)) if now < at => return,
            Some((_, delay)) => Some(delay * 2),
            None => None,
        };
        let delay = delay.filter(|delay| *delay < REPORT_INTERVAL / 2);
        self.0 = delay.map(|delay| (now + delay, delay));
    }
}

struct Session {
    pass: Pass,
    call: Call,
    reports: Reports,
    responses: Vec<ShipResponse>,
    /// A request that the call has not taken yet.
    outbox: Option<ShipRequest>,
    /// When the next pass gathers; `None` with nothing to gather.
    gather_at: Option<Instant>,
    gathered_at: Option<Instant>,
    quiet: Quiet,
    /// When a stream is to be tried again although nothing arrives.
    wake_at: Option<Instant>,
    report_at: Instant,
    /// Number of the first stream that is over and of which this shipper was not told.
    finals_from: u64,
    /// The shipper has noted those below this number, and the table does not know it yet.
    told: Option<u64>,
    /// Set when the driver stops: nothing more is sent, and acknowledgements are awaited.
    finish_by: Option<Instant>,
    was_useful: bool,
}

impl Session {
    async fn run(
        &mut self,
        forwarder: &mut Forwarder,
        requests: mpsc::Sender<ShipRequest>,
    ) -> SessionEnd {
        loop {
            let now = Instant::now();
            if let Some(end) = self.step(now) {
                return end;
            }
            let timer = self.timer();
            let is_stopping = self.finish_by.is_some();
            tokio::select! {
                response = self.call.next(), if self.responses.len() < RESPONSES_HELD_MAX => {
                    match response {
                        Ok(Some(response)) => {
                            self.was_useful |= !response.opened.is_empty();
                            self.responses.push(response);
                        }
                        Ok(None) => return SessionEnd::Ended,
                        Err(status) => return SessionEnd::Failed(status),
                    }
                }
                round = self.pass.done() => {
                    let Some(round) = round else {
                        return SessionEnd::Pass;
                    };
                    if let Some(fault) = self.take_round(round) {
                        return SessionEnd::Fault(fault);
                    }
                }
                permit = requests.reserve(), if self.outbox.is_some() => {
                    // An error says that the call has ended; the call itself says why.
                    if let (Ok(permit), Some(request)) = (permit, self.outbox.take()) {
                        permit.send(request);
                    }
                }
                () = forwarder.signals.arrived.notified(), if self.gather_at.is_none() => {
                    let earliest = self.gathered_at.map_or(now, |at| at + TICK);
                    self.gather_at = Some(earliest);
                }
                () = sleep_until(timer.unwrap_or(now)), if timer.is_some() => {}
                ended = self.reports.ended() => match ended {
                    Ok(finals_next) => self.told = Some(finals_next),
                    Err(status) => {
                        tracing::debug!(%status, "the shipper takes no reports for now");
                        self.finals_from = 0;
                    }
                },
                _ = forwarder.shutdown.wait_for(|&is_stopping| is_stopping), if !is_stopping => {
                    self.finish_by = Some(now + FINISH_WAIT_MAX);
                }
            }
        }
    }

    /// Starts what is due. Returns why the session ends, if it does.
    fn step(&mut self, now: Instant) -> Option<SessionEnd> {
        if self.finish_by.is_some_and(|by| by <= now) {
            return Some(SessionEnd::Shutdown);
        }
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.gather_at = Some(now);
        }
        let reports = self.report_at <= now;
        let is_quiet = self.quiet.due().is_some_and(|at| at <= now);
        let tells_time = self.may_gather() && (reports || is_quiet);
        let gathers = tells_time || self.may_gather() && self.gather_at.is_some_and(|at| at <= now);
        let Pass::Idle(idle) = &mut self.pass else {
            return None;
        };
        if !gathers && !reports && self.responses.is_empty() && self.told.is_none() {
            let is_settled = idle
                .as_ref()
                .is_none_or(|gatherer| !gatherer.has_in_flight());
            let is_done = self.finish_by.is_some() && is_settled;
            return is_done.then_some(SessionEnd::Shutdown);
        }
        let Some(gatherer) = idle.take() else {
            return Some(SessionEnd::Pass);
        };
        if gathers {
            self.gather_at = None;
            self.gathered_at = Some(now);
        }
        if reports {
            self.report_at = now + REPORT_INTERVAL;
        }
        let mut responses = std::mem::take(&mut self.responses);
        let finals_from = self.finals_from;
        let told = self.told.take();
        self.pass = Pass::start(gatherer, move |gatherer| {
            let mut round = gatherer.apply(&mut responses, now);
            if let Some(finals_next) = told {
                gatherer.told(finals_next);
            }
            if gathers && round.fault.is_none() {
                gatherer.gather(now, tells_time, &mut round);
                // What came while the disk was read may be among it.
                gatherer.stamp(&mut round, Instant::now());
            }
            if reports {
                round.report = Some(gatherer.report(finals_from));
            }
            round
        });
        None
    }

    /// Returns whether a request may be filled: the last one is on its way, and the driver does
    /// not stop.
    fn may_gather(&self) -> bool {
        self.outbox.is_none() && self.finish_by.is_none()
    }

    /// Returns when something is due that nothing else tells.
    fn timer(&self) -> Option<Instant> {
        if self.pass.is_running() {
            return self.finish_by;
        }
        let gather_at = self.gather_at.filter(|_| self.may_gather());
        let quiet_at = self.quiet.due().filter(|_| self.may_gather());
        let report_at = Some(self.report_at);
        let all = [gather_at, quiet_at, report_at, self.wake_at, self.finish_by];
        all.into_iter().flatten().min()
    }

    /// Takes what a pass found. Returns how the shipper broke the contract, if it did.
    fn take_round(&mut self, round: Round) -> Option<String> {
        if let Some(request) = round.request {
            self.quiet.follow(&request, Instant::now());
            self.outbox = Some(request);
        }
        if round.has_more || round.has_credit {
            self.gather_at = Some(Instant::now());
        }
        self.wake_at = round.wake_at;
        if let Some((report, finals_next)) = round.report
            && self.reports.send(report, finals_next)
        {
            self.finals_from = finals_next;
        }
        round.fault
    }
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
    let read = crate::keeper::blocking(move || std::fs::read(owned)).await;
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
    fn that_nothing_has_come_is_told_ever_more_rarely_and_then_with_reports() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let quiet_request = ShipRequest::default();
        let busy_request = ShipRequest {
            events: vec![relay::Event::default()],
            ..ShipRequest::default()
        };
        let mut quiet = Quiet::default();
        quiet.follow(&quiet_request, at(0));
        assert_eq!(quiet.due(), None);
        quiet.follow(&busy_request, at(0));
        assert_eq!(quiet.due(), Some(at(350)));
        // With a report: the times stay as they are.
        quiet.follow(&quiet_request, at(200));
        assert_eq!(quiet.due(), Some(at(350)));
        for (now, next) in [(350, Some(1_050)), (1_050, Some(2_450)), (2_450, None)] {
            quiet.follow(&quiet_request, at(now));
            assert_eq!(quiet.due(), next.map(at));
        }
        quiet.follow(&busy_request, at(9_000));
        assert_eq!(quiet.due(), Some(at(9_350)));
    }

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
