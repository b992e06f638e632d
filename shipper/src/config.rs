//! The shipper's settings: one TOML file, overridden by environment variables.
//!
//! Two steps: the file and the overrides become one table; the table becomes a [`Config`], in
//! which nothing is left to guess. Reading does no IO beyond the file itself. All faults are
//! collected and reported together, each naming key, value and rule; a key that is not known is a
//! fault, with the nearest known one.
//!
//! `CLS_SHIPPER__UPLOAD__LINGER_MS=50` overrides `linger_ms` in `[upload]`; a double underscore
//! separates the levels, so that credentials can be overridden too
//! (`CLS_SHIPPER__CREDENTIALS__DEFAULT__SECRET_ID`).

pub mod allowed_hosts;
pub mod road;
pub mod rule;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::limits::{CLS_LOGS_MAX, CLS_VALUES_BYTES_MAX};
use toml::{Table, Value};

use crate::cls::compress::Compression;
use crate::cls::endpoint::Endpoint;
use road::Road;
use rule::RuleConfig;

use crate::base::secret::Secret;
use crate::cls::credentials::{Credentials, trimmed};
use crate::config::allowed_hosts::{AllowedHosts, OWN_KEYS};

/// Environment variables that begin with this override the file.
pub const ENV_PREFIX: &str = "CLS_SHIPPER__";

/// The socket that a driver on the same host dials by default.
pub const LISTEN_UNIX_DEFAULT: &str = "/run/cls-shipper/shipper.sock";

/// Age at which a call over TCP ends, so that its host dials anew: hosts spread over the shippers
/// there are, also over one that has come back, within minutes. A reconnection costs milliseconds.
pub const CONNECTION_AGE_S_DEFAULT: u64 = 300;

/// Loopback, because metrics name containers; 9464 is the port that Prometheus exporters use.
pub const ADMIN_LISTEN_DEFAULT: &str = "127.0.0.1:9464";

/// Age at which a batch leaves although it is not full and another one is in flight. An idle lane
/// does not wait for it, so it bounds latency under load only.
pub const LINGER_MS_DEFAULT: u64 = 200;

/// Bytes of a batch before compression: large enough that a request costs little per line, small
/// enough that a retry repeats little.
pub const BATCH_BYTES_DEFAULT: u64 = 1 << 20;

/// Logs of a batch: CLS's own bound.
pub const BATCH_LOGS_DEFAULT: u64 = CLS_LOGS_MAX as u64;

/// Requests in flight per lane. Eight cover a round trip of 50 ms at 150 MB/s.
pub const CONCURRENCY_DEFAULT: u64 = 8;

/// Bytes of entries that may wait in memory, over all streams.
pub const BUFFER_BYTES_DEFAULT: u64 = 16 << 20;

/// Bytes of the dead-letter store.
pub const DEAD_LETTER_BYTES_DEFAULT: u64 = 256 << 20;

/// Time to deliver what is in memory at a stop. What is left stays in the drivers' journals.
pub const SHUTDOWN_GRACE_MS_DEFAULT: u64 = 8_000;

/// Host names of CLS, public and inside a VPC: where keys are used if nothing else is said, besides at
/// `defaults.endpoint`.
pub const ENDPOINTS_DEFAULT: [&str; 2] = ["*.cls.tencentcs.com", "*.cls.tencentyun.com"];

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where drivers connect.
    pub listen: Listen,
    /// What a container's options need not say.
    pub defaults: Defaults,
    /// Who may do what.
    pub tenants: Vec<TenantConfig>,
    /// Options for containers by what they are.
    pub rules: Vec<RuleConfig>,
    /// Credential sources by name.
    pub credentials: BTreeMap<String, CredentialSource>,
    /// Patterns of the host names that each source's keys may be used at; under
    /// [`OWN_KEYS`], those for containers' own keys.
    pub endpoints: BTreeMap<String, Vec<String>>,
    /// How batches are made and sent.
    pub upload: Upload,
    /// How requests get to CLS and to STS.
    pub road: Road,
    /// Where records go that CLS will never take; without it they hold their lane.
    pub dead_letter: Option<DeadLetter>,
    /// Address of the admin HTTP server.
    pub admin_listen: SocketAddr,
    /// Patterns of the names under which it may be asked, besides addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// Time to deliver what is in memory at a stop.
    pub shutdown_grace: Duration,
}

/// Where drivers connect; at least one is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Path of the unix socket.
    pub unix: Option<PathBuf>,
    /// TCP address.
    pub tcp: Option<SocketAddr>,
    /// Certificates of the TCP listener.
    pub tls: Option<TlsFiles>,
    /// Age at which a call over TCP ends; `None` for no bound.
    pub connection_age_max: Option<Duration>,
    /// Connections of one address; `None` for half of those that there may be.
    pub connections_per_address_max: Option<usize>,
}

/// What a container's options need not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// CLS endpoint.
    pub endpoint: Option<Endpoint>,
    /// CLS topic.
    pub topic_id: Option<String>,
    /// Name of a credential source.
    pub credentials: String,
}

/// Connections of a listener, unless the process may have fewer files.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Where the certificates stand, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// CAs of clients' certificates; without it, clients show tokens.
    pub client_ca_file: Option<PathBuf>,
}

/// What a configuration says of a tenant. Empty lists of topics, credentials or hosts allow all;
/// a host with a certificate must always bear one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantConfig {
    /// Its name, for messages.
    pub name: String,
    /// How its hosts show themselves.
    pub identity: IdentityConfig,
    /// Host names it may use.
    pub hosts: Vec<String>,
    /// Topics it may write to.
    pub topics: Vec<String>,
    /// Credential sources it may use; a container's own keys are not among them.
    pub credentials: Vec<String>,
    /// Open streams of all its hosts together.
    pub streams_max: usize,
    /// Bytes of entries a second of each of its hosts; `None` for no limit.
    pub bytes_per_s: Option<u64>,
}

/// What a configuration says of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityConfig {
    /// Pattern of a certificate's DNS name.
    Certificate(String),
    /// File that holds a bearer token.
    TokenFile(PathBuf),
    /// A user on the unix socket.
    UnixUid(u32),
    /// Anyone who can connect.
    Anyone,
}

/// The metadata service, reachable from every CVM.
pub const CVM_METADATA_URL: &str = "http://metadata.tencentyun.com";

/// The security token service.
pub const STS_URL: &str = "https://sts.tencentcloudapi.com";

/// Where temporary credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The role that is bound to the CVM.
    CvmRole {
        /// Base URL of the metadata service.
        url: String,
        /// Name of the role; `None` asks the service.
        role: Option<String>,
    },
    /// The role that a TKE workload's service account may take.
    TkeOidc {
        /// Base URL of STS.
        url: String,
        /// Region.
        region: String,
        /// Name of the identity provider.
        provider_id: String,
        /// The role's resource name.
        role_arn: String,
        /// File with the service account's token, read at each fetch.
        token_file: PathBuf,
    },
}

/// The dead-letter store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The file.
    pub path: PathBuf,
    /// Its bound in bytes; at the bound, lanes hold.
    pub bytes_max: u64,
}

/// The kinds of credential sources.
const SOURCES: [&str; 5] = ["inline", "env", "file", "cvm-role", "tke-oidc"];

/// Where a key pair comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// It stands in the configuration.
    Inline(Credentials),
    /// It stands in a file, read again when it changes.
    File(PathBuf),
    /// It is fetched, and again before it expires.
    Temporary(Origin),
}

/// How batches are made and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upload {
    /// Age at which a batch leaves at the latest, unless the lane's requests are all in flight.
    pub linger: Duration,
    /// Bytes of a batch before compression.
    pub batch_bytes_max: usize,
    /// Logs of a batch.
    pub batch_logs_max: usize,
    /// Compression of request bodies.
    pub compression: Compression,
    /// Requests in flight per lane.
    pub concurrency_max: usize,
    /// Bytes of entries that may wait in memory, over all streams.
    pub buffer_bytes_max: u64,
}

/// Why there is no configuration. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML. The line at fault is not shown: it may hold a key.
    #[error(
        "configuration file {} is not TOML: line {line}, column {column}: {rule}", path.display()
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault in bytes, from 1.
        column: usize,
        /// What the parser expects.
        rule: String,
    },
    /// The settings break rules.
    #[error("configuration: {}", .0)]
    Faults(Faults),
}

/// One sentence per fault; never empty in an error.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl Faults {
    /// Returns what was read at `place`, or nothing, and notes why.
    fn take<T>(&mut self, place: &str, read: Result<T, String>) -> Option<T> {
        read.map_err(|rule| self.0.push(format!("{place}: {rule}")))
            .ok()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl Config {
    /// Reads a file and the overrides among `environment`.
    ///
    /// # Errors
    /// The file can't be read, is not TOML, or breaks rules; then all of them are named.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let table = text
            .parse::<Table>()
            .map_err(|error| syntax_error(path, &text, &error))?;
        Self::from_table(table, environment).map_err(ConfigError::Faults)
    }

    /// Returns which settings differ that only a new process can take over.
    pub fn fixed_differences(&self, new: &Self) -> Vec<&'static str> {
        let differences = [
            ("[listen]", self.listen != new.listen),
            (
                "[upload]",
                self.upload != new.upload || self.road != new.road,
            ),
            ("[dead_letter]", self.dead_letter != new.dead_letter),
            (
                "[admin]",
                self.admin_listen != new.admin_listen || self.admin_hosts != new.admin_hosts,
            ),
            (
                "shutdown_grace_ms",
                self.shutdown_grace != new.shutdown_grace,
            ),
        ];
        let differing = differences.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(setting, _)| setting).collect()
    }

    /// Checks a table with overrides applied.
    ///
    /// # Errors
    /// All faults together.
    ///
    /// # Panics
    /// Never: the default of the admin address is an address.
    pub fn from_table(
        mut table: Table,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Faults> {
        let environment: BTreeMap<String, String> = environment.collect();
        let mut faults = Faults::default();
        for (name, value) in &environment {
            if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                override_value(&mut table, path, value, &mut faults);
            }
        }
        let mut root = Section::new("", table);
        let listen = read_listen(&mut root, &mut faults);
        let (credentials, mut listed) = read_credentials(&mut root, &environment, &mut faults);
        let mut upload = root.section("upload", &mut faults);
        let road = road::read(&mut upload, &environment, &mut faults);
        let upload = read_upload(upload, &mut faults);
        let defaults = read_defaults(&mut root, &listed, road.insecure, &mut faults);
        let mut own_keys = root.section("own_keys", &mut faults);
        listed.insert(OWN_KEYS.to_owned(), read_hosts(&mut own_keys, &mut faults));
        own_keys.end(&["endpoints"], &mut faults);
        let endpoints = allowed_endpoints(listed, &defaults, &mut faults);
        let tenants = read_tenants(&mut root, &mut faults);
        let rules = rule::read(&mut root, &mut faults);
        let dead_letter = read_dead_letter(&mut root, &mut faults);
        let mut admin = root.section("admin", &mut faults);
        let admin_listen = admin
            .address("listen", &mut faults)
            .or_else(|| ADMIN_LISTEN_DEFAULT.parse().ok())
            .expect("the default is an address");
        let admin_hosts = admin.texts("hosts", &mut faults);
        let admin_hosts = admin_hosts.iter().map(|host| host.to_ascii_lowercase());
        let admin_hosts = admin_hosts.collect();
        admin.end(&["listen", "hosts"], &mut faults);
        let grace = root.number(
            "shutdown_grace_ms",
            0..=600_000,
            SHUTDOWN_GRACE_MS_DEFAULT,
            &mut faults,
        );
        let known = [
            "listen",
            "tenants",
            "rules",
            "defaults",
            "credentials",
            "own_keys",
            "upload",
            "dead_letter",
            "admin",
            "shutdown_grace_ms",
        ];
        root.end(&known, &mut faults);
        if !faults.0.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            listen,
            defaults,
            tenants,
            rules,
            credentials,
            endpoints,
            upload,
            road,
            dead_letter,
            admin_listen,
            admin_hosts,
            shutdown_grace: Duration::from_millis(grace),
        })
    }
}

/// Says where a text is not TOML, without a word of it: neither the parser's error nor what it shows
/// of the source goes on.
fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start);
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    let lines = before.split(|byte| *byte == b'\n');
    let last = lines.clone().next_back().unwrap_or_default();
    ConfigError::Syntax {
        path: path.to_owned(),
        line: lines.count(),
        column: last.len() + 1,
        rule: error.message().replace('\n', ", "),
    }
}

const LISTEN_KEYS: [&str; 6] = [
    "unix",
    "tcp",
    "tls",
    "insecure",
    "connection_age_max_s",
    "connections_per_address_max",
];

fn read_listen(root: &mut Section, faults: &mut Faults) -> Listen {
    let mut section = root.section("listen", faults);
    let mut unix = section.text("unix", faults).map(PathBuf::from);
    let tcp = section.address("tcp", faults);
    let tls = read_tls(&mut section, faults);
    let insecure = section.flag("insecure", faults);
    let age_s = section.number(
        "connection_age_max_s",
        0..=86_400,
        CONNECTION_AGE_S_DEFAULT,
        faults,
    );
    let per_address_max = section.optional_number(
        "connections_per_address_max",
        1..=CONNECTIONS_MAX as u64,
        faults,
    );
    section.end(&LISTEN_KEYS, faults);
    if let Some(address) =
        tcp.filter(|address| !address.ip().is_loopback() && tls.is_none() && !insecure)
    {
        faults.0.push(format!(
            "listen.tcp = \"{address}\": entries would cross the network unencrypted, add \
             [listen.tls], use a loopback address, or set listen.insecure = true if the network is \
             trusted"
        ));
    }
    if unix.is_none() && tcp.is_none() {
        unix = Some(PathBuf::from(LISTEN_UNIX_DEFAULT));
    }
    Listen {
        unix,
        tcp,
        tls,
        connection_age_max: (age_s > 0).then_some(Duration::from_secs(age_s)),
        connections_per_address_max: per_address_max.and_then(|max| usize::try_from(max).ok()),
    }
}

fn read_tls(listen: &mut Section, faults: &mut Faults) -> Option<TlsFiles> {
    let mut section = listen.section("tls", faults);
    let file = |section: &mut Section, key: &str, faults: &mut Faults| {
        section.text(key, faults).map(PathBuf::from)
    };
    let cert_file = file(&mut section, "cert_file", faults);
    let key_file = file(&mut section, "key_file", faults);
    let client_ca_file = file(&mut section, "client_ca_file", faults);
    section.end(&["cert_file", "key_file", "client_ca_file"], faults);
    match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(TlsFiles {
            cert_file,
            key_file,
            client_ca_file,
        }),
        (None, None) if client_ca_file.is_none() => None,
        _ => {
            faults
                .0
                .push("[listen.tls] needs both cert_file and key_file".to_owned());
            None
        }
    }
}

fn read_tenants(root: &mut Section, faults: &mut Faults) -> Vec<TenantConfig> {
    let tables = match root.table.remove("tenants") {
        None => return Vec::new(),
        Some(Value::Array(tables)) => tables,
        Some(other) => {
            faults.0.push(format!(
                "tenants is a {}, it must be [[tenants]]",
                other.type_str()
            ));
            return Vec::new();
        }
    };
    let mut tenants = Vec::new();
    for (index, value) in tables.into_iter().enumerate() {
        let path = format!("tenants[{index}]");
        let Value::Table(table) = value else {
            faults.0.push(format!(
                "{path} is a {}, it must be a table",
                value.type_str()
            ));
            continue;
        };
        tenants.extend(read_tenant(Section::new(&path, table), faults));
    }
    tenants
}

fn read_tenant(mut section: Section, faults: &mut Faults) -> Option<TenantConfig> {
    let name = section.text("name", faults);
    if name.is_none() {
        faults.0.push(format!("{}.name is missing", section.path));
    }
    let identities = [
        section
            .text("certificate", faults)
            .map(IdentityConfig::Certificate),
        section
            .text("token_file", faults)
            .map(|path| IdentityConfig::TokenFile(path.into())),
        section
            .optional_number("unix_uid", 0..=u64::from(u32::MAX), faults)
            .map(|uid| IdentityConfig::UnixUid(u32::try_from(uid).expect("the range was checked"))),
        section
            .flag("anyone", faults)
            .then_some(IdentityConfig::Anyone),
    ];
    let mut identities = identities.into_iter().flatten();
    let (identity, second) = (identities.next(), identities.next());
    if identity.is_none() || second.is_some() {
        faults.0.push(format!(
            "{} needs exactly one of certificate, token_file, unix_uid, anyone = true",
            section.path
        ));
    }
    let [hosts, topics, credentials] =
        ["hosts", "topics", "credentials"].map(|key| section.texts(key, faults));
    if matches!(identity, Some(IdentityConfig::TokenFile(_))) && hosts.is_empty() {
        faults.0.push(format!(
            "{}.hosts is missing: a token says nothing of its host, list the host names that may come \
             with it, or \"*\" for all",
            section.path
        ));
    }
    let streams_max = section.number("streams_max", 1..=1_000_000, TENANT_STREAMS_DEFAULT, faults);
    let bytes_per_s = section.optional_number("bytes_per_s", 1_000..=1 << 40, faults);
    section.end(&TENANT_KEYS, faults);
    Some(TenantConfig {
        name: name?,
        identity: identity?,
        hosts,
        topics,
        credentials,
        streams_max: usize::try_from(streams_max).unwrap_or(usize::MAX),
        bytes_per_s,
    })
}

/// The topic of the examples: whoever has not replaced it would wait for an error of CLS.
const TOPIC_PLACEHOLDER: &str = "replace-with-your-topic-id";

fn read_defaults(
    root: &mut Section,
    listed: &Listed,
    is_insecure: bool,
    faults: &mut Faults,
) -> Defaults {
    let mut section = root.section("defaults", faults);
    let endpoint = section.text("endpoint", faults).and_then(|text| {
        let parsed = text.parse::<Endpoint>().map_err(|error| error.to_string());
        let parsed = parsed.and_then(|endpoint| match endpoint.insecurity(is_insecure) {
            Some(fault) => Err(fault),
            None => Ok(endpoint),
        });
        faults.take(&format!("defaults.endpoint = \"{text}\""), parsed)
    });
    let endpoint = read_region(&mut section, endpoint, faults);
    let topic_id = section.text("topic_id", faults);
    let named = section.text("credentials", faults);
    if topic_id.as_deref() == Some(TOPIC_PLACEHOLDER) {
        faults.0.push(format!(
            "defaults.topic_id = \"{TOPIC_PLACEHOLDER}\": put in the ID of your topic, or leave it out"
        ));
    }
    let known = ["endpoint", "region", "network", "topic_id", "credentials"];
    section.end(&known, faults);
    if let Some(name) = named.as_ref().filter(|name| !listed.contains_key(*name)) {
        let known = list(listed.keys());
        faults.0.push(format!(
            "defaults.credentials = \"{name}\": there is no [credentials.{name}], known: {known}"
        ));
    }
    Defaults {
        endpoint,
        topic_id,
        credentials: named.unwrap_or_else(|| "default".into()),
    }
}

/// Reads `region` and `network`, which name CLS's endpoint of a region.
fn read_region(
    section: &mut Section,
    endpoint: Option<Endpoint>,
    faults: &mut Faults,
) -> Option<Endpoint> {
    let region = section.text("region", faults);
    let network = section.text("network", faults);
    let domain = match network.as_deref() {
        None | Some("internet") => "cls.tencentcs.com",
        Some("intranet") => "cls.tencentyun.com",
        Some(other) => {
            faults.0.push(format!(
                "defaults.network = \"{other}\": it must be internet or intranet"
            ));
            return endpoint;
        }
    };
    let Some(region) = region else {
        if network.is_some() {
            faults
                .0
                .push("defaults.network needs defaults.region".to_owned());
        }
        return endpoint;
    };
    if endpoint.is_some() {
        let rule = "defaults.region and defaults.endpoint exclude each other";
        faults.0.push(rule.to_owned());
    }
    let is_region = region.contains('-')
        && region
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let parsed = format!("{region}.{domain}").parse().ok();
    let parsed = parsed.filter(|_| is_region);
    if parsed.is_none() {
        faults.0.push(format!(
            "defaults.region = \"{region}\": it must be a region such as ap-guangzhou"
        ));
    }
    parsed
}

/// Returns where the keys of each source may be used: at the hosts it lists, or at CLS's and that of
/// the default endpoint.
fn allowed_endpoints(
    listed: Listed,
    defaults: &Defaults,
    faults: &mut Faults,
) -> BTreeMap<String, Vec<String>> {
    let default = defaults.endpoint.as_ref();
    let usual = || {
        let hosts = ENDPOINTS_DEFAULT
            .into_iter()
            .chain(default.map(Endpoint::name));
        hosts.map(str::to_owned).collect()
    };
    let allowed = listed.into_iter();
    let allowed: BTreeMap<String, Vec<String>> = allowed
        .map(|(name, hosts)| (name, hosts.unwrap_or_else(usual)))
        .collect();
    let name = &defaults.credentials;
    if let Some(endpoint) = default
        && let Some(fault) = AllowedHosts::new(&allowed).fault(name, endpoint)
    {
        faults
            .0
            .push(format!("defaults.endpoint = \"{endpoint}\": {fault}"));
    }
    allowed
}

fn read_dead_letter(root: &mut Section, faults: &mut Faults) -> Option<DeadLetter> {
    let mut section = root.section("dead_letter", faults);
    let path = section.text("path", faults).map(PathBuf::from);
    let bytes_max = section.number(
        "bytes_max",
        1 << 20..=1 << 40,
        DEAD_LETTER_BYTES_DEFAULT,
        faults,
    );
    section.end(&["path", "bytes_max"], faults);
    path.map(|path| DeadLetter { path, bytes_max })
}

fn read_upload(mut section: Section, faults: &mut Faults) -> Upload {
    let linger = section.number("linger_ms", 0..=60_000, LINGER_MS_DEFAULT, faults);
    // A batch may exceed its bound by one record; CLS's bound on values leaves room for that.
    let batch_bytes_max = section.number(
        "batch_bytes_max",
        1 << 10..=(CLS_VALUES_BYTES_MAX / 2) as u64,
        BATCH_BYTES_DEFAULT,
        faults,
    );
    let batch_logs_max = section.number(
        "batch_logs_max",
        1..=CLS_LOGS_MAX as u64,
        BATCH_LOGS_DEFAULT,
        faults,
    );
    let concurrency_max = section.number("concurrency_max", 1..=256, CONCURRENCY_DEFAULT, faults);
    let buffer_bytes_max = section.number(
        "buffer_bytes_max",
        1 << 20..=64 << 30,
        BUFFER_BYTES_DEFAULT,
        faults,
    );
    let compression = section
        .text("compression", faults)
        .and_then(|text| {
            text.parse::<Compression>()
                .map_err(|error| {
                    faults
                        .0
                        .push(format!("upload.compression = \"{text}\": {error}"))
                })
                .ok()
        })
        .unwrap_or_default();
    section.end(
        &[
            "linger_ms",
            "batch_bytes_max",
            "batch_logs_max",
            "concurrency_max",
            "buffer_bytes_max",
            "compression",
            "ca_file",
            "proxy",
            "proxy_user",
            "proxy_password",
            "proxy_password_file",
            "no_proxy",
            "insecure",
        ],
        faults,
    );
    let bounded = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Upload {
        linger: Duration::from_millis(linger),
        batch_bytes_max: bounded(batch_bytes_max),
        batch_logs_max: bounded(batch_logs_max),
        compression,
        concurrency_max: bounded(concurrency_max),
        buffer_bytes_max,
    }
}

/// Open streams of one tenant.
pub const TENANT_STREAMS_DEFAULT: u64 = 100_000;

const TENANT_KEYS: [&str; 10] = [
    "name",
    "certificate",
    "token_file",
    "unix_uid",
    "anyone",
    "hosts",
    "topics",
    "credentials",
    "streams_max",
    "bytes_per_s",
];

/// The keys of a credential source; which ones count depends on its kind.
const CREDENTIAL_KEYS: [&str; 12] = [
    "source",
    "endpoints",
    "secret_id",
    "secret_key",
    "token",
    "path",
    "url",
    "role",
    "region",
    "provider_id",
    "role_arn",
    "token_file",
];

/// The names of all sources, and the hosts that they list, if they do.
type Listed = BTreeMap<String, Option<Vec<String>>>;

/// Returns the sources that are good, and what all of them list.
fn read_credentials(
    root: &mut Section,
    environment: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> (BTreeMap<String, CredentialSource>, Listed) {
    let mut all = root.section("credentials", faults);
    let names: Vec<String> = all.table.keys().cloned().collect();
    let (mut sources, mut listed) = (BTreeMap::new(), BTreeMap::new());
    for name in names {
        let mut section = all.section(&name, faults);
        let hosts = read_hosts(&mut section, faults);
        if let Some(source) = read_credential_source(&mut section, environment, faults) {
            sources.insert(name.clone(), source);
        }
        section.end(&CREDENTIAL_KEYS, faults);
        listed.insert(name, hosts);
    }
    (sources, listed)
}

/// Reads the host names that a source's keys may be used at; `None` if it does not say.
fn read_hosts(section: &mut Section, faults: &mut Faults) -> Option<Vec<String>> {
    const KEY: &str = "endpoints";
    if !section.table.contains_key(KEY) {
        return None;
    }
    let key = section.key(KEY);
    let fault_count = faults.0.len();
    let hosts = section.texts(KEY, faults);
    // Elsewhere an empty list allows all, which nobody may mean here by mistake.
    if hosts.is_empty() && faults.0.len() == fault_count {
        let rule = "it must name a host at least, \"*\" stands for all";
        faults.0.push(format!("{key} = []: {rule}"));
    }
    for host in &hosts {
        let is_address = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains('/') || (host.contains(':') && !is_address) {
            let rule = "it must be a host name without scheme and port, * is any text";
            faults.0.push(format!("{key} has \"{host}\": {rule}"));
        }
    }
    let hosts = hosts.iter().map(|host| host.to_ascii_lowercase());
    Some(hosts.collect())
}

fn read_credential_source(
    section: &mut Section,
    environment: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> Option<CredentialSource> {
    let kind = section.text("source", faults);
    let [id, key, token] =
        ["secret_id", "secret_key", "token"].map(|key| section.secret(key, faults));
    let path = section.text("path", faults);
    let at = section.path.clone();
    match kind.as_deref() {
        Some("inline") => {
            let [Some(id), Some(key)] = [id, key] else {
                faults.0.push(format!(
                    "[{at}] source = \"inline\" needs secret_id and secret_key"
                ));
                return None;
            };
            inline(Credentials { id, key, token }, &at, faults)
        }
        Some("env") => read_env_credentials([id, key, token], &at, environment, faults),
        Some("cvm-role") => Some(CredentialSource::Temporary(Origin::CvmRole {
            url: base_url(section, CVM_METADATA_URL, faults),
            role: section.text("role", faults),
        })),
        Some("tke-oidc") => read_tke_oidc(section, environment, faults),
        Some("file") => {
            if path.is_none() {
                faults
                    .0
                    .push(format!("[{at}] source = \"file\" needs path"));
            }
            path.map(|path| CredentialSource::File(path.into()))
        }
        other => {
            let found = other.map_or("is missing".into(), |kind| format!("= \"{kind}\""));
            faults.0.push(format!(
                "{at}.source {found}: it must be one of {}",
                SOURCES.join(", ")
            ));
            None
        }
    }
}

/// Reads a key pair from variables: secret_id, secret_key and token name them here.
fn read_env_credentials(
    [id, key, token]: [Option<Secret>; 3],
    at: &str,
    environment: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> Option<CredentialSource> {
    // What stands in the setting may be a key itself, by mistake, so it is not shown.
    let mut variable = |setting: &str, name: Option<Secret>, default: &str| {
        let value = environment
            .get(name.as_ref().map_or(default, Secret::expose))
            .filter(|value| !value.is_empty());
        if value.is_none() {
            faults.0.push(match name {
                None => format!("[{at}] source = \"env\": variable {default} is not set"),
                Some(_) => format!(
                    "{at}.{setting} must name a variable that is set, because source = \"env\""
                ),
            });
        }
        value.map(|value| trimmed(value))
    };
    let id = variable("secret_id", id, "TENCENTCLOUD_SECRET_ID");
    let key = variable("secret_key", key, "TENCENTCLOUD_SECRET_KEY");
    let token = match token {
        Some(name) => Some(variable("token", Some(name), "")?),
        None => environment
            .get("TENCENTCLOUD_TOKEN")
            .filter(|token| !token.trim().is_empty())
            .map(|token| trimmed(token)),
    };
    let credentials = Credentials {
        id: id?,
        key: key?,
        token,
    };
    inline(credentials, at, faults)
}

/// Takes a pair, unless nothing can be signed with it.
fn inline(credentials: Credentials, at: &str, faults: &mut Faults) -> Option<CredentialSource> {
    if let Some(fault) = credentials.fault() {
        faults.0.push(format!("[{at}] {fault}"));
        return None;
    }
    Some(CredentialSource::Inline(credentials))
}

/// Reads a base URL; a slash at its end is not part of it.
fn base_url(section: &mut Section, default: &str, faults: &mut Faults) -> String {
    let Some(url) = section.text("url", faults) else {
        return default.to_owned();
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        faults.0.push(format!(
            "{} = \"{url}\": it must begin with https:// or http://",
            section.key("url")
        ));
    }
    url.trim_end_matches('/').to_owned()
}

/// Reads the settings of a TKE workload; what is absent comes from the variables that TKE sets.
fn read_tke_oidc(
    section: &mut Section,
    environment: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> Option<CredentialSource> {
    let url = base_url(section, STS_URL, faults);
    let mut setting = |key: &str, variable: &str| {
        let value = section.text(key, faults).or_else(|| {
            environment
                .get(variable)
                .filter(|value| !value.is_empty())
                .cloned()
        });
        if value.is_none() {
            let key = section.key(key);
            faults.0.push(format!(
                "{key} is missing, and variable {variable} is not set"
            ));
        }
        value
    };
    let region = setting("region", "TKE_REGION");
    let provider_id = setting("provider_id", "TKE_PROVIDER_ID");
    let role_arn = setting("role_arn", "TKE_ROLE_ARN");
    let token_file = setting("token_file", "TKE_WEB_IDENTITY_TOKEN_FILE").map(PathBuf::from);
    Some(CredentialSource::Temporary(Origin::TkeOidc {
        url,
        region: region?,
        provider_id: provider_id?,
        role_arn: role_arn?,
        token_file: token_file?,
    }))
}

/// Puts one override into the table. Keys in variables are upper case; keys in the file lower.
fn override_value(table: &mut Table, path: &str, value: &str, faults: &mut Faults) {
    let mut keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    let last = keys.pop().unwrap_or_default();
    let mut level = table;
    for key in keys {
        let entry = level
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            faults.0.push(format!(
                "variable {ENV_PREFIX}{path}: its section is a plain value"
            ));
            return;
        };
        level = inner;
    }
    level.insert(last, Value::String(value.to_owned()));
}

fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<T> = names.into_iter().collect();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// A TOML table of which keys are taken; what is left at the end is unknown.
struct Section {
    path: String,
    table: Table,
}

impl Section {
    fn new(path: &str, table: Table) -> Self {
        Self {
            path: path.to_owned(),
            table,
        }
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn section(&mut self, key: &str, faults: &mut Faults) -> Section {
        let path = self.key(key);
        match self.table.remove(key) {
            None => Section::new(&path, Table::new()),
            Some(Value::Table(table)) => Section::new(&path, table),
            Some(other) => {
                faults.0.push(format!(
                    "{path} is a {}, it must be a table",
                    other.type_str()
                ));
                Section::new(&path, Table::new())
            }
        }
    }

    /// Takes a string; an empty one counts as absent, as in an environment variable.
    fn text(&mut self, key: &str, faults: &mut Faults) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            other => {
                let found = other.type_str();
                faults.0.push(format!(
                    "{} is a {found}, it must be a string",
                    self.key(key)
                ));
                None
            }
        }
    }

    fn secret(&mut self, key: &str, faults: &mut Faults) -> Option<Secret> {
        self.text(key, faults).map(|text| trimmed(&text))
    }

    fn address(&mut self, key: &str, faults: &mut Faults) -> Option<SocketAddr> {
        let text = self.text(key, faults)?;
        let address = text.parse().ok();
        if address.is_none() {
            faults.0.push(format!(
                "{} = \"{text}\": it must be an IP address and a port, such as 127.0.0.1:9464",
                self.key(key)
            ));
        }
        address
    }

    fn flag(&mut self, key: &str, faults: &mut Faults) -> bool {
        match self.table.remove(key) {
            None => false,
            Some(Value::Boolean(flag)) => flag,
            Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
            Some(other) => {
                faults.0.push(format!(
                    "{} = {other}: it must be true or false",
                    self.key(key)
                ));
                false
            }
        }
    }

    fn number(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        faults: &mut Faults,
    ) -> u64 {
        self.optional_number(key, range, faults).unwrap_or(default)
    }

    fn optional_number(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        faults: &mut Faults,
    ) -> Option<u64> {
        let value = self.table.remove(key)?;
        let number = match &value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            faults.0.push(format!(
                "{} = {value}: it must be a whole number from {} to {}",
                self.key(key),
                range.start(),
                range.end()
            ));
        }
        number
    }

    fn texts(&mut self, key: &str, faults: &mut Faults) -> Vec<String> {
        let all = match self.table.remove(key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| value.as_str().map(str::to_owned))
                .collect::<Option<Vec<String>>>(),
            Some(_) => None,
        };
        all.unwrap_or_else(|| {
            faults
                .0
                .push(format!("{} must be a list of strings", self.key(key)));
            Vec::new()
        })
    }

    /// Reports what nobody took.
    fn end(self, known: &[&str], faults: &mut Faults) {
        for key in self.table.keys() {
            faults.0.push(format!(
                "{} is not a setting, known: {}",
                self.key(key),
                list(known)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::from_table(text.parse().unwrap(), environment).map_err(|faults| faults.to_string())
    }

    const MINIMAL: &str = r#"
        [defaults]
        endpoint = "ap-guangzhou.cls.tencentcs.com"
        topic_id = "t"
        [credentials.default]
        source = "inline"
        secret_id = "AKIDEXAMPLE"
        secret_key = "SKEXAMPLE"
    "#;

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let config = check(MINIMAL, &[]).unwrap();
        assert_eq!(config.listen.unix.unwrap(), Path::new(LISTEN_UNIX_DEFAULT));
        assert_eq!(
            config.defaults.endpoint.unwrap().to_string(),
            "https://ap-guangzhou.cls.tencentcs.com"
        );
        assert_eq!(config.admin_listen.to_string(), ADMIN_LISTEN_DEFAULT);
        assert_eq!(
            config.upload.linger,
            Duration::from_millis(LINGER_MS_DEFAULT)
        );
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let overrides = [
            ("CLS_SHIPPER__UPLOAD__LINGER_MS", "50"),
            ("CLS_SHIPPER__CREDENTIALS__DEFAULT__SECRET_ID", "other"),
            ("UNRELATED", "x"),
        ];
        let config = check(MINIMAL, &overrides).unwrap();
        assert_eq!(config.upload.linger, Duration::from_millis(50));
        let CredentialSource::Inline(credentials) = &config.credentials["default"] else {
            panic!()
        };
        assert_eq!(credentials.id.expose(), "other");
    }

    #[test]
    fn credentials_come_from_named_variables() {
        let text =
            "[credentials.a]\nsource = \"env\"\nsecret_id = \"MY_ID\"\nsecret_key = \"MY_KEY\"";
        let config = check(text, &[("MY_ID", "i"), ("MY_KEY", "k")]).unwrap();
        let CredentialSource::Inline(credentials) = &config.credentials["a"] else {
            panic!()
        };
        assert_eq!(
            (credentials.id.expose(), credentials.key.expose()),
            ("i", "k")
        );
        let error = check(text, &[("MY_ID", "i")]).unwrap_err();
        assert_eq!(
            error,
            "credentials.a.secret_key must name a variable that is set, because source = \"env\""
        );
        let error = check("[credentials.a]\nsource = \"env\"", &[]).unwrap_err();
        assert_eq!(
            error,
            "[credentials.a] source = \"env\": variable TENCENTCLOUD_SECRET_ID is not set; \
             [credentials.a] source = \"env\": variable TENCENTCLOUD_SECRET_KEY is not set"
        );
    }

    /// What is wrong near a key is said without the key.
    #[test]
    fn no_fault_shows_what_stands_in_the_place_of_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shipper.toml");
        for (line, at) in [
            ("secret_key = \"SKEXAMPLE", "line 3, column"),
            ("secret_key = SKEXAMPLE", "line 3, column"),
            ("secret_key \"SKEXAMPLE\"", "line 3, column"),
            (
                "secret_key = \"x\"\nsecret_key = \"SKEXAMPLE\"",
                "line 4, column",
            ),
            ("secret_key = [\"SKEXAMPLE\"]", "is a array"),
            ("secret_key = \"SKEXAMPLE\"", "must name a variable"),
        ] {
            std::fs::write(
                &path,
                format!("[credentials.a]\nsource = \"env\"\n{line}\n"),
            )
            .unwrap();
            let error = Config::load(&path, std::iter::empty()).unwrap_err();
            let shown = format!("{}; {error:?}", crate::base::chain::Chain(&error));
            assert!(!shown.contains("SKEXAMPLE"), "{shown}");
            assert!(shown.contains(at), "{line}: {shown}");
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        let error = check(
            r#"
            colour = "red"
            [listen]
            tcp = "0.0.0.0:9000"
            connections_per_address_max = 0
            [defaults]
            endpoint = "ftp://x"
            credentials = "prod"
            [credentials.default]
            source = "vault"
            secret_key = "SKEXAMPLE"
            endpoints = ["https://h", "h:443", "", "[::1]"]
            [credentials.a]
            source = "file"
            path = "/keys"
            endpoints = []
            [upload]
            linger_ms = -1
            batch_logs_max = 10001
            compression = "gzip"
            [admin]
            listen = "localhost"
            "#,
            &[],
        )
        .unwrap_err();
        insta::assert_snapshot!(error.replace("; ", ";\n"), @r#"
        listen.connections_per_address_max = 0: it must be a whole number from 1 to 4096;
        listen.tcp = "0.0.0.0:9000": entries would cross the network unencrypted, add [listen.tls], use a loopback address, or set listen.insecure = true if the network is trusted;
        credentials.a.endpoints = []: it must name a host at least, "*" stands for all;
        credentials.default.endpoints has "https://h": it must be a host name without scheme and port, * is any text;
        credentials.default.endpoints has "h:443": it must be a host name without scheme and port, * is any text;
        credentials.default.endpoints has "": it must be a host name without scheme and port, * is any text;
        credentials.default.source = "vault": it must be one of inline, env, file, cvm-role, tke-oidc;
        upload.linger_ms = -1: it must be a whole number from 0 to 60000;
        upload.batch_logs_max = 10001: it must be a whole number from 1 to 10000;
        upload.compression = "gzip": it must be "lz4", "zstd" or "none";
        defaults.endpoint = "ftp://x": its scheme must be https or http;
        defaults.credentials = "prod": there is no [credentials.prod], known: a, default;
        admin.listen = "localhost": it must be an IP address and a port, such as 127.0.0.1:9464;
        colour is not a setting, known: listen, tenants, rules, defaults, credentials, own_keys, upload, dead_letter, admin, shutdown_grace_ms
        "#);
    }

    #[test]
    fn default_keys_must_be_of_use_at_the_default_endpoint() {
        let config = check(MINIMAL, &[]).unwrap();
        let usual = [
            "*.cls.tencentcs.com",
            "*.cls.tencentyun.com",
            "ap-guangzhou.cls.tencentcs.com",
        ];
        assert_eq!(config.endpoints["default"], usual);
        let listing = |hosts: &str| format!("{MINIMAL}\nendpoints = [{hosts}]");
        let config = check(&listing("\"AP-*\""), &[]).unwrap();
        assert_eq!(config.endpoints["default"], ["ap-*"]);
        let error = check(&listing("\"h\""), &[]).unwrap_err();
        assert_eq!(
            error,
            "defaults.endpoint = \"https://ap-guangzhou.cls.tencentcs.com\": credentials \"default\" \
             may not be used at host ap-guangzhou.cls.tencentcs.com, allowed: h \
             ([credentials.default] endpoints)"
        );
    }

    #[test]
    fn a_token_comes_with_the_hosts_that_may_bear_it() {
        let tenant = |rest: &str| format!("{MINIMAL}\n[[tenants]]\nname = \"a\"\n{rest}");
        let error = check(&tenant("token_file = \"/t\""), &[]).unwrap_err();
        assert_eq!(
            error,
            "tenants[0].hosts is missing: a token says nothing of its host, list the host names that \
             may come with it, or \"*\" for all"
        );
        for good in [
            "token_file = \"/t\"\nhosts = [\"*\"]",
            "certificate = \"web-*\"",
            "unix_uid = 0",
            "anyone = true",
        ] {
            check(&tenant(good), &[]).unwrap();
        }
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let shown = format!("{:?}", check(MINIMAL, &[]).unwrap());
        assert!(!shown.contains("EXAMPLE"), "{shown}");
    }

    #[test]
    fn a_region_names_its_endpoint_on_either_network() {
        let endpoint = |text: &str| {
            let config = check(&format!("[defaults]\n{text}"), &[])?;
            Ok(config.defaults.endpoint.unwrap().to_string())
        };
        for (text, expected) in [
            (
                "region = \"ap-guangzhou\"",
                Ok("https://ap-guangzhou.cls.tencentcs.com"),
            ),
            (
                "region = \"ap-guangzhou\"\nnetwork = \"intranet\"",
                Ok("https://ap-guangzhou.cls.tencentyun.com"),
            ),
            (
                "region = \"Guangzhou\"",
                Err("defaults.region = \"Guangzhou\": it must be a region such as ap-guangzhou"),
            ),
            (
                "region = \"ap-x\"\nendpoint = \"h\"",
                Err("defaults.region and defaults.endpoint exclude each other"),
            ),
            (
                "network = \"intranet\"",
                Err("defaults.network needs defaults.region"),
            ),
            (
                "region = \"ap-x\"\nnetwork = \"vpc\"",
                Err("defaults.network = \"vpc\": it must be internet or intranet"),
            ),
            (
                "endpoint = \"cls.tencentcloudapi.com\"",
                Err(
                    "defaults.endpoint = \"cls.tencentcloudapi.com\": this is the address of API 3.0, \
                     which takes no logs: use ap-guangzhou.cls.tencentcs.com with the region of your topic",
                ),
            ),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(endpoint(text), expected, "{text}");
        }
    }

    #[test]
    fn the_topic_of_the_examples_is_refused() {
        let error =
            check("[defaults]\ntopic_id = \"replace-with-your-topic-id\"", &[]).unwrap_err();
        assert!(error.contains("put in the ID of your topic"), "{error}");
    }

    #[test]
    fn the_road_is_read_from_the_file_or_from_the_variables_of_other_programs() {
        let upload = |text: &str, environment: &[(&str, &str)]| {
            check(&format!("[upload]\n{text}"), environment).map(|config| config.road)
        };
        let road = upload(
            "ca_file = \"/ca\"\nproxy = \"http://p:1\"\nproxy_user = \"u\"\n\
             proxy_password_file = \"/pw\"\nno_proxy = [\"*.local\"]\ninsecure = true",
            &[],
        )
        .unwrap();
        let proxy = road.https_proxy.unwrap();
        assert_eq!(
            (proxy.url.as_str(), proxy.user.as_deref()),
            ("http://p:1", Some("u"))
        );
        assert_eq!(proxy.password, Some(road::Password::File("/pw".into())));
        assert!(road.insecure && road.no_proxy.matches("x.local", 443));
        let environment = [
            ("https_proxy", "http://a:1"),
            ("ALL_PROXY", "http://b:2"),
            ("NO_PROXY", "x, .y:80"),
        ];
        let road = upload("proxy = \"env\"", &environment).unwrap();
        assert_eq!(road.https_proxy.unwrap().url, "http://a:1");
        assert_eq!(road.http_proxy.unwrap().url, "http://b:2");
        assert!(road.no_proxy.matches("z.y", 80));
        assert_eq!(upload("", &environment).unwrap(), Road::default());
        let error = upload(
            "proxy = \"socks5://u:SECRET@p\"\nno_proxy = [\"10.*\"]",
            &[],
        )
        .unwrap_err();
        assert!(
            error.contains("upload.proxy: it must be http")
                && error.contains("\"10.*\" can never match"),
            "{error}"
        );
        assert!(!error.contains("SECRET"), "{error}");
        let error = upload("proxy_user = \"u\"", &[]).unwrap_err();
        assert!(error.contains("need proxy"), "{error}");
    }

    #[test]
    fn what_surrounds_a_key_is_no_part_of_it_and_what_is_in_it_is_a_fault() {
        let text = "[credentials.a]\nsource = \"env\"";
        let pair = |id: &str| {
            let environment = [
                ("TENCENTCLOUD_SECRET_ID", id),
                ("TENCENTCLOUD_SECRET_KEY", "\u{feff}k\n"),
            ];
            check(text, &environment).map(|config| config.credentials["a"].clone())
        };
        let Ok(CredentialSource::Inline(credentials)) = pair(" i\r\n") else {
            panic!()
        };
        assert_eq!(
            (credentials.id.expose(), credentials.key.expose()),
            ("i", "k")
        );
        for (id, fault) in [
            (
                "\"HIDDEN\"",
                "[credentials.a] secret_id has quotes in it, which are no part of a key",
            ),
            (
                "HID\u{e9}N",
                "[credentials.a] secret_id has a character that no HTTP header can carry",
            ),
        ] {
            assert_eq!(pair(id).unwrap_err(), fault);
        }
    }
}
