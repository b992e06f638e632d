//! What hosts, names and secrets look like.

pub(super) const ENDPOINT_RULE: &str = "must be a host such as ap-guangzhou.cls.tencentcs.com, with http:// or https:// before it \
     and a port behind it if need be, and no path";
pub(super) const NAME_RULE: &str = "must be 1 to 128 letters, digits, dots, dashes and underscores";

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

pub(super) const KEYS_RULE: &str = "must be a list of different keys, separated by commas, each of 1 to 128 bytes without control \
     characters and not with an underscore at its beginning";

pub(super) const RENAMES_RULE: &str = "must be a list of old=new, separated by commas, each old key once; a new key has 1 to 128 bytes \
     without control characters and no underscore at its beginning";

pub(super) const CONTENT_KEY_RULE: &str = "must be a key of 1 to 128 bytes without control characters; of those that begin with an \
     underscore only __CONTENT__, as CLS's own agent has it";

pub(super) fn is_content_key(text: &str) -> bool {
    text == "__CONTENT__" || is_key(text)
}

/// Whether a text can be the key of a field that CLS can index.
pub(super) fn is_key(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.starts_with('_') && !text.chars().any(char::is_control)
}

pub(super) fn is_secret(text: &str) -> bool {
    text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn is_endpoint(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let is_host = is_v6
        || host.len() <= 253
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            });
    is_host && port.is_none_or(is_port)
}
