//! Compiles `relay.proto` without `protoc`: protox is a protobuf compiler in Rust.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=relay.proto");
    let descriptors = protox::compile(["relay.proto"], ["."])?;
    tonic_prost_build::configure()
        // A chunk's frames stay a slice of the buffer that the call was read into.
        .bytes(".relay.v1.Chunk.frames")
        // An event is most often a chunk; it should not be as large as the largest kind.
        .boxed(".relay.v1.Event.kind.open")
        .boxed(".relay.v1.Finish.totals")
        // They carry secrets; `redacted` shows them without.
        .skip_debug([
            ".relay.v1.Open",
            ".relay.v1.CheckRequest",
            ".relay.v1.Container",
        ])
        // Refuses what would take too much memory before it is decoded.
        .codec_path("crate::codec::BoundedCodec")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
