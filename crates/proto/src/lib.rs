//! The gRPC contracts of the fleet, generated from `proto/`, and their descriptors.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use prost::Name;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use prost_types::Timestamp;
use serde::Serialize;
use serde::de::Error as _;

/// The encoded `FileDescriptorSet` of all contracts, with `google.api` options.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The same with comments, which take more memory than all else of a pool.
pub const DESCRIBED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/described.bin"));

/// All contracts, for code that reads messages by their descriptors.
#[expect(clippy::expect_used, reason = "the set is made by our own build script: if it cannot be read, nothing works")]
pub static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("build.rs wrote a descriptor set"));

include!(concat!(env!("OUT_DIR"), "/packages.rs"));

/// Converts a time for messages.
#[must_use]
pub fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: at.timestamp_subsec_nanos().cast_signed() }
}

/// The time in a message; none if it is out of range.
#[must_use]
pub fn time(at: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?)
}

fn described<M: Name>() -> Result<MessageDescriptor, serde_json::Error> {
    let name = M::full_name();
    POOL.get_message_by_name(&name).ok_or_else(|| serde_json::Error::custom(format!("no message {name}")))
}

/// Reads a message from JSON, by its JSON field names.
///
/// # Errors
/// The JSON has an unknown field, or a value that its field does not accept.
pub fn from_json<M: Name + Default>(said: &impl Serialize) -> Result<M, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let said = serde_json::to_value(said)?;
    let message = DynamicMessage::deserialize_with_options(described::<M>()?, said, &options)?;
    message.transcode_to().map_err(serde_json::Error::custom)
}

/// A message in JSON, with every field that is not optional, and numbers as numbers.
///
/// # Errors
/// The message is not in [`POOL`].
pub fn to_json<M: Name>(message: &M) -> Result<serde_json::Value, serde_json::Error> {
    let mut dynamic = DynamicMessage::new(described::<M>()?);
    dynamic.transcode_from(message).map_err(serde_json::Error::custom)?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false).skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options)
}
