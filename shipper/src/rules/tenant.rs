//! Tenants: who a host is, and what it may do.
//!
//! A host shows itself by its certificate, by a bearer token, or, on the unix socket, by the user
//! that the kernel names. The first tenant of the configuration whose identity fits is the host's
//! tenant; no fit means that the call is refused. A tenant's bounds are checked when a stream opens
//! and in `Check`; the reason goes to the driver, which keeps the journal and asks again.
//!
//! Names are matched by patterns: `*` is any text, also none, `?` is one character, and nothing else
//! is special. A name that holds those characters itself is matched like any other. An empty list
//! allows everything.
//!
//! A tenant's bytes a second are shared by all calls that name the same host.
//!
//! Under another configuration a tenant is the same by its name: what its hosts have open and have
//! sent counts on.
//!
//! Without any tenant in the configuration, root on the unix socket may do everything and nobody
//! else anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use tracing::error;
use wildmatch::WildMatch;

use crate::base::chain::Chain;
use crate::base::secret::Secret;
use crate::base::watched::Watched;
use crate::config::{IdentityConfig, TenantConfig};
use crate::keys::store::CredentialRef;

/// How often a tenant's refusals are logged, at most.
const REFUSAL_LOG_PERIOD: Duration = Duration::from_secs(1);

/// How a tenant's hosts show themselves.
#[derive(Debug)]
pub enum Identity {
    /// A client certificate with a DNS name that fits.
    Certificate(WildMatch),
    /// A bearer token, which stands in a file.
    Token(TokenFile),
    /// A user on the unix socket.
    UnixUid(u32),
    /// Anyone who can connect: for networks that are trusted as a whole.
    Anyone,
}

/// A file with a token.
#[derive(Debug)]
pub struct TokenFile {
    token: Watched<Secret>,
    /// Calls in a row for which it could not be read.
    failed_count: AtomicU64,
}

/// What is known of a peer.
#[derive(Debug, Default)]
pub struct Peer {
    /// Its user, if it came over the unix socket.
    pub unix_uid: Option<u32>,
    /// The DNS names of its certificate, which the TLS library has verified.
    pub certificate_names: Vec<String>,
    /// The token it sent.
    pub token: Option<Secret>,
}

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    name: String,
    identity: Identity,
    hosts: Vec<WildMatch>,
    topics: Vec<WildMatch>,
    credentials: Vec<WildMatch>,
    streams_max: usize,
    bytes_per_s: Option<u64>,
    usage: Arc<Usage>,
}

/// What a tenant has done, whatever the configuration said of it then.
#[derive(Debug, Default)]
struct Usage {
    stream_count: AtomicUsize,
    /// By host name, as long as a stream of it is open or it is ahead of its allowance.
    paid: Mutex<HashMap<String, Arc<Paid>>>,
    refusals: Mutex<Refusals>,
}

/// What a host may send, over all its calls.
#[derive(Debug)]
pub struct Allowance {
    bytes_per_s: u64,
    paid: Arc<Paid>,
}

/// When a host's allowance covers what it has sent.
#[derive(Debug, Default)]
struct Paid(Mutex<Option<Instant>>);

impl Allowance {
    /// Pays for bytes. Returns until when the allowance is used up.
    pub fn pay(&self, bytes: usize, now: Instant) -> Instant {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_s);
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_until = self.paid.until();
        let paid = paid_until.map_or(now, |until| until.max(now)) + time;
        *paid_until = Some(paid);
        paid
    }
}

impl Paid {
    fn is_ahead(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| until > now)
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was said of a tenant's refusals.
#[derive(Debug, Default)]
struct Refusals {
    said_at: Option<Instant>,
    suppressed_count: u64,
}

/// A host of a tenant, for the length of a call.
#[derive(Debug, Clone)]
pub struct Host {
    tenant: Arc<Tenant>,
    certificate_names: Vec<String>,
}

/// One of a tenant's streams; dropping it makes room for another one.
#[derive(Debug)]
pub struct StreamPermit(Arc<Usage>);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.stream_count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All tenants, in the configuration's order.
#[derive(Debug)]
pub struct Tenants {
    tenants: Vec<Arc<Tenant>>,
    /// Refused calls, by what the peer has shown.
    strangers: Arc<[AtomicU64; 4]>,
}

/// Why a call is refused. Which tenants exist is not said to strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Over the unix socket.
    #[error(
        "no tenant of the shipper is for uid {uid} on the unix socket; without [[tenants]] it must be root"
    )]
    Unix {
        /// The peer's user.
        uid: u32,
    },
    /// With a token that fits nobody.
    #[error(
        "the token is not that of any tenant of the shipper; compare SHIPPER_TOKEN_FILE with token_file"
    )]
    Token,
    /// With a certificate that fits nobody.
    #[error("the certificate's names are not those of any tenant of the shipper")]
    Certificate,
    /// With nothing.
    #[error(
        "the shipper wants a client certificate or a bearer token: set SHIPPER_CERT_FILE and SHIPPER_KEY_FILE, or SHIPPER_TOKEN_FILE"
    )]
    Nothing,
}

impl Tenants {
    /// Makes the tenants; without any, root on the unix socket is the only one.
    pub fn new(configs: &[TenantConfig]) -> Self {
        let none = Self {
            tenants: Vec::new(),
            strangers: Arc::default(),
        };
        none.succeeded_by(configs)
    }

    /// Makes the tenants of another configuration, which take over what those of the same name have
    /// open and have sent.
    pub fn succeeded_by(&self, configs: &[TenantConfig]) -> Self {
        let mut known = self.tenants.clone();
        let local = [TenantConfig {
            name: "local".into(),
            identity: IdentityConfig::UnixUid(0),
            hosts: Vec::new(),
            topics: Vec::new(),
            credentials: Vec::new(),
            streams_max: usize::MAX,
            bytes_per_s: None,
        }];
        let configs = if configs.is_empty() { &local } else { configs };
        let tenants = configs.iter().map(|config| {
            // Names may be there twice: the first goes on as the first.
            let same = known.iter().position(|tenant| tenant.name == config.name);
            let usage = same.map(|index| Arc::clone(&known.remove(index).usage));
            Arc::new(Tenant::new(config, usage.unwrap_or_default()))
        });
        Self {
            tenants: tenants.collect(),
            strangers: Arc::clone(&self.strangers),
        }
    }

    /// Returns what a tenant of this name may not do of this, as the configuration is now, one sentence
    /// each. Of several tenants of a name, one that may do it is enough.
    pub fn faults(&self, tenant: &str, topic_id: &str, credentials: &CredentialRef) -> Vec<String> {
        let named = self.tenants.iter().filter(|known| known.name == tenant);
        let faults = named.map(|tenant| tenant.faults(topic_id, credentials));
        let least = faults.min_by_key(Vec::len);
        least.unwrap_or_else(|| vec![format!("tenant {tenant} is not configured any more")])
    }

    /// Counts a refused call. Returns how many of its kind there were, if it is to be logged: each
    /// kind is, and then ever more rarely.
    pub fn count_stranger(&self, error: AdmitError) -> Option<u64> {
        let [unix, token, certificate, nothing] = &*self.strangers;
        let kind = match error {
            AdmitError::Unix { .. } => unix,
            AdmitError::Token => token,
            AdmitError::Certificate => certificate,
            AdmitError::Nothing => nothing,
        };
        let count = kind.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }

    /// Returns the peer's host, of the first tenant that fits.
    ///
    /// # Errors
    /// No tenant fits; the text says what the peer could show.
    pub fn admit(&self, peer: &Peer) -> Result<Host, AdmitError> {
        if let Some(tenant) = self
            .tenants
            .iter()
            .find(|tenant| tenant.identity.fits(peer))
        {
            let tenant = Arc::clone(tenant);
            return Ok(Host {
                tenant,
                certificate_names: peer.certificate_names.clone(),
            });
        }
        Err(match peer {
            Peer {
                unix_uid: Some(uid),
                ..
            } => AdmitError::Unix { uid: *uid },
            Peer { token: Some(_), .. } => AdmitError::Token,
            Peer {
                certificate_names, ..
            } if !certificate_names.is_empty() => AdmitError::Certificate,
            Peer { .. } => AdmitError::Nothing,
        })
    }
}

/// Returns the pairs of tenants whose hosts may come under the same name, one sentence each: the
/// ledger shows what was last reported under a name, whichever of the two it was. A certificate holds
/// its host to its names, and root of this machine is nobody's rival.
pub fn overlaps(configs: &[TenantConfig]) -> Vec<String> {
    let is_rival = |config: &&TenantConfig| !matches!(config.identity, IdentityConfig::UnixUid(_));
    let is_loose =
        |config: &TenantConfig| !matches!(config.identity, IdentityConfig::Certificate(_));
    let rivals: Vec<&TenantConfig> = configs.iter().filter(is_rival).collect();
    let mut overlaps = Vec::new();
    for (index, one) in rivals.iter().enumerate() {
        for other in rivals.iter().skip(index + 1) {
            if (is_loose(one) || is_loose(other)) && may_be_same(&one.hosts, &other.hosts) {
                overlaps.push(format!(
                    "hosts of tenants {} and {} may have the same name: the ledger then shows the word of \
                     either for both",
                    one.name, other.name
                ));
            }
        }
    }
    overlaps
}

/// Returns whether a name may match one of each; it may go unseen where both have a `*` in the middle.
fn may_be_same(some: &[String], others: &[String]) -> bool {
    let any = ["*".to_owned()];
    let some = if some.is_empty() { &any } else { some };
    let others = if others.is_empty() { &any } else { others };
    let covers = |one: &String, other: &String| WildMatch::new(one).matches(other);
    some.iter().any(|one| {
        others
            .iter()
            .any(|other| covers(one, other) || covers(other, one))
    })
}

impl Identity {
    fn new(config: &IdentityConfig) -> Self {
        match config {
            IdentityConfig::Certificate(pattern) => Self::Certificate(WildMatch::new(pattern)),
            IdentityConfig::TokenFile(path) => Self::Token(TokenFile {
                token: Watched::new(vec![path.clone()]),
                failed_count: AtomicU64::new(0),
            }),
            IdentityConfig::UnixUid(uid) => Self::UnixUid(*uid),
            IdentityConfig::Anyone => Self::Anyone,
        }
    }

    fn fits(&self, peer: &Peer) -> bool {
        match self {
            Self::Certificate(pattern) => peer
                .certificate_names
                .iter()
                .any(|name| pattern.matches(name)),
            Self::Token(file) => peer.token.as_ref().is_some_and(|token| file.holds(token)),
            Self::UnixUid(uid) => peer.unix_uid == Some(*uid),
            Self::Anyone => true,
        }
    }
}

impl TokenFile {
    /// Compares in constant time. A file that can't be read fits nobody, and neither does an empty one.
    fn holds(&self, token: &Secret) -> bool {
        let read = self.token.get(|paths| {
            let text = paths
                .first()
                .map(std::fs::read_to_string)
                .transpose()?
                .unwrap_or_default();
            Ok::<_, std::io::Error>(Secret::new(text.trim().to_owned()))
        });
        match read {
            Ok(wanted) => {
                self.failed_count.store(0, Ordering::Relaxed);
                let (wanted, token) = (wanted.expose().as_bytes(), token.expose().as_bytes());
                !wanted.is_empty() && bool::from(wanted.ct_eq(token))
            }
            Err(error) => {
                // Whoever shows any token at all comes here.
                let count = self.failed_count.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_power_of_two() {
                    error!(path = %self.token.path().display(), error = %Chain(&error), count,
                        "token file can't be read");
                }
                false
            }
        }
    }
}

impl Tenant {
    fn new(config: &TenantConfig, usage: Arc<Usage>) -> Self {
        let patterns = |texts: &[String]| {
            texts
                .iter()
                .map(|text| WildMatch::new(text))
                .collect::<Vec<_>>()
        };
        Self {
            name: config.name.clone(),
            identity: Identity::new(&config.identity),
            hosts: patterns(&config.hosts),
            topics: patterns(&config.topics),
            credentials: patterns(&config.credentials),
            streams_max: config.streams_max,
            bytes_per_s: config.bytes_per_s,
            usage,
        }
    }
}

impl Tenant {
    /// Returns where its lines may not go and which keys may not be used for them, one sentence each.
    fn faults(&self, topic_id: &str, credentials: &CredentialRef) -> Vec<String> {
        let mut faults = Vec::new();
        let name = &self.name;
        if !allows(&self.topics, topic_id) {
            faults.push(format!(
                "topic_id \"{topic_id}\" is not one that tenant {name} may use"
            ));
        }
        if let CredentialRef::Named(source) = credentials
            && !allows(&self.credentials, source)
        {
            faults.push(format!(
                "credentials \"{source}\" are not ones that tenant {name} may use"
            ));
        }
        faults
    }
}

impl Host {
    /// Returns the tenant's name.
    pub fn tenant(&self) -> &str {
        &self.tenant.name
    }

    /// Returns how many of the tenant's refusals were not logged since the last one that was, if one
    /// may be logged now. Each tenant's are counted apart: one must not hide another's.
    pub fn may_log_refusal(&self, now: Instant) -> Option<u64> {
        let refusals = self.tenant.usage.refusals.lock();
        let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
        let is_early = |at: Instant| now < at + REFUSAL_LOG_PERIOD;
        if refusals.said_at.is_some_and(is_early) {
            refusals.suppressed_count += 1;
            return None;
        }
        refusals.said_at = Some(now);
        Some(std::mem::take(&mut refusals.suppressed_count))
    }

    /// Returns the allowance of a host of this name, which all calls share; `None` if it has no limit.
    pub fn allowance(&self, host: &str, now: Instant) -> Option<Allowance> {
        let bytes_per_s = self.tenant.bytes_per_s?;
        let paid = self.tenant.usage.paid.lock();
        let mut paid = paid.unwrap_or_else(PoisonError::into_inner);
        if !paid.contains_key(host) {
            // One that connects anew does not begin anew.
            paid.retain(|_, known| Arc::strong_count(known) > 1 || known.is_ahead(now));
        }
        let paid = Arc::clone(paid.entry(host.to_owned()).or_default());
        Some(Allowance { bytes_per_s, paid })
    }

    /// Returns what the host may not do of this, one sentence each.
    pub fn faults(&self, host: &str, topic_id: &str, credentials: &CredentialRef) -> Vec<String> {
        let mut faults = Vec::new();
        let name = &self.tenant.name;
        if !self.may_be(host) {
            faults.push(format!(
                "host name \"{host}\" is not one that tenant {name} may use"
            ));
        }
        faults.extend(self.tenant.faults(topic_id, credentials));
        faults
    }

    /// Takes one of the tenant's streams.
    ///
    /// # Errors
    /// All are in use; the text says how many there are.
    pub fn open_stream(&self) -> Result<StreamPermit, String> {
        let streams_max = self.tenant.streams_max;
        let take = |count: usize| (count < streams_max).then_some(count + 1);
        match self.tenant.usage.stream_count.fetch_update(
            Ordering::Relaxed,
            Ordering::Relaxed,
            take,
        ) {
            Ok(_) => Ok(StreamPermit(Arc::clone(&self.tenant.usage))),
            Err(_) => Err(format!(
                "tenant {} has {streams_max} open streams, its bound (streams_max)",
                self.tenant.name
            )),
        }
    }

    /// Returns whether the host may bear a name. One with a certificate bears one of the
    /// certificate's: it can't claim another's.
    pub fn may_be(&self, host: &str) -> bool {
        let has_certificate = matches!(self.tenant.identity, Identity::Certificate(_));
        if has_certificate && !self.certificate_names.iter().any(|name| name == host) {
            return false;
        }
        allows(&self.tenant.hosts, host)
    }
}

fn allows(patterns: &[WildMatch], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, identity: IdentityConfig) -> TenantConfig {
        TenantConfig {
            name: name.into(),
            identity,
            hosts: Vec::new(),
            topics: vec!["team-a-*".into()],
            credentials: vec!["a".into()],
            streams_max: 2,
            bytes_per_s: None,
        }
    }

    #[test]
    fn tenants_whose_hosts_may_have_the_same_name_are_told() {
        let check = |hosts: [&[&str]; 2], identities: [IdentityConfig; 2], expected: usize| {
            let [one, other] = hosts.map(|hosts| hosts.iter().map(|host| (*host).to_owned()));
            let [first, second] = identities;
            let configs = [
                TenantConfig {
                    hosts: one.collect(),
                    ..config("a", first)
                },
                TenantConfig {
                    hosts: other.collect(),
                    ..config("b", second)
                },
            ];
            assert_eq!(overlaps(&configs).len(), expected, "{configs:?}");
        };
        let token = || IdentityConfig::TokenFile("/t".into());
        let certificate = || IdentityConfig::Certificate("*".into());
        check([&["*"], &["*"]], [token(), token()], 1);
        check([&["web-*"], &["web-1"]], [token(), token()], 1);
        check([&["web-*"], &["db-*"]], [token(), token()], 0);
        check([&["web-*"], &[]], [token(), IdentityConfig::Anyone], 1);
        check([&["web-*"], &[]], [token(), certificate()], 1);
        check([&[], &[]], [certificate(), certificate()], 0);
        check([&["*"], &[]], [token(), IdentityConfig::UnixUid(0)], 0);
    }

    fn token(text: &str) -> Peer {
        Peer {
            token: Some(Secret::new(text.into())),
            ..Peer::default()
        }
    }

    fn certificate(name: &str) -> Peer {
        Peer {
            certificate_names: vec![name.into()],
            ..Peer::default()
        }
    }

    fn uid(uid: u32) -> Peer {
        Peer {
            unix_uid: Some(uid),
            ..Peer::default()
        }
    }

    #[test]
    fn without_tenants_root_on_the_unix_socket_is_the_only_one() {
        let tenants = Tenants::new(&[]);
        let host = tenants.admit(&uid(0)).unwrap();
        assert_eq!(
            host.faults("any", "any", &CredentialRef::Named("any".into())),
            Vec::<String>::new()
        );
        assert_eq!(
            tenants.admit(&uid(1000)).unwrap_err(),
            AdmitError::Unix { uid: 1000 }
        );
        assert_eq!(tenants.admit(&token("x")).unwrap_err(), AdmitError::Token);
        assert_eq!(
            tenants.admit(&certificate("h")).unwrap_err(),
            AdmitError::Certificate
        );
        assert_eq!(
            tenants.admit(&Peer::default()).unwrap_err(),
            AdmitError::Nothing
        );
    }

    #[test]
    fn a_token_is_read_again_when_its_file_changes_and_an_empty_one_fits_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let tenants = Tenants::new(&[config("a", IdentityConfig::TokenFile(path.clone()))]);
        assert!(tenants.admit(&token("one")).is_err(), "there is no file");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(tenants.admit(&token("one")).unwrap().tenant(), "a");
        std::fs::write(&path, "second").unwrap();
        assert!(tenants.admit(&token("one")).is_err());
        assert!(tenants.admit(&token("second")).is_ok());
        std::fs::write(&path, "").unwrap();
        assert!(tenants.admit(&token("")).is_err());
    }

    #[test]
    fn a_certificate_bears_its_own_name_only() {
        let tenants = Tenants::new(&[config("a", IdentityConfig::Certificate("web-*".into()))]);
        let host = tenants.admit(&certificate("web-1")).unwrap();
        let own = CredentialRef::Named("a".into());
        assert_eq!(host.faults("web-1", "team-a-1", &own), Vec::<String>::new());
        assert_eq!(
            host.faults("web-2", "team-b-1", &CredentialRef::Named("b".into())),
            [
                "host name \"web-2\" is not one that tenant a may use",
                "topic_id \"team-b-1\" is not one that tenant a may use",
                "credentials \"b\" are not ones that tenant a may use",
            ]
        );
        assert!(tenants.admit(&certificate("db-1")).is_err());
    }

    #[test]
    fn the_first_tenant_that_fits_is_the_one() {
        let of = |name| config(name, IdentityConfig::Certificate("web-*".into()));
        let tenants = Tenants::new(&[of("first"), of("second")]);
        let host = tenants.admit(&certificate("web-1")).unwrap();
        assert_eq!(host.tenant(), "first");
    }

    #[test]
    fn patterns_know_two_characters_and_an_empty_list_allows_all() {
        let topics = |topics: &[&str]| {
            let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
            let config = TenantConfig {
                topics,
                ..config("a", IdentityConfig::Anyone)
            };
            Tenants::new(&[config]).admit(&Peer::default()).unwrap()
        };
        let own = CredentialRef::Named("a".into());
        for (patterns, topic, is_allowed) in [
            (&[][..], "any", true),
            (&["a*c"], "abbc", true),
            (&["a*c"], "a*c", true),
            (&["a*c"], "ab", false),
            (&["a?c"], "abc", true),
            (&["a?c"], "abbc", false),
            (&["[ab]"], "a", false),
            (&["[ab]", "{x}"], "{x}", true),
            (&["topic"], "topic*", false),
            (&["topic"], "*", false),
        ] {
            let faults = topics(patterns).faults("h", topic, &own);
            assert_eq!(faults.is_empty(), is_allowed, "{patterns:?} {topic}");
        }
    }

    #[tokio::test]
    async fn calls_of_one_host_share_its_allowance_and_hosts_do_not() {
        let config = TenantConfig {
            bytes_per_s: Some(1_000),
            ..config("a", IdentityConfig::Anyone)
        };
        let host = Tenants::new(&[config]).admit(&Peer::default()).unwrap();
        let now = Instant::now();
        let [first, second, other] =
            ["h1", "h1", "h2"].map(|name| host.allowance(name, now).unwrap());
        assert_eq!(first.pay(500, now), now + Duration::from_millis(500));
        assert_eq!(second.pay(500, now), now + Duration::from_secs(1));
        assert_eq!(other.pay(500, now), now + Duration::from_millis(500));
        drop((first, second));
        host.allowance("h3", now).unwrap();
        let again = host.allowance("h1", now).unwrap();
        assert_eq!(again.pay(500, now), now + Duration::from_millis(1_500));
        drop(again);
        let later = now + Duration::from_secs(2);
        host.allowance("h4", later).unwrap();
        let anew = host.allowance("h1", later).unwrap();
        assert_eq!(anew.pay(500, later), later + Duration::from_millis(500));
    }

    /// What a host was ahead, and how many streams there are, is known under other rules too.
    #[tokio::test]
    async fn a_tenant_goes_on_under_another_configuration() {
        let config = |bytes_per_s, streams_max| TenantConfig {
            bytes_per_s: Some(bytes_per_s),
            streams_max,
            ..config("a", IdentityConfig::Anyone)
        };
        let before = Tenants::new(&[config(1_000, 2)]);
        let host = before.admit(&Peer::default()).unwrap();
        let now = Instant::now();
        host.allowance("h", now).unwrap().pay(3_000, now);
        let permits = [host.open_stream().unwrap(), host.open_stream().unwrap()];
        host.may_log_refusal(now).unwrap();
        before.count_stranger(AdmitError::Nothing);
        before.count_stranger(AdmitError::Nothing);

        let other = TenantConfig {
            name: "b".into(),
            ..config(1_000, 2)
        };
        let after = before.succeeded_by(&[config(500, 3), other.clone()]);
        let host = after.admit(&Peer::default()).unwrap();
        let paid = host.allowance("h", now).unwrap().pay(500, now);
        assert_eq!(paid, now + Duration::from_secs(4));
        let third = host.open_stream().unwrap();
        host.open_stream().unwrap_err();
        drop(permits);
        assert_eq!(host.may_log_refusal(now), None);
        assert_eq!(after.count_stranger(AdmitError::Nothing), None);
        let fourth = host.open_stream().unwrap();

        let renamed = after.succeeded_by(&[other]);
        let host = renamed.admit(&Peer::default()).unwrap();
        let paid = host.allowance("h", now).unwrap().pay(500, now);
        assert_eq!(paid, now + Duration::from_millis(500));
        drop((third, fourth));
    }

    #[test]
    fn refusals_are_logged_now_and_then_and_counted_meanwhile() {
        let tenants = Tenants::new(&[config("a", IdentityConfig::Anyone)]);
        let host = tenants.admit(&Peer::default()).unwrap();
        let now = Instant::now();
        let said =
            [0, 1, 999, 1_000].map(|ms| host.may_log_refusal(now + Duration::from_millis(ms)));
        assert_eq!(said, [Some(0), None, None, Some(2)]);
        let counted = [0; 3].map(|_| tenants.count_stranger(AdmitError::Token));
        assert_eq!(counted, [Some(1), Some(2), None]);
        assert_eq!(tenants.count_stranger(AdmitError::Nothing), Some(1));
    }

    #[test]
    fn streams_are_bounded_and_come_back() {
        let tenants = Tenants::new(&[config("a", IdentityConfig::Anyone)]);
        let host = tenants.admit(&Peer::default()).unwrap();
        let _first = host.open_stream().unwrap();
        let second = host.open_stream().unwrap();
        let error = host.open_stream().unwrap_err();
        assert_eq!(
            error,
            "tenant a has 2 open streams, its bound (streams_max)"
        );
        drop(second);
        assert!(host.open_stream().is_ok());
    }
}
