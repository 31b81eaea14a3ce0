//! Generates the gRPC types and the descriptor set from `proto/`, with no protoc to install.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files([
        "flotilla/todo/v1/todo.proto",
        "flotilla/search/v1/search.proto",
        "flotilla/ops/v1/outbox.proto",
        "flotilla/ops/v1/letters.proto",
        "flotilla/ops/v1/aggregates.proto",
        "flotilla/ops/v1/index.proto",
    ])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Encoded by protox itself: the prost types would drop the google.api.http options.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // A request is known again by its bytes (idempotency keys): a map that is encoded in another order would be another request.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().btree_map(".").compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
