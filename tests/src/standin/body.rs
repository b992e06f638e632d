//! A request's body, from compressed to plain, with a cap on what comes out.
//!
//! | `x-cls-compress-type` | format |
//! |---|---|
//! | absent | plain |
//! | `lz4` | raw LZ4 block: no frame magic, no size prefix |
//! | `zstd` | frames, with or without a content size |
//! | `deflate` | raw DEFLATE (RFC 1951), no zlib header; may end at a sync flush |
//!
//! A raw LZ4 block does not say how long its content is, so the cap is what protects the server.

use flate2::{Decompress, FlushDecompress, Status};
use std::io::Read as _;

/// Bytes of a body before compression (CLS document 614/87660).
pub const BODY_BYTES_MAX: usize = 6 << 20;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// Raw LZ4 block.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// Raw DEFLATE.
    Deflate,
}

/// Why a body can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The content is longer than the cap.
    #[error("body is longer than {BODY_BYTES_MAX} B before compression")]
    TooLong,
    /// The bytes are not of the format.
    #[error("body is not valid {format}: {reason}")]
    Invalid {
        /// The format.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
}

impl Compression {
    /// Returns what a value of `x-cls-compress-type` means, `None` if nothing.
    pub fn from_header(value: Option<&[u8]>) -> Option<Self> {
        match value {
            None => Some(Self::Plain),
            Some(b"lz4") => Some(Self::Lz4),
            Some(b"zstd") => Some(Self::Zstd),
            Some(b"deflate") => Some(Self::Deflate),
            Some(_) => None,
        }
    }
}

/// Room for one decompressed body, to be used again and again: making it costs more than most
/// bodies do.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        // One byte more than allowed, so that a body that is too long shows.
        Self(vec![0; BODY_BYTES_MAX + 1].into())
    }
}

/// Decompresses `body` and returns its content, in `scratch` or in place.
///
/// # Errors
/// See [`BodyError`].
pub fn decompress<'s>(
    compression: Compression,
    body: &'s [u8],
    scratch: &'s mut Scratch,
) -> Result<&'s [u8], BodyError> {
    let buffer = &mut scratch.0;
    let length = match compression {
        Compression::Plain if body.len() > BODY_BYTES_MAX => return Err(BodyError::TooLong),
        Compression::Plain => return Ok(body),
        Compression::Lz4 => decompress_lz4(body, buffer)?,
        Compression::Zstd => decompress_zstd(body, buffer)?,
        Compression::Deflate => decompress_deflate(body, buffer)?,
    };
    if length > BODY_BYTES_MAX {
        return Err(BodyError::TooLong);
    }
    Ok(&buffer[..length])
}

fn decompress_lz4(body: &[u8], buffer: &mut [u8]) -> Result<usize, BodyError> {
    use lz4_flex::block::DecompressError;
    lz4_flex::block::decompress_into(body, buffer).map_err(|error| match error {
        DecompressError::OutputTooSmall { .. } => BodyError::TooLong,
        other => invalid("lz4 block", &other),
    })
}

fn decompress_zstd(body: &[u8], buffer: &mut [u8]) -> Result<usize, BodyError> {
    let decoder = zstd::stream::read::Decoder::with_buffer(body);
    let mut decoder = decoder.map_err(|error| invalid("zstd", &error))?;
    let mut length = 0;
    while length < buffer.len() {
        match decoder.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => return Err(invalid("zstd", &error)),
        }
    }
    Ok(length)
}

fn decompress_deflate(body: &[u8], buffer: &mut [u8]) -> Result<usize, BodyError> {
    let mut decoder = Decompress::new(false);
    let (mut used, mut length) = (0, 0);
    let is_ended = loop {
        let (rest, room) = (&body[used..], &mut buffer[length..]);
        let result = decoder.decompress(rest, room, FlushDecompress::None);
        let status = result.map_err(|error| invalid("raw deflate", &error))?;
        let before = (used, length);
        used = usize::try_from(decoder.total_in()).unwrap_or(usize::MAX);
        length = usize::try_from(decoder.total_out()).unwrap_or(usize::MAX);
        if status == Status::StreamEnd || (used, length) == before {
            break status == Status::StreamEnd;
        }
    };
    match (is_ended || body.ends_with(SYNC_FLUSH), used == body.len()) {
        _ if length == buffer.len() => Err(BodyError::TooLong),
        (true, true) => Ok(length),
        (false, _) => Err(invalid("raw deflate", &"stream is cut short")),
        (true, false) => Err(invalid("raw deflate", &"bytes follow the stream")),
    }
}

/// How a flushed DEFLATE stream ends: an empty stored block. The Go SDK flushes and never closes.
const SYNC_FLUSH: &[u8] = &[0x00, 0x00, 0xff, 0xff];

fn invalid(format: &'static str, reason: &dyn std::fmt::Display) -> BodyError {
    BodyError::Invalid {
        format,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../vectors/cls-vectors.json")).unwrap()
    }

    fn bytes_of(value: &serde_json::Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn plain_of(compression: Compression, body: &[u8]) -> Result<Vec<u8>, BodyError> {
        // Old content must not show through.
        let mut scratch = Scratch::default();
        scratch.0.fill(0xaa);
        decompress(compression, body, &mut scratch).map(<[u8]>::to_vec)
    }

    fn deflated(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn body_vectors_decompress() {
        for vector in vectors()["body_vectors"].as_array().unwrap() {
            let expected = bytes_of(&vector["protobuf_hex"]);
            for (compression, name) in [
                (Compression::Plain, "protobuf_hex"),
                (Compression::Lz4, "lz4_block_hex_as_sent"),
                (Compression::Zstd, "zstd_hex_level3"),
                (Compression::Deflate, "raw_deflate_hex_python_zlib"),
            ] {
                let got = plain_of(compression, &bytes_of(&vector[name]));
                assert_eq!(got.as_ref(), Ok(&expected), "{} {name}", vector["name"]);
            }
        }
    }

    #[test]
    fn go_wire_captures_decompress() {
        for capture in vectors()["go_wire_captures"].as_array().unwrap() {
            let header = capture["compress"].as_str().map(str::as_bytes);
            let compression = Compression::from_header(header).unwrap();
            let got = plain_of(compression, &bytes_of(&capture["body_hex"]));
            let expected = bytes_of(&capture["decoded_protobuf_hex"]);
            assert_eq!(got, Ok(expected), "{}", capture["name"]);
        }
    }

    #[test]
    fn what_comes_out_is_capped() {
        for length in [BODY_BYTES_MAX - 1, BODY_BYTES_MAX, BODY_BYTES_MAX + 1] {
            let plain = vec![b'x'; length];
            for (compression, body) in [
                (Compression::Plain, plain.clone()),
                (Compression::Lz4, lz4_flex::block::compress(&plain)),
                (Compression::Zstd, zstd::encode_all(&plain[..], 1).unwrap()),
                (Compression::Deflate, deflated(&plain)),
            ] {
                let got = plain_of(compression, &body).map(|plain| plain.len());
                let expected = if length > BODY_BYTES_MAX {
                    Err(BodyError::TooLong)
                } else {
                    Ok(length)
                };
                assert_eq!(got, expected, "{compression:?} {length}");
            }
        }
    }

    #[test]
    fn other_containers_are_refused() {
        let plain = b"hello hello hello hello hello hello";
        let mut sized = u32::try_from(plain.len()).unwrap().to_le_bytes().to_vec();
        sized.extend(lz4_flex::block::compress(plain));
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
        zlib.write_all(plain).unwrap();
        let mut trailing = deflated(plain);
        trailing.push(0);
        for (compression, body) in [
            (Compression::Lz4, sized),
            (Compression::Lz4, b"\x04\x22\x4d\x18\x60\x40\x82".to_vec()),
            (Compression::Lz4, Vec::new()),
            (Compression::Zstd, plain.to_vec()),
            (Compression::Deflate, zlib.finish().unwrap()),
            (Compression::Deflate, trailing),
            (Compression::Deflate, deflated(plain)[..10].to_vec()),
        ] {
            let got = plain_of(compression, &body);
            assert!(
                matches!(got, Err(BodyError::Invalid { .. })),
                "{compression:?} {got:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            for compression in [Compression::Lz4, Compression::Zstd, Compression::Deflate] {
                plain_of(compression, &body).ok();
            }
        }
    }
}
