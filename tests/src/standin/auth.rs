//! The v1 signature ("q-sign") as the service checks it.
//!
//! ```text
//! SignKey      = hex(HMAC-SHA1(secret_key, "start;end"))
//! Info         = method "\n" path "\n" params "\n" headers "\n"
//! StringToSign = "sha1\n" "start;end" "\n" hex(SHA1(Info)) "\n"
//! Signature    = hex(HMAC-SHA1(SignKey, StringToSign))
//! ```
//!
//! The check recomputes over the lists that the client *names* and the values as *received*: the
//! Host header too, because clients sign what they send and not what the server is called. Values
//! are percent-encoded; clients disagree on a space, so `+` and `%20` both count. Both lists may
//! be empty, and a used signature may be used again (CLS document 614/12445).

use crate::standin::config::Key;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// A parsed `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// `q-ak`.
    pub secret_id: String,
    /// `q-sign-time`, as sent: it is part of what is signed.
    pub window: String,
    /// Start of the window in UNIX seconds.
    pub start_s: u64,
    /// End of the window in UNIX seconds.
    pub end_s: u64,
    /// `q-header-list`: lower case, sorted.
    pub header_names: Vec<String>,
    /// `q-url-param-list`: lower case, sorted.
    pub param_names: Vec<String>,
    /// `q-signature`.
    pub signature: String,
}

/// The parts of a request that a signature can cover.
#[derive(Debug, Clone, Default)]
pub struct SignedParts {
    /// The method, in any case.
    pub method: String,
    /// The path without the query, as received.
    pub path: String,
    /// The query's parameters, decoded.
    pub params: Vec<(String, String)>,
    /// The headers as received.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The header is not of the documented form.
    #[error("authorization is malformed: {rule}")]
    Malformed {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// No key has this id.
    #[error("secret id {secret_id} does not exist")]
    UnknownSecretId {
        /// The id as sent.
        secret_id: String,
    },
    /// The server's clock is outside the window.
    #[error("signature is valid from {start_s} to {end_s}, the server's clock says {now_s}")]
    Expired {
        /// Start of the window in UNIX seconds.
        start_s: u64,
        /// End of the window in UNIX seconds.
        end_s: u64,
        /// The server's clock in UNIX seconds.
        now_s: u64,
    },
    /// A named header or parameter is absent, or the signature differs.
    #[error("signature does not match: {what}")]
    Mismatch {
        /// What does not match.
        what: String,
    },
    /// The key is temporary and the token is not the one that came with it.
    #[error("token of secret id {secret_id} is missing, wrong or expired")]
    BadToken {
        /// The id as sent.
        secret_id: String,
    },
}

impl Authorization {
    /// Parses the header: exactly the seven documented keys, in any order.
    ///
    /// # Errors
    /// [`AuthError::Malformed`] with the first rule that is broken.
    pub fn parse(header: &str) -> Result<Self, AuthError> {
        let mut values: [Option<&str>; 7] = [None; 7];
        for pair in header.split('&') {
            let (name, value) = pair.split_once('=').ok_or(malformed("every part is k=v"))?;
            let at = NAMES.iter().position(|&known| known == name);
            let slot = &mut values[at.ok_or(malformed("only the seven q- keys are known"))?];
            if slot.replace(value).is_some() {
                return Err(malformed("a key stands once"));
            }
        }
        let [
            Some(algorithm),
            Some(id),
            Some(sign_time),
            Some(key_time),
            Some(headers),
            Some(params),
            Some(signature),
        ] = values
        else {
            return Err(malformed("all seven q- keys are required"));
        };
        if algorithm != "sha1" {
            return Err(malformed("q-sign-algorithm is sha1"));
        }
        if sign_time != key_time {
            return Err(malformed("q-key-time equals q-sign-time"));
        }
        let (start_s, end_s) = parse_window(sign_time)?;
        Ok(Self {
            secret_id: id.to_owned(),
            window: sign_time.to_owned(),
            start_s,
            end_s,
            header_names: parse_list(headers)?,
            param_names: parse_list(params)?,
            signature: signature.to_owned(),
        })
    }

    /// Checks key, window, signature and token, in this order.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn verify<'k>(
        &self,
        parts: &SignedParts,
        keys: &'k [Key],
        now_s: u64,
    ) -> Result<&'k Key, AuthError> {
        let key = keys.iter().find(|key| key.secret_id == self.secret_id);
        let key = key.ok_or_else(|| AuthError::UnknownSecretId {
            secret_id: self.secret_id.clone(),
        })?;
        if now_s < self.start_s || now_s > self.end_s {
            return Err(AuthError::Expired {
                start_s: self.start_s,
                end_s: self.end_s,
                now_s,
            });
        }
        let params = named(&self.param_names, "parameter", |name| parts.param(name))?;
        let headers = named(&self.header_names, "header", |name| parts.header(name))?;
        let matches = [SpaceForm::Percent, SpaceForm::Plus].iter().any(|&form| {
            let info = request_info(parts, &params, &headers, form);
            let computed = signature(&key.secret_key, &self.window, &info);
            computed.as_bytes().ct_eq(self.signature.as_bytes()).into()
        });
        if !matches {
            return Err(AuthError::Mismatch {
                what: "q-signature differs from the computed one".into(),
            });
        }
        match &key.token {
            Some(token) if parts.header("x-cls-token") != Some(token.as_bytes()) => {
                Err(AuthError::BadToken {
                    secret_id: self.secret_id.clone(),
                })
            }
            _ => Ok(key),
        }
    }
}

impl SignedParts {
    /// Returns the first header of a lower-case name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_slice())
    }

    /// Returns the first parameter whose name is `name` in any case.
    pub fn param(&self, name: &str) -> Option<&[u8]> {
        let found = self
            .params
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_bytes())
    }
}

const NAMES: [&str; 7] = [
    "q-sign-algorithm",
    "q-ak",
    "q-sign-time",
    "q-key-time",
    "q-header-list",
    "q-url-param-list",
    "q-signature",
];

/// What stays as it is; everything else becomes `%XX`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// How a client writes a space in a signed value.
#[derive(Clone, Copy, PartialEq)]
enum SpaceForm {
    Percent,
    Plus,
}

fn malformed(rule: &'static str) -> AuthError {
    AuthError::Malformed { rule }
}

fn parse_window(window: &str) -> Result<(u64, u64), AuthError> {
    const RULE: &str = "q-sign-time is two UNIX times in seconds, joined by a semicolon";
    let (start, end) = window.split_once(';').ok_or(malformed(RULE))?;
    let start = start.parse().map_err(|_| malformed(RULE))?;
    let end = end.parse().map_err(|_| malformed(RULE))?;
    if end <= start {
        return Err(malformed("q-sign-time ends after it starts"));
    }
    Ok((start, end))
}

fn parse_list(list: &str) -> Result<Vec<String>, AuthError> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = list.split(';').map(str::to_owned).collect();
    if names
        .iter()
        .any(|name| name.is_empty() || name.to_lowercase() != *name)
    {
        return Err(malformed("names in lists are lower case and not empty"));
    }
    if !names.is_sorted() {
        return Err(malformed("lists are sorted"));
    }
    Ok(names)
}

fn named<'p>(
    names: &'p [String],
    kind: &str,
    value_of: impl Fn(&str) -> Option<&'p [u8]>,
) -> Result<Vec<(&'p str, &'p [u8])>, AuthError> {
    let pair = |name: &'p String| match value_of(name) {
        Some(value) => Ok((name.as_str(), value)),
        None => Err(AuthError::Mismatch {
            what: format!("{kind} {name} is named and absent"),
        }),
    };
    names.iter().map(pair).collect()
}

fn request_info(
    parts: &SignedParts,
    params: &[(&str, &[u8])],
    headers: &[(&str, &[u8])],
    form: SpaceForm,
) -> String {
    let join = |pairs: &[(&str, &[u8])]| {
        let encoded: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value, form)))
            .collect();
        encoded.join("&")
    };
    let method = parts.method.to_lowercase();
    format!(
        "{method}\n{}\n{}\n{}\n",
        parts.path,
        join(params),
        join(headers)
    )
}

fn encode(value: &[u8], form: SpaceForm) -> String {
    let encoded = percent_encode(value, ENCODED).to_string();
    match form {
        SpaceForm::Percent => encoded,
        SpaceForm::Plus => encoded.replace("%20", "+"),
    }
}

fn signature(secret_key: &str, window: &str, info: &str) -> String {
    let sign_key = hmac_sha1_hex(secret_key.as_bytes(), window);
    let digest = hex::encode(Sha1::digest(info.as_bytes()));
    hmac_sha1_hex(sign_key.as_bytes(), &format!("sha1\n{window}\n{digest}\n"))
}

fn hmac_sha1_hex(key: &[u8], message: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../vectors/cls-vectors.json")).unwrap()
    }

    fn pairs(value: &Value) -> Vec<(String, String)> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn parts_of(vector: &Value) -> SignedParts {
        let bytes = |(name, value): (String, String)| (name, value.into_bytes());
        SignedParts {
            method: vector["method"].as_str().unwrap().into(),
            path: vector["path"].as_str().unwrap().into(),
            params: pairs(&vector["params"]),
            headers: pairs(&vector["headers"]).into_iter().map(bytes).collect(),
        }
    }

    fn key_of(vector: &Value) -> Key {
        Key::permanent(
            vector["secret_id"].as_str().unwrap(),
            vector["secret_key"].as_str().unwrap(),
        )
    }

    #[test]
    fn every_signature_of_an_official_sdk_verifies() {
        let vectors = vectors();
        let mut checked = 0;
        for vector in vectors["signature_vectors"].as_array().unwrap() {
            for result in vector["results"].as_array().unwrap() {
                let header = result["authorization"].as_str().unwrap();
                let authorization = Authorization::parse(header).unwrap();
                let now_s = vector["now_unix"].as_u64().unwrap();
                let keys = [key_of(vector)];
                let verdict = authorization.verify(&parts_of(vector), &keys, now_s);
                let sdks = result["sdks"].to_string();
                // The Python function sorts names before it lower-cases them, so with names in
                // mixed case it signs something that no other SDK and no server computes.
                let is_good = !(vector["name"] == "V7-case" && sdks.contains("python"));
                assert_eq!(
                    verdict.is_ok(),
                    is_good,
                    "{}: {sdks}: {verdict:?}",
                    vector["name"]
                );
                checked += 1;
            }
        }
        assert_eq!(checked, 14);
    }

    #[test]
    fn the_signature_of_the_published_rust_crate_verifies() {
        for vector in vectors()["rust_crate_vectors"].as_array().unwrap() {
            let header = vector["authorization"].as_str().unwrap();
            let authorization = Authorization::parse(header).unwrap();
            let now_s = authorization.start_s;
            authorization
                .verify(&parts_of(vector), &[key_of(vector)], now_s)
                .unwrap();
        }
    }

    #[test]
    fn malformed_headers_are_told_apart_from_wrong_ones() {
        let good = "q-sign-algorithm=sha1&q-ak=id&q-sign-time=1;2&q-key-time=1;2\
                    &q-header-list=a;b&q-url-param-list=&q-signature=00";
        Authorization::parse(good).unwrap();
        for (from, to) in [
            ("&q-signature=00", ""),
            ("sha1", "sha256"),
            ("q-key-time=1;2", "q-key-time=1;3"),
            ("1;2", "2;2"),
            ("1;2", "1"),
            ("a;b", "b;a"),
            ("a;b", "A;b"),
            ("a;b", "a;"),
            ("q-ak=id", "q-ak=id&q-ak=id"),
            ("q-ak=id", "q-ak=id&x=y"),
            ("q-ak=id", "q-ak"),
        ] {
            let bad = good.replace(from, to);
            let error = Authorization::parse(&bad).unwrap_err();
            assert!(
                matches!(error, AuthError::Malformed { .. }),
                "{bad}: {error}"
            );
        }
    }
}
