//! A CLS endpoint: scheme and authority, such as `https://ap-guangzhou.cls.tencentcs.com`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Where requests go. Without a scheme, https is meant: a key's signature and the lines themselves
/// should not cross a network in the clear unless somebody says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    scheme: &'static str,
    /// The value of the Host header: the port only where it is not the scheme's own.
    host: String,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The scheme is neither http nor https.
    #[error("its scheme must be https or http")]
    Scheme,
    /// There is no host, or something behind it.
    #[error("it must be a host name with an optional port, without path, user or query")]
    Host,
    /// It is that of API 3.0, which SDKs have as their default. It answers 200 to whatever it is sent.
    #[error(
        "this is the address of API 3.0, which takes no logs: use {}",
        regional(.0)
    )]
    Api3(String),
    /// It is a page for people.
    #[error(
        "this is an address of Tencent Cloud's web pages, which takes no logs: use {}",
        regional("")
    )]
    Console,
}

/// Returns what an upload address looks like, in the region of `host` if it names one.
fn regional(host: &str) -> String {
    let region = host.strip_prefix("cls.").unwrap_or_default();
    let region = region.strip_suffix(API_3_DOMAIN).unwrap_or_default();
    let region = region.trim_end_matches('.');
    let region = if region.contains('-') {
        region
    } else {
        "ap-guangzhou"
    };
    format!("{region}.cls.tencentcs.com with the region of your topic")
}

/// The domain of all services of API 3.0, with a region or without one.
const API_3_DOMAIN: &str = "tencentcloudapi.com";

/// Domains of the console and the documents.
const PAGE_DOMAINS: [&str; 3] = ["cloud.tencent.com", "tencentcloud.com", "qcloud.com"];

/// Returns why a host takes no logs, as far as that is known of hosts that people copy.
fn known_fault(name: &str) -> Option<EndpointError> {
    let is_in = |domain: &str| {
        let rest = name.strip_suffix(domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if is_in(API_3_DOMAIN) {
        return Some(EndpointError::Api3(name.to_owned()));
    }
    PAGE_DOMAINS
        .into_iter()
        .any(is_in)
        .then_some(EndpointError::Console)
}

impl Endpoint {
    /// Returns why lines may not go to this endpoint in the clear, if that is so: over http they may
    /// within this machine, or where the configuration says that the network is trusted.
    pub fn insecurity(&self, is_allowed: bool) -> Option<String> {
        let name = self.name();
        let unbracketed = name.trim_start_matches('[').trim_end_matches(']');
        let address = unbracketed.parse::<IpAddr>();
        let is_here = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
        (self.scheme == "http" && !is_here && !is_allowed).then(|| {
            "lines and signatures would cross the network unencrypted: use https, or set \
             [upload] insecure = true in the shipper's configuration if the network is trusted"
                .to_owned()
        })
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        let default = if self.scheme == "http" { 80 } else { 443 };
        let rest = self.host.get(self.name().len()..).unwrap_or_default();
        rest.trim_start_matches(':').parse().unwrap_or(default)
    }

    /// Returns the value of the Host header, which the signature covers.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the host's name or address without the port; an IPv6 address in its brackets.
    pub fn name(&self) -> &str {
        match self.host.rsplit_once(':') {
            // A colon before the bracket is part of the address.
            Some((name, port)) if !port.contains(']') => name,
            _ => &self.host,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        let (scheme, rest, default_port) = match text.split_once("://") {
            None => ("https", text, ":443"),
            Some(("https", rest)) => ("https", rest, ":443"),
            Some(("http", rest)) => ("http", rest, ":80"),
            Some(_) => return Err(EndpointError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = rest.parse().map_err(|_| EndpointError::Host)?;
        // A port that is no number below 65,536 is no port to `Authority`.
        let names_port = rest.len() > authority.host().len();
        if authority.host().is_empty()
            || rest.contains('@')
            || (names_port && authority.port_u16().is_none())
        {
            return Err(EndpointError::Host);
        }
        let host = rest
            .strip_suffix(default_port)
            .unwrap_or(rest)
            .to_ascii_lowercase();
        let endpoint = Self { scheme, host };
        match known_fault(endpoint.name()) {
            Some(fault) => Err(fault),
            None => Ok(endpoint),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse() {
        let cases = [
            (
                "ap-guangzhou.cls.tencentcs.com",
                Ok("https://ap-guangzhou.cls.tencentcs.com"),
            ),
            ("https://H.example:443/", Ok("https://h.example")),
            ("http://127.0.0.1:9080", Ok("http://127.0.0.1:9080")),
            ("http://h:80", Ok("http://h")),
            ("[::1]:9080", Ok("https://[::1]:9080")),
            ("ftp://h", Err(EndpointError::Scheme)),
            ("", Err(EndpointError::Host)),
            ("https://", Err(EndpointError::Host)),
            ("h/structuredlog", Err(EndpointError::Host)),
            ("user@h", Err(EndpointError::Host)),
            ("h:99999", Err(EndpointError::Host)),
            ("h?x=1", Err(EndpointError::Host)),
            // What a URL would end the host at, before a name that keys may be used at.
            ("x#.cls.tencentcs.com", Err(EndpointError::Host)),
            ("x\\.cls.tencentcs.com", Err(EndpointError::Host)),
            ("x%2f.cls.tencentcs.com", Err(EndpointError::Host)),
            ("x:80.cls.tencentcs.com", Err(EndpointError::Host)),
        ];
        for (text, expected) in cases {
            let got = text
                .parse::<Endpoint>()
                .map(|endpoint| endpoint.to_string());
            assert_eq!(got, expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn addresses_that_people_copy_by_mistake_are_known() {
        for (text, expected) in [
            (
                "cls.tencentcloudapi.com",
                "this is the address of API 3.0, which takes no logs: use ap-guangzhou.cls.tencentcs.com \
                 with the region of your topic",
            ),
            (
                "https://CLS.ap-shanghai.tencentcloudapi.com:443",
                "this is the address of API 3.0, which takes no logs: use ap-shanghai.cls.tencentcs.com \
                 with the region of your topic",
            ),
            (
                "console.cloud.tencent.com",
                "this is an address of Tencent Cloud's web pages, which takes no logs: use \
                 ap-guangzhou.cls.tencentcs.com with the region of your topic",
            ),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
        for text in [
            "my-tencentcloudapi.com",
            "tencentcloudapi.com.example",
            "cls.tencentcs.com",
        ] {
            assert!(text.parse::<Endpoint>().is_ok(), "{text}");
        }
    }

    #[test]
    fn http_stays_on_this_machine_unless_the_network_is_trusted() {
        for (text, is_secure) in [
            ("https://h", true),
            ("http://127.0.0.2:9080", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://ap-guangzhou.cls.tencentyun.com", false),
            ("http://10.0.0.1", false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.insecurity(false).is_none(), is_secure, "{text}");
            assert_eq!(endpoint.insecurity(true), None, "{text}");
        }
    }

    #[test]
    fn a_name_has_no_port() {
        for (text, name) in [
            ("H.example", "h.example"),
            ("http://h:9080", "h"),
            ("127.0.0.1:443", "127.0.0.1"),
            ("[::1]:9080", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().name(), name, "{text}");
        }
    }
}
