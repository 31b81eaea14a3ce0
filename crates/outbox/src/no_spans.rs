//! Without the feature `trace` there are no spans.

use crate::store::Row;

/// No span.
pub const fn publish(_: &Row) -> tracing::Span {
    tracing::Span::none()
}
