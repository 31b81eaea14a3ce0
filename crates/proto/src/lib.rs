//! The gRPC contracts of the fleet, generated from `proto/`, and their descriptors.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// The encoded `FileDescriptorSet` of all contracts, with comments and `google.api` options.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// All contracts, for those who read messages by their description.
#[expect(clippy::expect_used, reason = "the set is made by our own build script: if it cannot be read, nothing works")]
pub static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("build.rs wrote a descriptor set"));

/// `flotilla.todo.v1`
#[expect(clippy::allow_attributes, reason = "generated code")]
pub mod todo {
    tonic::include_proto!("flotilla.todo.v1");
}

/// `flotilla.search.v1`
#[expect(clippy::allow_attributes, reason = "generated code")]
pub mod search {
    tonic::include_proto!("flotilla.search.v1");
}
