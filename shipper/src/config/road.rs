//! The road to CLS: whom it trusts, through which proxy it goes, and where it goes without one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::{Faults, Section};
use crate::base::secret::Secret;

/// How requests get to CLS and to STS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Road {
    /// Authorities that are trusted besides Mozilla's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// The proxy of https:// addresses.
    pub https_proxy: Option<Proxy>,
    /// The proxy of http:// addresses.
    pub http_proxy: Option<Proxy>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: NoProxy,
    /// Whether http:// addresses may be used beyond this machine.
    pub insecure: bool,
}

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Scheme and authority, without user and password: this may be shown.
    pub url: String,
    /// Who we are there.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Password>,
}

/// Where a password stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// In the configuration.
    Inline(Secret),
    /// In a file, read again when it changes.
    File(PathBuf),
}

/// Hosts that are reached without a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// A name, and all names that end with a dot and it.
    Domain(String),
    /// Addresses whose first bits are these.
    Network(IpAddr, u8),
}

impl NoProxy {
    /// Reads a list as people write it: `*`, `x`, `.x` and `*.x` (a domain and all in it), addresses,
    /// networks, each with a port or without one.
    ///
    /// # Errors
    /// An entry can never match: the entry and the rule.
    pub fn parse<'t>(entries: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let entries = entries.into_iter().map(str::trim);
        let patterns = entries.filter(|entry| !entry.is_empty()).map(|entry| {
            Pattern::parse(entry).ok_or_else(|| {
                format!(
                    "\"{entry}\" can never match: it must be a host name, *.domain, an address, a \
                     network such as 10.0.0.0/8, or *, with a port or without one"
                )
            })
        });
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether a host is reached without a proxy.
    pub fn matches(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = unbracketed(&host).parse::<IpAddr>().ok();
        self.0.iter().any(|pattern| {
            pattern.port.is_none_or(|wanted| wanted == port) && pattern.hosts.has(&host, address)
        })
    }
}

impl Pattern {
    fn parse(entry: &str) -> Option<Self> {
        let (hosts, port) = split_port(entry)?;
        let hosts = match hosts {
            "*" => Hosts::All,
            _ => Hosts::network(hosts).or_else(|| Hosts::domain(hosts))?,
        };
        Some(Self { hosts, port })
    }
}

/// Takes the port off; a colon of an IPv6 address without brackets is none.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    match entry.rsplit_once(':') {
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => {
            Some((host, Some(port.parse().ok()?)))
        }
        _ => Some((entry, None)),
    }
}

fn unbracketed(host: &str) -> &str {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

impl Hosts {
    fn network(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = unbracketed(address).parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(Self::Network(address, bits))
    }

    fn domain(text: &str) -> Option<Self> {
        let name = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
        let name = name.unwrap_or(text).trim_end_matches('.');
        let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
        // What looks like an address and is none, such as 10.0.0, is no name either.
        let is_number = name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        let is_good = !name.is_empty() && !is_number && name.chars().all(is_name);
        is_good.then(|| Self::Domain(name.to_ascii_lowercase()))
    }

    fn has(&self, host: &str, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::All, _) => true,
            (Self::Domain(name), None) => host
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            (Self::Network(IpAddr::V4(network), bits), Some(IpAddr::V4(address))) => {
                let shift = u32::from(32 - bits);
                let [network, address] = [network, &address].map(|it| u64::from(it.to_bits()));
                network >> shift == address >> shift
            }
            (Self::Network(IpAddr::V6(network), bits), Some(IpAddr::V6(address))) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(*bits)
            }
            (Self::Domain(_) | Self::Network(..), _) => false,
        }
    }
}

/// Reads the road out of `[upload]`.
pub(super) fn read(
    section: &mut Section,
    environment: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> Road {
    let ca_file = section.text("ca_file", faults).map(PathBuf::from);
    let insecure = section.flag("insecure", faults);
    let proxy = section.text("proxy", faults);
    let login = Login::read(section, faults);
    let no_proxy = section.texts("no_proxy", faults);
    let mut road = Road {
        ca_file,
        insecure,
        ..Road::default()
    };
    match proxy.as_deref() {
        None => {
            if login.is_set() || !no_proxy.is_empty() {
                let rule =
                    "proxy_user, proxy_password, proxy_password_file and no_proxy need proxy";
                faults.0.push(format!("[upload] {rule}"));
            }
        }
        Some("env") => read_environment(&mut road, environment, faults),
        Some(url) => {
            let proxy = parse_proxy(url, login);
            road.https_proxy = faults.take("upload.proxy", proxy);
            road.http_proxy.clone_from(&road.https_proxy);
        }
    }
    let listed = NoProxy::parse(no_proxy.iter().map(String::as_str));
    if let Some(listed) = faults.take("upload.no_proxy", listed) {
        road.no_proxy.0.extend(listed.0);
    }
    road
}

/// Takes the variables that other programs go by; each in small letters or in capitals.
fn read_environment(road: &mut Road, environment: &BTreeMap<String, String>, faults: &mut Faults) {
    let variable = |name: &str| {
        let names = [name.to_ascii_lowercase(), name.to_owned()];
        let value = names.iter().find_map(|name| environment.get(name));
        value.filter(|value| !value.is_empty())
    };
    let mut proxy = |name: &str| {
        let url = variable(name).or_else(|| variable("ALL_PROXY"))?;
        faults.take(name, parse_proxy(url, Login::default()))
    };
    road.https_proxy = proxy("HTTPS_PROXY");
    road.http_proxy = proxy("HTTP_PROXY");
    let listed = variable("NO_PROXY").map_or("", String::as_str);
    let listed = NoProxy::parse(listed.split(','));
    road.no_proxy = faults.take("NO_PROXY", listed).unwrap_or_default();
}

/// Who we are at the proxy, by keys of their own.
#[derive(Default)]
struct Login {
    user: Option<String>,
    password: Option<Password>,
}

impl Login {
    fn read(section: &mut Section, faults: &mut Faults) -> Self {
        let user = section.text("proxy_user", faults);
        let inline = section.secret("proxy_password", faults);
        let file = section.text("proxy_password_file", faults);
        if inline.is_some() && file.is_some() {
            let rule = "proxy_password and proxy_password_file exclude each other";
            faults.0.push(format!("[upload] {rule}"));
        }
        let inline = inline.map(Password::Inline);
        let password = inline.or_else(|| file.map(|path| Password::File(path.into())));
        Self { user, password }
    }

    fn is_set(&self) -> bool {
        self.user.is_some() || self.password.is_some()
    }
}

/// Reads a proxy's address. No fault shows it: it may hold a password.
fn parse_proxy(text: &str, login: Login) -> Result<Proxy, String> {
    let rule = "it must be http://HOST:PORT or https://HOST:PORT; a user and a password that hold \
                special characters go into proxy_user and proxy_password_file";
    let (scheme, rest) = text.trim().split_once("://").unwrap_or(("", ""));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (userinfo, authority) = match rest.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, rest),
    };
    let parsed = authority.parse::<http::uri::Authority>().ok();
    let is_good = matches!(scheme, "http" | "https")
        && parsed.is_some_and(|it| {
            !it.host().is_empty() && (it.host() == authority || it.port_u16().is_some())
        });
    if !is_good {
        return Err(rule.to_owned());
    }
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded
            .map(|text| text.into_owned())
            .map_err(|_| rule.to_owned())
    };
    let (mut user, mut password) = (None, None);
    if let Some(userinfo) = userinfo {
        let (name, secret) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        user = Some(decode(name)?);
        password = Some(Password::Inline(Secret::new(decode(secret)?)));
    }
    Ok(Proxy {
        url: format!("{scheme}://{authority}"),
        user: login.user.or(user),
        password: login.password.or(password),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_a_proxy_are_matched_as_people_write_them() {
        let all = "10.0.0.0/8, .example.com ,Example.org,*.foo.net,bar.com:8443,[::1],fd00::/8,\
                   [fe80::1]:99,end.example.";
        let no_proxy = NoProxy::parse(all.split(',')).unwrap();
        for (host, port, expected) in [
            ("10.1.2.3", 443, true),
            ("11.1.2.3", 443, false),
            ("a.example.com", 443, true),
            ("example.com", 443, true),
            ("xexample.com", 443, false),
            ("b.EXAMPLE.org.", 443, true),
            ("foo.net", 443, true),
            ("c.foo.net", 80, true),
            ("bar.com", 443, false),
            ("bar.com", 8443, true),
            ("x.bar.com", 8443, true),
            ("[::1]", 443, true),
            ("[fd12::1]", 443, true),
            ("[fe80::1]", 443, false),
            ("[fe80::1]", 99, true),
            ("end.example", 443, true),
        ] {
            assert_eq!(no_proxy.matches(host, port), expected, "{host}:{port}");
        }
        let all = NoProxy::parse(["*"]).unwrap();
        assert!(all.matches("h", 1) && all.matches("10.1.2.3", 1));
    }

    #[test]
    fn an_entry_that_can_never_match_is_a_fault() {
        for entry in [
            "10.*",
            "https://example.org",
            "example.com/",
            "a.com;b.com",
            "10.0.0.0/40",
            "h:port",
            "10.0.0",
            "*.",
        ] {
            let fault = NoProxy::parse([entry]).unwrap_err();
            assert!(fault.contains(entry), "{fault}");
        }
    }

    #[test]
    fn a_proxy_has_its_user_in_the_address_or_beside_it() {
        let parse = |text| parse_proxy(text, Login::default());
        let proxy = parse("http://us%40er:p%3Ass@proxy:3128/").unwrap();
        assert_eq!(proxy.url, "http://proxy:3128");
        assert_eq!(proxy.user.as_deref(), Some("us@er"));
        let secret = Password::Inline(Secret::new("p:ss".into()));
        assert_eq!(proxy.password, Some(secret));
        assert!(!format!("{:?}", parse("http://u:hidden@h").unwrap()).contains("hidden"));
        for bad in [
            "proxy:3128",
            "socks5://h:1",
            "http://h:1/path",
            "http://u:p#x@h",
            "http://",
            "http://h:x",
        ] {
            let fault = parse(bad);
            assert!(
                bad == "http://u:p#x@h" || fault.is_err(),
                "{bad}: {fault:?}"
            );
            assert!(!fault.is_err_and(|fault| fault.contains("p#x")));
        }
    }
}
