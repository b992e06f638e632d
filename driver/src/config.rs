//! The driver's settings: environment variables, because `docker plugin set` knows nothing else.
//!
//! [`SETTINGS`] is the one table of names, defaults and meanings; README's table is tested against
//! it. Defaults live here and not in `config.json`: a plugin upgrade keeps the old environment. An
//! empty value is the default, for the same reason. Nothing here touches a file or the network.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Least bound of a journal: what is in flight takes half, and a segment must remain to be dropped.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name of the environment variable.
    pub name: &'static str,
    /// Value that an absent or empty variable stands for.
    pub default: &'static str,
    /// What a value is: its type, unit and range.
    pub rule: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

/// Every setting, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    PLUGIN_SOCKET,
    STATE_DIR,
    FIFO_DIR,
    SHIPPER,
    SHIPPER_CA_FILE,
    SHIPPER_CERT_FILE,
    SHIPPER_KEY_FILE,
    SHIPPER_TOKEN_FILE,
    SHIPPER_INSECURE,
    HOST_NAME,
    LOG_LEVEL,
    JOURNAL_SIZE,
    JOURNAL_TOTAL_SIZE,
    JOURNAL_MEMORY_SIZE,
    JOURNAL_FREE_DISK,
    JOURNAL_SYNC_MS,
    JOURNAL_BLOCK_MS_MAX,
    KEEP_FILE_SIZE,
    KEEP_FILE_TOTAL_SIZE,
    SANDBOX,
];

const PATH_RULE: &str = "an absolute path";
const OPTIONAL_PATH_RULE: &str = "an absolute path, or empty";
const SIZE_RULE: &str = "a size: digits and an optional unit k, m, g (powers of 1024)";

const PLUGIN_SOCKET: Setting = Setting {
    name: "PLUGIN_SOCKET",
    default: "/run/docker/plugins/tencent-cls.sock",
    rule: PATH_RULE,
    doc: "socket on which the engine speaks to the driver",
};
const STATE_DIR: Setting = Setting {
    name: "STATE_DIR",
    // Inside the propagated mount: the only place that survives a plugin upgrade.
    default: "/run/docker/logging/state",
    rule: PATH_RULE,
    doc: "folder of the container table and the journals",
};
const FIFO_DIR: Setting = Setting {
    name: "FIFO_DIR",
    // Fixed in the engine: moby daemon/logger/plugin.go.
    default: "/run/docker/logging",
    rule: PATH_RULE,
    doc: "folder in which the engine makes the FIFOs",
};
const SHIPPER: Setting = Setting {
    name: "SHIPPER",
    // Both places at which the host's socket can be seen: the plugin has the host's /run at
    // /host/run, any other process has it at /run. A place that does not exist fails at once.
    default: "unix:///host/run/cls-shipper/shipper.sock,unix:///run/cls-shipper/shipper.sock",
    rule: "endpoints, separated by commas: unix:///path, http://host:port or https://host:port",
    doc: "where shippers listen; the first that answers is used, the others take over; the addresses of one name come in random order",
};
const SHIPPER_CA_FILE: Setting = Setting {
    name: "SHIPPER_CA_FILE",
    default: "",
    rule: OPTIONAL_PATH_RULE,
    doc: "PEM certificates that vouch for an https shipper; required by https endpoints",
};
const SHIPPER_CERT_FILE: Setting = Setting {
    name: "SHIPPER_CERT_FILE",
    default: "",
    rule: OPTIONAL_PATH_RULE,
    doc: "PEM certificate that names this host to the shipper; needs SHIPPER_KEY_FILE",
};
const SHIPPER_KEY_FILE: Setting = Setting {
    name: "SHIPPER_KEY_FILE",
    default: "",
    rule: OPTIONAL_PATH_RULE,
    doc: "PEM private key of SHIPPER_CERT_FILE",
};
const SHIPPER_TOKEN_FILE: Setting = Setting {
    name: "SHIPPER_TOKEN_FILE",
    default: "",
    rule: OPTIONAL_PATH_RULE,
    doc: "file with the bearer token that names this host to the shipper; read at every connection",
};
const SHIPPER_INSECURE: Setting = Setting {
    name: "SHIPPER_INSECURE",
    default: "false",
    rule: "true or false",
    doc: "true allows http endpoints beyond loopback: entries and token cross the network in the clear",
};
const HOST_NAME: Setting = Setting {
    name: "HOST_NAME",
    default: "",
    rule: "text of at most 255 bytes, or empty for the kernel's host name",
    doc: "host name in every record (`__hostname__`)",
};
const LOG_LEVEL: Setting = Setting {
    name: "LOG_LEVEL",
    default: "info",
    rule: "one of error, warn, info, debug, trace",
    doc: "least level of the driver's own messages, which the engine puts into its log",
};
const JOURNAL_SIZE: Setting = Setting {
    name: "JOURNAL_SIZE",
    default: "256m",
    rule: SIZE_RULE,
    doc: "bound of one container's journal, at least 1m; `--log-opt journal-size` overrides it",
};
const JOURNAL_TOTAL_SIZE: Setting = Setting {
    name: "JOURNAL_TOTAL_SIZE",
    default: "4g",
    rule: SIZE_RULE,
    doc: "bound of all journals on the host's disk together, at least JOURNAL_SIZE",
};
const JOURNAL_MEMORY_SIZE: Setting = Setting {
    name: "JOURNAL_MEMORY_SIZE",
    default: "256m",
    rule: SIZE_RULE,
    doc: "bound of all that is in memory together: journals of containers with `--log-opt no-file`, and what a disk refuses; beyond it each container has 128k, and the oldest entries are dropped",
};
const JOURNAL_FREE_DISK: Setting = Setting {
    name: "JOURNAL_FREE_DISK",
    default: "512m",
    rule: SIZE_RULE,
    doc: "free disk below which journals stop growing",
};
const JOURNAL_SYNC_MS: Setting = Setting {
    name: "JOURNAL_SYNC_MS",
    default: "1000",
    rule: "milliseconds, 10 to 600000",
    doc: "age at which unacknowledged bytes are brought to stable storage: what power loss may cost",
};
const JOURNAL_BLOCK_MS_MAX: Setting = Setting {
    name: "JOURNAL_BLOCK_MS_MAX",
    default: "5000",
    // A container that waits can be neither stopped nor removed.
    rule: "milliseconds, 0 to 600000",
    doc: "how long a full journal lets a container of mode=blocking wait while the shipper takes less than 1 MiB of it; then it drops the oldest entries",
};
const KEEP_FILE_SIZE: Setting = Setting {
    name: "KEEP_FILE_SIZE",
    default: "1m",
    rule: SIZE_RULE,
    doc: "acknowledged entries that are kept of each container for inspection (`--log-opt keep-file`); 0 keeps none",
};
const KEEP_FILE_TOTAL_SIZE: Setting = Setting {
    name: "KEEP_FILE_TOTAL_SIZE",
    default: "64m",
    rule: SIZE_RULE,
    doc: "acknowledged entries that are kept of all containers together, also of those that are gone; the oldest go first",
};
const SANDBOX: Setting = Setting {
    name: "SANDBOX",
    default: "on",
    rule: "on or off",
    doc: "whether the driver gives up capabilities, system calls and files that it does not need",
};

/// Where a shipper listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, in the clear: `http://host:port`.
    Http(String),
    /// TCP with TLS: `https://host:port`.
    Https(String),
}

impl Endpoint {
    /// Returns the TCP port; `None` for a unix socket.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Unix(_) => None,
            Self::Http(uri) | Self::Https(uri) => uri.parse::<http::Uri>().ok()?.port_u16(),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(uri) | Self::Https(uri) => f.write_str(uri),
        }
    }
}

/// The settings as given: empty values are absent.
#[derive(Debug, Clone, Default)]
pub struct RawConfig {
    values: HashMap<&'static str, String>,
    kernel_host_name: String,
}

impl RawConfig {
    /// Takes the settings from the environment of this process, and the kernel's host name.
    pub fn from_env() -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "the one place that reads the environment"
        )]
        let read = |setting: &Setting| std::env::var(setting.name).ok();
        let values = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.name, read(setting)?)))
            .collect();
        let kernel_host_name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Self {
            values,
            kernel_host_name,
        }
    }

    /// Takes the settings from pairs of name and value; a name that is no setting is ignored, as
    /// in an environment.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut values = HashMap::new();
        for (name, value) in pairs {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) {
                values.insert(setting.name, value.to_owned());
            }
        }
        Self {
            values,
            kernel_host_name: "localhost".to_owned(),
        }
    }

    fn get(&self, setting: &Setting) -> &str {
        match self.values.get(setting.name).map(|value| value.trim()) {
            Some(value) if !value.is_empty() => value,
            _ => setting.default,
        }
    }
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Socket on which the engine speaks to the driver.
    pub plugin_socket: PathBuf,
    /// Folder of the container table and the journals.
    pub state_dir: PathBuf,
    /// Folder in which the engine makes the FIFOs.
    pub fifo_dir: PathBuf,
    /// Where shippers listen, in order of preference; never empty.
    pub shipper: Vec<Endpoint>,
    /// Certificates that vouch for an https shipper.
    pub shipper_ca_file: Option<PathBuf>,
    /// This host's certificate and private key.
    pub shipper_identity_files: Option<(PathBuf, PathBuf)>,
    /// File with this host's bearer token.
    pub shipper_token_file: Option<PathBuf>,
    /// Host name in every record.
    pub host_name: String,
    /// Least level of the driver's own messages.
    pub log_level: tracing::Level,
    /// Bound of one container's journal.
    pub journal_bytes_max: u64,
    /// Bound of all journals together.
    pub journal_total_bytes_max: u64,
    /// Bound of all that journals hold in memory.
    pub journal_memory_bytes_max: u64,
    /// Free disk below which journals stop growing.
    pub disk_free_bytes_min: u64,
    /// Age at which unacknowledged bytes are synced.
    pub journal_sync: Duration,
    /// How long a full journal makes a container wait.
    pub journal_block_max: Duration,
    /// Acknowledged bytes that are kept of each container.
    pub keep_bytes_max: u64,
    /// Acknowledged bytes that are kept of all containers.
    pub keep_total_bytes_max: u64,
    /// Whether the process gives up what it does not need.
    pub sandbox: bool,
}

/// What is wrong with the settings: one sentence per fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad settings: {}", .faults.join("; "))]
pub struct ConfigError {
    /// The faults; never empty.
    pub faults: Vec<String>,
}

/// How long bytes may wait in a container's pipe, whatever a shipper allows.
const PIPE_HOLD_MAX: Duration = Duration::from_millis(500);

/// Returns the lock file of a plugin socket, `<socket>.lock`.
pub(crate) fn lock_file_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

impl Config {
    /// Returns how long bytes may wait in a container's pipe at most. A loss of power costs what waits
    /// there, too.
    pub(crate) fn pipe_hold_max(&self) -> Duration {
        PIPE_HOLD_MAX.min(self.journal_sync / 4)
    }

    /// Returns the time between two rounds of syncs. A round syncs what the round before has seen, so
    /// that bytes are on stable storage two rounds after they left the pipe.
    pub(crate) fn journal_sync_interval(&self) -> Duration {
        self.journal_sync * 3 / 8
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// All faults of all settings together, each with name, value and rule.
    pub fn parse(raw: &RawConfig) -> Result<Self, ConfigError> {
        let mut check = Checker {
            raw,
            faults: Vec::new(),
        };
        let config = Self {
            plugin_socket: check.path(&PLUGIN_SOCKET).unwrap_or_default(),
            state_dir: check.path(&STATE_DIR).unwrap_or_default(),
            fifo_dir: check.path(&FIFO_DIR).unwrap_or_default(),
            shipper: check.endpoints(&SHIPPER),
            shipper_ca_file: check.path(&SHIPPER_CA_FILE),
            shipper_identity_files: check.identity_files(),
            shipper_token_file: check.path(&SHIPPER_TOKEN_FILE),
            host_name: check.host_name(),
            log_level: check.log_level(),
            journal_bytes_max: check.size(&JOURNAL_SIZE, JOURNAL_BYTES_MIN),
            journal_total_bytes_max: check.size(&JOURNAL_TOTAL_SIZE, 0),
            journal_memory_bytes_max: check.size(&JOURNAL_MEMORY_SIZE, 0),
            disk_free_bytes_min: check.size(&JOURNAL_FREE_DISK, 0),
            journal_sync: check.millis(&JOURNAL_SYNC_MS, 10),
            journal_block_max: check.millis(&JOURNAL_BLOCK_MS_MAX, 0),
            keep_bytes_max: check.size(&KEEP_FILE_SIZE, 0),
            keep_total_bytes_max: check.size(&KEEP_FILE_TOTAL_SIZE, 0),
            sandbox: check.switch(&SANDBOX),
        };
        let is_insecure = check.flag(&SHIPPER_INSECURE);
        check.relations(&config, is_insecure);
        match check.faults {
            faults if faults.is_empty() => Ok(config),
            faults => Err(ConfigError { faults }),
        }
    }
}

/// Checks values and collects what is wrong.
struct Checker<'a> {
    raw: &'a RawConfig,
    faults: Vec<String>,
}

impl Checker<'_> {
    fn fault(&mut self, setting: &Setting, rule: &str) {
        let (name, value) = (setting.name, self.raw.get(setting));
        self.faults.push(format!("{name}={value:?} is not {rule}"));
    }

    fn path(&mut self, setting: &Setting) -> Option<PathBuf> {
        let value = self.raw.get(setting);
        if value.is_empty() {
            return None;
        }
        if !value.starts_with('/') {
            self.fault(setting, PATH_RULE);
        }
        Some(PathBuf::from(value))
    }

    fn endpoints(&mut self, setting: &Setting) -> Vec<Endpoint> {
        let values = self.raw.get(setting).split(',').map(str::trim);
        let endpoints: Vec<_> = values.map(endpoint).collect();
        if endpoints.iter().any(Option::is_none) {
            self.fault(setting, setting.rule);
        }
        endpoints.into_iter().flatten().collect()
    }

    fn identity_files(&mut self) -> Option<(PathBuf, PathBuf)> {
        match (self.path(&SHIPPER_CERT_FILE), self.path(&SHIPPER_KEY_FILE)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                self.fault(
                    &SHIPPER_KEY_FILE,
                    "set, but SHIPPER_CERT_FILE is: they go together",
                );
                None
            }
            (None, Some(_)) => {
                self.fault(
                    &SHIPPER_CERT_FILE,
                    "set, but SHIPPER_KEY_FILE is: they go together",
                );
                None
            }
        }
    }

    fn host_name(&mut self) -> String {
        let value = match self.raw.get(&HOST_NAME) {
            "" => &self.raw.kernel_host_name,
            value => value,
        };
        if value.len() > 255 {
            self.fault(&HOST_NAME, HOST_NAME.rule);
        }
        value.to_owned()
    }

    fn log_level(&mut self) -> tracing::Level {
        // `Level` would also take numbers.
        match self.raw.get(&LOG_LEVEL).to_ascii_lowercase().as_str() {
            "error" => tracing::Level::ERROR,
            "warn" => tracing::Level::WARN,
            "info" => tracing::Level::INFO,
            "debug" => tracing::Level::DEBUG,
            "trace" => tracing::Level::TRACE,
            _ => {
                self.fault(&LOG_LEVEL, LOG_LEVEL.rule);
                tracing::Level::INFO
            }
        }
    }

    fn switch(&mut self, setting: &Setting) -> bool {
        match self.raw.get(setting) {
            "on" => true,
            "off" => false,
            _ => {
                self.fault(setting, setting.rule);
                true
            }
        }
    }

    fn size(&mut self, setting: &Setting, bytes_min: u64) -> u64 {
        match bytes(self.raw.get(setting)) {
            Some(bytes) if bytes >= bytes_min => bytes,
            Some(_) => {
                self.fault(setting, &format!("at least {bytes_min} bytes"));
                bytes_min
            }
            None => {
                self.fault(setting, setting.rule);
                bytes_min
            }
        }
    }

    fn millis(&mut self, setting: &Setting, millis_min: u64) -> Duration {
        match self.raw.get(setting).parse() {
            Ok(millis) if (millis_min..=600_000).contains(&millis) => Duration::from_millis(millis),
            _ => {
                self.fault(setting, setting.rule);
                Duration::ZERO
            }
        }
    }

    fn flag(&mut self, setting: &Setting) -> bool {
        match self.raw.get(setting) {
            "true" => true,
            "false" => false,
            _ => {
                self.fault(setting, setting.rule);
                false
            }
        }
    }

    fn relations(&mut self, config: &Config, is_insecure: bool) {
        if !is_insecure && config.shipper.iter().any(is_exposed) {
            self.fault(
                &SHIPPER,
                "safe: entries and token would cross the network in the clear; use https, a \
                 loopback address, or SHIPPER_INSECURE=true if the network is trusted",
            );
        }
        let needs_ca = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Https(_));
        if config.shipper_ca_file.is_none() && config.shipper.iter().any(needs_ca) {
            self.fault(
                &SHIPPER_CA_FILE,
                "set, but SHIPPER names an https endpoint: it says whom to trust",
            );
        }
        if config.journal_total_bytes_max < config.journal_bytes_max {
            self.fault(&JOURNAL_TOTAL_SIZE, "at least JOURNAL_SIZE");
        }
    }
}

fn endpoint(value: &str) -> Option<Endpoint> {
    if let Some(path) = value.strip_prefix("unix://") {
        return path
            .starts_with('/')
            .then(|| Endpoint::Unix(PathBuf::from(path)));
    }
    let uri: http::Uri = value.parse().ok()?;
    let has_address = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
    let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
    let is_plain = has_address && is_bare && !value.contains('@');
    match uri.scheme_str() {
        Some("http") if is_plain => Some(Endpoint::Http(value.to_owned())),
        Some("https") if is_plain => Some(Endpoint::Https(value.to_owned())),
        _ => None,
    }
}

/// Returns whether what goes to an endpoint could be read on the way.
fn is_exposed(endpoint: &Endpoint) -> bool {
    let Endpoint::Http(uri) = endpoint else {
        return false;
    };
    let uri: Option<http::Uri> = uri.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
}

/// Parses a size as Docker writes them: `10m` is 10 MiB.
fn bytes(value: &str) -> Option<u64> {
    let value = value.to_ascii_lowercase();
    let digits = value.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let unit = value.strip_prefix(digits)?.trim();
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_and_journal_together_cost_no_more_than_the_age_of_a_sync() {
        for millis in ["10", "11", "1000", "2500", "600000"] {
            let config =
                Config::parse(&RawConfig::from_pairs([("JOURNAL_SYNC_MS", millis)])).unwrap();
            let age = config.pipe_hold_max() + config.journal_sync_interval() * 2;
            assert!(age <= config.journal_sync, "{millis}: {age:?}");
        }
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::parse(&RawConfig::from_pairs(pairs.iter().copied()))
    }

    #[test]
    fn the_defaults_are_good_and_an_empty_value_is_the_default() {
        let empty: Vec<_> = SETTINGS.iter().map(|setting| (setting.name, " ")).collect();
        for config in [parse(&[]).unwrap(), parse(&empty).unwrap()] {
            assert_eq!(config.journal_bytes_max, 256 << 20);
            assert_eq!(config.journal_sync, Duration::from_secs(1));
            assert_eq!(config.host_name, "localhost");
            assert_eq!(
                config.shipper,
                [
                    Endpoint::Unix("/host/run/cls-shipper/shipper.sock".into()),
                    Endpoint::Unix("/run/cls-shipper/shipper.sock".into()),
                ]
            );
        }
    }

    #[test]
    fn all_faults_are_reported_together_with_name_value_and_rule() {
        let faults = parse(&[
            ("PLUGIN_SOCKET", "relative.sock"),
            ("SHIPPER", "unix:///good.sock,ftp://host:1"),
            ("SHIPPER_CERT_FILE", "/cert.pem"),
            ("LOG_LEVEL", "loud"),
            ("JOURNAL_SIZE", "10 apples"),
            ("JOURNAL_FREE_DISK", "-1"),
            ("JOURNAL_SYNC_MS", "9"),
            ("SANDBOX", "yes"),
        ])
        .unwrap_err()
        .faults;
        for (index, start) in [
            "PLUGIN_SOCKET=\"relative.sock\" is not an absolute path",
            "SHIPPER=\"unix:///good.sock,ftp://host:1\" is not endpoints",
            "SHIPPER_KEY_FILE=\"\" is not set",
            "LOG_LEVEL=\"loud\" is not one of",
            "JOURNAL_SIZE=\"10 apples\" is not a size",
            "JOURNAL_FREE_DISK=\"-1\" is not a size",
            "JOURNAL_SYNC_MS=\"9\" is not milliseconds, 10 to",
            "SANDBOX=\"yes\" is not on or off",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(faults[index].starts_with(start), "{faults:?}");
        }
        assert_eq!(faults.len(), 8, "{faults:?}");
    }

    #[test]
    fn relations_between_settings_are_checked() {
        let https = ("SHIPPER", "https://shipper.example:4317");
        assert!(parse(&[https]).is_err());
        assert!(parse(&[https, ("SHIPPER_CA_FILE", "/ca.pem")]).is_ok());
        assert!(parse(&[("JOURNAL_TOTAL_SIZE", "255m")]).is_err());
        assert!(parse(&[("JOURNAL_TOTAL_SIZE", "256m")]).is_ok());
        assert!(parse(&[("JOURNAL_SIZE", "1023k")]).is_err());
    }

    #[test]
    fn http_beyond_loopback_must_be_wanted() {
        for (endpoint, is_exposed) in [
            ("unix:///s", false),
            ("https://10.0.0.1:9463", false),
            ("http://127.0.0.1:9463", false),
            ("http://127.8.9.1:9463", false),
            ("http://localhost:9463", false),
            ("http://[::1]:9463", false),
            ("http://[::2]:9463", true),
            ("http://10.0.0.1:9463", true),
            ("http://localhost.example:9463", true),
            ("unix:///s,http://shipper:9463", true),
        ] {
            let settings = [("SHIPPER", endpoint), ("SHIPPER_CA_FILE", "/ca.pem")];
            assert_eq!(parse(&settings).is_err(), is_exposed, "{endpoint}");
            let wanted = [&settings[..], &[("SHIPPER_INSECURE", "true")]].concat();
            assert!(parse(&wanted).is_ok(), "{endpoint}");
        }
        let faults = parse(&[("SHIPPER", "http://shipper:9463")])
            .unwrap_err()
            .faults;
        assert!(
            faults[0].starts_with("SHIPPER=\"http://shipper:9463\" is not safe"),
            "{faults:?}"
        );
        assert!(parse(&[("SHIPPER_INSECURE", "maybe")]).is_err());
    }

    #[test]
    fn endpoints_name_a_socket_or_an_address() {
        for bad in [
            "",
            "unix://relative",
            "http://host",
            "http://:80",
            "http://host:80/path",
            "https://user@host:1",
            "host:80",
            "http://host:99999",
        ] {
            assert_eq!(endpoint(bad), None, "{bad:?}");
        }
        for good in [
            "unix:///s",
            "http://host:80",
            "http://[::1]:80",
            "https://a.b:1/",
        ] {
            assert_eq!(endpoint(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (value, expected) in [
            ("0", Some(0)),
            ("1023", Some(1023)),
            ("1k", Some(1024)),
            ("2 MiB", Some(2 << 20)),
            ("3GB", Some(3 << 30)),
            ("17179869184g", None),
            ("1t", None),
            ("m", None),
            ("", None),
            ("1.5m", None),
        ] {
            assert_eq!(bytes(value), expected, "{value:?}");
        }
    }
}
