//! Compression of request bodies, in the exact formats that CLS takes: `lz4` is a raw block
//! without frame or size prefix, `zstd` an ordinary frame.

use std::fmt;
use std::str::FromStr;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// A raw LZ4 block: cheapest.
    #[default]
    Lz4,
    /// A zstd frame: smaller, about five times the CPU time of LZ4.
    Zstd,
    /// As it is.
    None,
}

/// The text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it must be \"lz4\", \"zstd\" or \"none\"")]
pub struct CompressionError;

/// zstd's own default; higher levels cost more than the bytes they save.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// Returns the value of the header `x-cls-compress-type`; absent means not compressed.
    pub fn header(self) -> Option<&'static str> {
        match self {
            Self::Lz4 => Some("lz4"),
            Self::Zstd => Some("zstd"),
            Self::None => None,
        }
    }

    /// Returns the compressed body in a buffer of its own size: it may wait long for its delivery.
    ///
    /// # Panics
    /// Never: the buffers hold the largest possible output.
    pub fn compress(self, body: &[u8], scratch: &mut Vec<u8>) -> Vec<u8> {
        match self {
            Self::Lz4 => {
                let bytes_max = lz4_flex::block::get_maximum_output_size(body.len());
                if scratch.len() < bytes_max {
                    scratch.resize(bytes_max, 0);
                }
                let written = lz4_flex::block::compress_into(body, scratch)
                    .expect("the scratch buffer holds the largest possible output");
                scratch.get(..written).unwrap_or_default().to_vec()
            }
            Self::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL)
                .expect("zstd grows its own buffer and the level is valid"),
            Self::None => body.to_vec(),
        }
    }
}

impl Compression {
    /// Returns a body of `bytes` bytes that [`compress`](Self::compress) made smaller.
    ///
    /// # Panics
    /// The input was not made by this process.
    pub fn decompress(self, compressed: &[u8], bytes: usize) -> Vec<u8> {
        match self {
            Self::Lz4 => lz4_flex::block::decompress(compressed, bytes)
                .expect("this process has compressed the body itself"),
            Self::Zstd => zstd::bulk::decompress(compressed, bytes)
                .expect("this process has compressed the body itself"),
            Self::None => compressed.to_vec(),
        }
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        match text {
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            "none" => Ok(Self::None),
            _ => Err(CompressionError),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.header().unwrap_or("none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_come_back_from_their_formats() {
        let incompressible: Vec<u8> = (0..4096_u32)
            .flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes())
            .collect();
        let mut scratch = Vec::new();
        for body in [
            b"".as_slice(),
            b"hello",
            &b"hello ".repeat(1000),
            &incompressible,
        ] {
            for compression in [Compression::Lz4, Compression::Zstd, Compression::None] {
                let compressed = compression.compress(body, &mut scratch);
                assert_eq!(
                    compression.decompress(&compressed, body.len()),
                    body,
                    "{compression}"
                );
            }
        }
    }
}
