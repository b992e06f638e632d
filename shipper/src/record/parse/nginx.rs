//! A line of an access log, as nginx and Apache write it: nginx's `combined` and `main`, Apache's `common` and
//! `combined`.
//!
//! ```text
//! remote_addr - remote_user [time_local] "request" status body_bytes_sent "http_referer" "http_user_agent" …
//! ```
//!
//! Fields are named as nginx's variables. Values stay as they are written: `-`, `\x22` and `\"` too, since
//! nginx, with another setting, and Apache escape otherwise.
//!
//! - The client is all before the first blank: an address of any kind, a name, `unix:`. A user may have blanks.
//! - A request becomes `request_method`, `request_uri` and `server_protocol`, whatever its method, with blanks
//!   in its URI, and without a protocol. One that has no such parts (`\x16\x03\x01`, `-`) is `request`; of an
//!   empty one there is nothing.
//! - `http_referer` and `http_user_agent` may be absent, together. One quoted text behind them that ends the
//!   line is `http_x_forwarded_for`, as in `main`; anything else there is `rest`.
//!
//! Wrong fields are worse than none: what differs from this is not read.

use super::super::fields::Fields;
use super::logfmt::quote_end;

/// Bytes of `30/Nov/2026:07:05:03 +0800`.
const TIME_BYTES: usize = 26;

/// Writes the fields of a line. Returns `None` if it is none of an access log; what was written then is to be
/// taken back.
pub(super) fn put_line(text: &[u8], fields: &mut Fields<'_>) -> Option<()> {
    let text = text.trim_ascii_end();
    // Before the request no quote can stand: both programs escape it in a user's name.
    let head = text.get(..memchr::memchr(b'"', text)?)?;
    let request = text.get(head.len()..)?;
    let head = head.strip_suffix(b"] ")?;
    let (head, time) = head.split_at_checked(head.len().checked_sub(TIME_BYTES)?)?;
    let head = head.strip_suffix(b" [")?;
    let client = head.get(..memchr::memchr(b' ', head)?)?;
    let user = head.get(client.len()..)?.strip_prefix(b" - ")?;
    if client.is_empty() || user.is_empty() || !is_time(time) {
        return None;
    }
    let (request, rest) = quoted(request)?;
    let (status, rest) = word(rest)?;
    let (size, rest) = word(rest)?;
    if status.len() != 3 || !is_number(status) || !(size == b"-" || is_number(size)) {
        return None;
    }
    fields.put(b"remote_addr", client);
    fields.put(b"remote_user", user);
    fields.put(b"time_local", time);
    put_request(request, fields);
    fields.put(b"status", status);
    fields.put(b"body_bytes_sent", size);
    put_rest(rest, fields)
}

/// Writes what stands behind the size.
fn put_rest(rest: &[u8], fields: &mut Fields<'_>) -> Option<()> {
    let rest = rest.trim_ascii_start();
    if rest.is_empty() {
        return Some(());
    }
    if !rest.starts_with(b"\"") {
        fields.put(b"rest", rest);
        return Some(());
    }
    let (referer, after) = quoted(rest)?;
    let (agent, after) = quoted(after.strip_prefix(b" ")?)?;
    fields.put(b"http_referer", referer);
    fields.put(b"http_user_agent", agent);
    let after = after.trim_ascii_start();
    match quoted(after) {
        _ if after.is_empty() => {}
        Some((forwarded_for, b"")) => fields.put(b"http_x_forwarded_for", forwarded_for),
        _ => fields.put(b"rest", after),
    }
    Some(())
}

fn put_request(request: &[u8], fields: &mut Fields<'_>) {
    if request.is_empty() {
        return;
    }
    let Some(parts) = request_parts(request) else {
        fields.put(b"request", request);
        return;
    };
    fields.put(b"request_method", parts.method);
    fields.put(b"request_uri", parts.uri);
    if let Some(protocol) = parts.protocol {
        fields.put(b"server_protocol", protocol);
    }
}

struct Request<'a> {
    method: &'a [u8],
    uri: &'a [u8],
    protocol: Option<&'a [u8]>,
}

/// Splits `GET /a b HTTP/1.1`. HTTP/0.9 has no protocol, and then the URI has to look like one.
fn request_parts(request: &[u8]) -> Option<Request<'_>> {
    let (method, rest) = request.split_at(memchr::memchr(b' ', request)?);
    let is_method = |byte: &u8| byte.is_ascii_alphabetic() || b"-_".contains(byte);
    let uri = rest.get(1..)?;
    if method.is_empty() || !method.iter().all(is_method) || uri.is_empty() {
        return None;
    }
    if let Some(at) = memchr::memrchr(b' ', uri) {
        let (uri, protocol) = (uri.get(..at)?, uri.get(at + 1..)?);
        if protocol.starts_with(b"HTTP/") && !uri.is_empty() {
            return Some(Request {
                method,
                uri,
                protocol: Some(protocol),
            });
        }
    }
    uri.starts_with(b"/").then_some(Request {
        method,
        uri,
        protocol: None,
    })
}

/// Splits off a text in quotes.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = text.strip_prefix(b"\"")?;
    let end = quote_end(inside)?;
    Some((inside.get(..end)?, inside.get(end + 1..)?))
}

/// Splits off the word behind a blank.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b" ")?;
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    Some(text.split_at(end))
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// Whether a text has the form of `30/Nov/2026:07:05:03 +0800`.
fn is_time(text: &[u8]) -> bool {
    const FORM: &[u8; TIME_BYTES] = b"00/aaa/0000:00:00:00 +0000";
    text.len() == FORM.len()
        && text.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_alphabetic(),
            b'+' => b"+-".contains(byte),
            other => byte == other,
        })
}
