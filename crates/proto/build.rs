//! Generates the gRPC types and the descriptor set from every file of `proto/flotilla`, with no protoc to install.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    // Asked at run time: a program that was built for another copy of the repository may be run for this one.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let root = PathBuf::from(package).join("../../proto");
    // Relative to this package: a copy of the repository does not look at another one.
    println!("cargo:rerun-if-changed=../../proto");
    let mut files = Vec::new();
    find(&root.join("flotilla"), &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Encoded by protox itself: the prost types would drop the google.api.http options.
    std::fs::write(out.join("described.bin"), compiler.encode_file_descriptor_set())?;
    compiler.include_source_info(false);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    compiler.include_source_info(true);
    let descriptors = compiler.file_descriptor_set();
    std::fs::write(out.join("packages.rs"), packages(&descriptors))?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    // A request is known again by its bytes (idempotency keys): a map that is encoded in another order would be another request.
    tonic_prost_build::configure().btree_map(".").compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failed> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// A module for each package that serves something, by its second name: `todo` of `flotilla.todo.v1`.
fn packages(descriptors: &tonic_prost_build::FileDescriptorSet) -> String {
    let serving = descriptors.file.iter().filter(|file| !file.service.is_empty());
    let packages: BTreeSet<_> = serving.map(|file| file.package()).collect();
    let module = |package: &str| {
        let name = package.split('.').nth(1).unwrap_or(package);
        format!(
            "/// `{package}`\n#[expect(clippy::allow_attributes, reason = \"generated code\")]\n\
             #[allow(clippy::large_enum_variant, reason = \"a oneof is as large as its messages\")]\npub mod {name} {{\n    tonic::include_proto!(\"{package}\");\n}}\n"
        )
    };
    packages.into_iter().map(module).collect()
}
