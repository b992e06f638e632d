//! Lines with the noise of real logs. Each says when it was written and which one it is, so that
//! whoever receives it can tell how late it is and whether it came before.
//!
//! ```text
//! text  1795356825000999 0007000000ff INFO  [http-12] c.e.orders.OrderHandler trace=8f2c… GET …
//! JSON  {"ts":1795356825000999,"id":"0007000000ff","level":"info",…}: ten members
//! long  as text, 100,000 bytes
//! ```
//!
//! The first word is the time in microseconds since 1970, the second the number of the stream (4 hex
//! digits) and of the line in it (8 hex digits). What follows is drawn from a seed: words that come
//! again and again, and numbers, addresses and identifiers that do not. LZ4 makes a batch of them 2.5
//! to 3 times smaller, which the tests hold.

use std::io::Write as _;

/// What the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text of about 200 bytes.
    Text,
    /// JSON objects of ten members, about 230 bytes.
    Json,
    /// Text of 100,000 bytes.
    Long,
}

/// Bytes of a [`Kind::Long`] line.
pub const LONG_BYTES: usize = 100_000;
/// Rests of lines that are made in advance. A stream repeats them only after megabytes, far more
/// than a batch holds.
const POOL_LINES: usize = 16_384;
/// The same for [`Kind::Long`].
const POOL_LONG_LINES: usize = 64;
const SEED: u64 = 20_261_130;

const MICROS_DIGITS: usize = 16;
const STREAM_DIGITS: usize = 4;
const NUMBER_DIGITS: usize = 8;
const ID_DIGITS: usize = STREAM_DIGITS + NUMBER_DIGITS;

const HANDLERS: [&str; 12] = [
    "c.e.orders.OrderHandler",
    "c.e.orders.OrderRepository",
    "c.e.payment.PaymentGateway",
    "c.e.payment.RefundJob",
    "c.e.users.SessionFilter",
    "c.e.users.ProfileController",
    "c.e.search.IndexWriter",
    "c.e.search.QueryPlanner",
    "o.a.k.clients.consumer.Fetcher",
    "c.z.hikari.pool.HikariPool",
    "c.e.cart.CartService",
    "c.e.stock.ReservationService",
];
const PATHS: [&str; 8] = [
    "/api/v1/orders/",
    "/api/v1/orders/search?customer=",
    "/api/v1/users/",
    "/api/v2/cart/",
    "/api/v2/stock/",
    "/internal/refunds/",
    "/static/img/",
    "/api/v1/payments/",
];
const MESSAGES: [&str; 8] = [
    "request served",
    "row not found, falling back to replica",
    "upstream answered late",
    "cache miss, loading from store",
    "retrying after connection reset",
    "reservation confirmed",
    "validation failed: field `quantity` must be positive",
    "session renewed",
];
const LEVELS: [&str; 10] = [
    "INFO ", "INFO ", "INFO ", "INFO ", "INFO ", "INFO ", "DEBUG", "DEBUG", "WARN ", "ERROR",
];
const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "PUT", "DELETE"];
const STATUSES: [u16; 8] = [200, 200, 200, 200, 201, 304, 404, 503];

/// What the lines of a kind end with, made once for all streams.
#[derive(Debug)]
pub struct Pool {
    kind: Kind,
    rests: Vec<Vec<u8>>,
}

/// What a line says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// When it was written, in microseconds since 1970.
    pub micros: u64,
    /// Which stream it is of.
    pub stream: u32,
    /// Which line of the stream it is, from 0.
    pub number: u32,
}

impl Pool {
    /// Makes the rests of lines of a kind.
    pub fn new(kind: Kind) -> Self {
        let mut random = fastrand::Rng::with_seed(SEED);
        let count = match kind {
            Kind::Text | Kind::Json => POOL_LINES,
            Kind::Long => POOL_LONG_LINES,
        };
        let rest = |random: &mut fastrand::Rng| match kind {
            Kind::Text => text_rest(random),
            Kind::Json => json_rest(random),
            Kind::Long => long_rest(random),
        };
        Self {
            kind,
            rests: (0..count).map(|_| rest(&mut random)).collect(),
        }
    }

    /// Puts a line into `line`, whose content is lost.
    pub fn line(&self, head: Head, line: &mut Vec<u8>) {
        line.clear();
        let Head {
            micros,
            stream,
            number,
        } = head;
        // A Vec takes all there is to write.
        match self.kind {
            Kind::Text | Kind::Long => {
                write!(line, "{micros:016} {stream:04x}{number:08x} ").ok();
            }
            Kind::Json => {
                write!(
                    line,
                    r#"{{"ts":{micros:016},"id":"{stream:04x}{number:08x}","#
                )
                .ok();
            }
        }
        // Streams begin at different rests, so that they do not repeat each other.
        let start = u64::from(stream).wrapping_mul(STREAM_STEP);
        let at = start.wrapping_add(u64::from(number)) % self.rests.len() as u64;
        line.extend_from_slice(&self.rests[usize::try_from(at).unwrap_or(0)]);
    }
}

/// Odd, so that streams spread over the pool.
const STREAM_STEP: u64 = 0x9e37_79b9;

impl Head {
    /// Reads what a record of text says of itself.
    pub fn of_text(text: &str) -> Option<Self> {
        let (micros, rest) = text.split_at_checked(MICROS_DIGITS)?;
        Self::parse(micros, rest.get(1..=ID_DIGITS)?)
    }

    /// Reads it from the two words themselves, as fields of a JSON line have them.
    pub fn parse(micros: &str, id: &str) -> Option<Self> {
        let (stream, number) = id.split_at_checked(STREAM_DIGITS)?;
        Some(Self {
            micros: micros.parse().ok()?,
            stream: u32::from_str_radix(stream, 16).ok()?,
            number: u32::from_str_radix(number, 16).ok()?,
        })
    }
}

fn text_rest(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut rest = Vec::new();
    push_text(random, &mut rest);
    rest
}

fn push_text(random: &mut fastrand::Rng, rest: &mut Vec<u8>) {
    write!(
        rest,
        "{level} [http-{thread}] {handler} trace={trace:016x} {method} {path}{id} \
         status={status} took={took}.{fraction:03}ms client=10.{a}.{b}.{c} \
         msg=\"{message}\"",
        level = pick(random, &LEVELS),
        thread = random.u32(1..200),
        handler = pick(random, &HANDLERS),
        trace = random.u64(..),
        method = pick(random, &METHODS),
        path = pick(random, &PATHS),
        id = random.u32(1_000..9_999_999),
        status = pick(random, &STATUSES),
        took = random.u32(0..400),
        fraction = random.u32(0..1_000),
        a = random.u8(0..4),
        b = random.u8(..),
        c = random.u8(..),
        message = pick(random, &MESSAGES),
    )
    .ok();
}

fn json_rest(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut rest = Vec::new();
    write!(
        rest,
        r#""level":"{level}","logger":"{handler}","trace":"{trace:016x}","path":"{path}{id}","status":{status},"took_ms":{took}.{fraction:03},"client":"10.{a}.{b}.{c}","msg":"{message}"}}"#,
        level = pick(random, &LEVELS).trim_end().to_lowercase(),
        handler = pick(random, &HANDLERS),
        trace = random.u64(..),
        path = pick(random, &PATHS),
        id = random.u32(1_000..9_999_999),
        status = pick(random, &STATUSES),
        took = random.u32(0..400),
        fraction = random.u32(0..1_000),
        a = random.u8(0..4),
        b = random.u8(..),
        c = random.u8(..),
        message = pick(random, &MESSAGES),
    )
    .ok();
    rest
}

fn long_rest(random: &mut fastrand::Rng) -> Vec<u8> {
    let bytes = LONG_BYTES - MICROS_DIGITS - ID_DIGITS - 2;
    let mut rest = Vec::with_capacity(bytes + 512);
    while rest.len() < bytes {
        push_text(random, &mut rest);
        rest.extend_from_slice(b"; ");
    }
    rest.truncate(bytes);
    rest
}

fn pick<T: Copy>(random: &mut fastrand::Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a batch: what a full one of the shipper has before compression.
    const BATCH_BYTES: usize = 1 << 20;

    /// Returns a megabyte of lines that a stream writes at 1,000 a second.
    fn batch(kind: Kind) -> Vec<u8> {
        let pool = Pool::new(kind);
        let (mut batch, mut line) = (Vec::new(), Vec::new());
        for number in 0.. {
            let micros = 1_795_356_825_000_999 + u64::from(number) * 1_003;
            pool.line(
                Head {
                    micros,
                    stream: 3,
                    number,
                },
                &mut line,
            );
            batch.extend_from_slice(&line);
            batch.push(b'\n');
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        batch
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "a few megabytes are exact in a double"
    )]
    fn ratio(batch: &[u8]) -> f64 {
        batch.len() as f64 / lz4_flex::block::compress(batch).len() as f64
    }

    #[test]
    fn lines_are_as_noisy_as_real_ones() {
        for (kind, low, high) in [
            (Kind::Text, 2.5, 3.0),
            (Kind::Json, 2.5, 3.5),
            (Kind::Long, 2.5, 3.0),
        ] {
            let ratio = ratio(&batch(kind));
            assert!((low..=high).contains(&ratio), "{kind:?}: {ratio:.2}");
        }
    }

    #[test]
    fn lines_have_the_length_that_the_documents_say() {
        let lengths = |kind| {
            let batch = batch(kind);
            let count = batch.split(|&byte| byte == b'\n').count() - 1;
            batch.len() / count - 1
        };
        let (text, json) = (lengths(Kind::Text), lengths(Kind::Json));
        assert!((190..=210).contains(&text), "{text} B of text");
        assert!((220..=250).contains(&json), "{json} B of JSON");
        assert_eq!(lengths(Kind::Long), LONG_BYTES);
    }

    #[test]
    fn lines_say_what_they_are() {
        let head = Head {
            micros: 1_795_356_825_000_999,
            stream: 999,
            number: 70_000,
        };
        let mut line = Vec::new();
        Pool::new(Kind::Text).line(head, &mut line);
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(Head::of_text(text), Some(head));
        Pool::new(Kind::Json).line(head, &mut line);
        let members: serde_json::Map<_, _> = serde_json::from_slice(&line).unwrap();
        assert_eq!(members.len(), 10);
        let id = members["id"].as_str().unwrap();
        assert_eq!(Head::parse(&members["ts"].to_string(), id), Some(head));
        for other in ["", "short", "1795356825000999 00", "é".repeat(40).as_str()] {
            assert_eq!(Head::of_text(other), None, "{other}");
        }
    }
}
