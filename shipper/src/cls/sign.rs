//! CLS's request signature, version 1 (`q-sign-algorithm=sha1`; document 614/12445).
//!
//! Every attempt is signed anew: a window of its own, one snapshot of the credentials.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest, Sha1};

use crate::cls::credentials::Credentials;

/// Seconds that a signature reaches back, for a clock that runs ahead of the server's. The
/// official SDKs use the same.
const BACKDATE_S: u64 = 60;

/// Seconds that a signature stays valid; the official SDKs use the same.
const VALID_S: u64 = 300;

/// The part of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct SignedParts<'a> {
    /// Method, any case.
    pub method: &'a str,
    /// Path as sent, without the query.
    pub path: &'a str,
    /// Query parameters, decoded.
    pub params: &'a [(&'a str, &'a str)],
    /// Headers as sent.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Validity of a signature in UNIX seconds, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First second.
    pub start: u64,
    /// Last second.
    pub end: u64,
}

impl Window {
    /// Returns the window of a request that is sent at `now_s`.
    pub fn around(now_s: u64) -> Self {
        Self {
            start: now_s.saturating_sub(BACKDATE_S),
            end: now_s.saturating_add(VALID_S),
        }
    }
}

/// Returns the value of the Authorization header.
pub fn authorization(credentials: &Credentials, parts: &SignedParts<'_>, window: Window) -> String {
    let time = format!("{};{}", window.start, window.end);
    let (params, param_list) = canonical(parts.params);
    let (headers, header_list) = canonical(parts.headers);
    let method = parts.method.to_ascii_lowercase();
    let info = format!("{method}\n{}\n{params}\n{headers}\n", parts.path);
    let string_to_sign = format!("sha1\n{time}\n{}\n", hex(&Sha1::digest(info.as_bytes())));
    let sign_key = hmac_hex(credentials.key.expose().as_bytes(), &time);
    let signature = hmac_hex(sign_key.as_bytes(), &string_to_sign);
    format!(
        "q-sign-algorithm=sha1&q-ak={}&q-sign-time={time}&q-key-time={time}\
         &q-header-list={header_list}&q-url-param-list={param_list}&q-signature={signature}",
        credentials.id.expose(),
    )
}

/// Returns `k=v` pairs joined by `&`, keys lower case and sorted, and the list of the keys.
fn canonical(pairs: &[(&str, &str)]) -> (String, String) {
    let mut pairs: Vec<(String, &str)> = pairs
        .iter()
        .map(|(key, value)| (key.to_ascii_lowercase(), *value))
        .collect();
    pairs.sort();
    let mut text = String::new();
    let mut list = String::new();
    for (index, (key, value)) in pairs.iter().enumerate() {
        if index > 0 {
            text.push('&');
            list.push(';');
        }
        text.push_str(key);
        text.push('=');
        percent_encode(value, &mut text);
        list.push_str(key);
    }
    (text, list)
}

/// Encodes all but RFC 3986's unreserved characters, in upper-case hex, as the Java SDK does.
pub(super) fn percent_encode(value: &str, text: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes all that is written");
        }
    }
}

fn hmac_hex(key: &[u8], message: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    hex(&mac.finalize().into_bytes())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use serde_json::Value;

    const VECTORS: &str = include_str!("../../../tests/vectors/cls-vectors.json");

    fn pairs(value: &Value) -> Vec<(&str, &str)> {
        let pairs = value.as_array().unwrap().iter();
        pairs
            .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect()
    }

    fn sign(vector: &Value, window: Window) -> String {
        let text = |key: &str| vector[key].as_str().unwrap();
        let credentials = Credentials {
            id: Secret::new(text("secret_id").into()),
            key: Secret::new(text("secret_key").into()),
            token: None,
        };
        let (params, headers) = (pairs(&vector["params"]), pairs(&vector["headers"]));
        let parts = SignedParts {
            method: text("method"),
            path: text("path"),
            params: &params,
            headers: &headers,
        };
        authorization(&credentials, &parts, window)
    }

    #[test]
    fn official_signatures_are_reproduced() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        for vector in vectors["signature_vectors"].as_array().unwrap() {
            let name = vector["name"].as_str().unwrap();
            let now_s = vector["now_unix"].as_u64().unwrap();
            let window = Window {
                start: now_s - 60,
                end: now_s + vector["expire_s"].as_u64().unwrap(),
            };
            let signed = sign(vector, window);
            // The Java SDK's way is ours: it signs what it is given and writes a space as %20.
            let java = vector["results"].as_array().unwrap().iter().find(|result| {
                result["sdks"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|sdk| sdk == "java ddd86d7")
            });
            assert_eq!(
                signed,
                java.unwrap()["authorization"].as_str().unwrap(),
                "{name}"
            );
        }
        for vector in vectors["rust_crate_vectors"].as_array().unwrap() {
            let (start, end) = vector["q_sign_time"]
                .as_str()
                .unwrap()
                .split_once(';')
                .unwrap();
            let window = Window {
                start: start.parse().unwrap(),
                end: end.parse().unwrap(),
            };
            assert_eq!(
                sign(vector, window),
                vector["authorization"].as_str().unwrap()
            );
        }
    }

    #[test]
    fn official_requests_carry_the_signature_that_we_compute() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        for capture in vectors["go_wire_captures"].as_array().unwrap() {
            let headers = pairs(&capture["headers"]);
            let header = |name: &str| headers.iter().find(|(key, _)| *key == name).unwrap().1;
            let time = header("Authorization")
                .split("q-sign-time=")
                .nth(1)
                .unwrap();
            let (start, end) = time.split('&').next().unwrap().split_once(';').unwrap();
            let credentials = Credentials {
                id: Secret::new(capture["secret_id"].as_str().unwrap().into()),
                key: Secret::new(capture["secret_key"].as_str().unwrap().into()),
                token: None,
            };
            let parts = SignedParts {
                method: "POST",
                path: "/structuredlog",
                params: &[("topic_id", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")],
                headers: &[
                    ("Host", header("Host")),
                    ("Content-Type", header("Content-Type")),
                ],
            };
            let window = Window {
                start: start.parse().unwrap(),
                end: end.parse().unwrap(),
            };
            assert_eq!(
                authorization(&credentials, &parts, window),
                header("Authorization")
            );
        }
    }

    #[test]
    fn the_window_is_that_of_the_official_sdks() {
        let window = Window::around(1_700_000_000);
        assert_eq!(
            window,
            Window {
                start: 1_699_999_940,
                end: 1_700_000_300
            }
        );
    }
}
