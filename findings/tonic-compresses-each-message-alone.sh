#!/usr/bin/env bash
# tonic compresses each message of a stream on its own, whatever its size, with no threshold. So a stream of log
# lines, one in a message, grows by compression, while messages of a hundred lines shrink to less than a third.
# Seen with tonic 0.14.9 (zstd at its default level). Bytes of the messages with their five bytes of framing, as
# the encoder makes them.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
cargo -q init --name show .
cargo -q add tonic@=0.14.9 --no-default-features --features codegen,zstd
cargo -q add bytes@1 http-body-util@0.1 tokio-stream@0.1 futures-executor@0.3
cat > src/main.rs <<'RUST'
use bytes::{BufMut, Bytes};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::codec::{CompressionEncoding, EncodeBody, EncodeBuf, Encoder};

/// Writes bytes as they are.
struct Raw;

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

/// A line of a log, with the noise of real ones.
fn line(number: u64) -> String {
    let noise = number.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17);
    format!("2026-11-30T07:05:03.{:06}Z INFO request {noise:016x} took {} us, status 200\n", number % 1_000_000, noise % 9_999)
}

/// Returns the bytes that a stream of these messages takes.
fn stream_bytes(messages: &[Bytes], compression: Option<CompressionEncoding>) -> usize {
    let source = tokio_stream::iter(messages.to_vec().into_iter().map(Ok));
    let body = EncodeBody::new_client(Raw, source, compression, None);
    futures_executor::block_on(body.collect()).unwrap().to_bytes().len()
}

fn main() {
    let share = |lines_each: u64| {
        let message = |first: u64| (first..first + lines_each).map(line).collect::<String>();
        let messages: Vec<Bytes> = (0..2_000).step_by(lines_each as usize).map(|first| message(first).into()).collect();
        let plain = stream_bytes(&messages, None);
        let zstd = stream_bytes(&messages, Some(CompressionEncoding::Zstd));
        println!("{lines_each} lines in a message: {plain} bytes, compressed {zstd}");
        zstd as f64 / plain as f64
    };
    assert!(share(1) > 1.0);
    assert!(share(100) < 0.33);
}
RUST
cargo -q run
echo "as described"
