//! The fields of a form, `application/x-www-form-urlencoded` or `multipart/form-data` (RFC 7578).

use axum::body::Bytes;
use futures::stream;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::{Constraints, Multipart, SizeLimit};
use std::convert::Infallible;

use crate::problem::Problem;
use crate::template::decode;

/// The most fields of a form.
const MAX_FIELDS: usize = 100;

/// A field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A file.
    File {
        /// Its media type, as its sender says.
        media: String,
        /// The file.
        bytes: Bytes,
    },
}

/// The fields of a body that is a form.
///
/// # Errors
/// 400 where it is none, or has more than 100 fields.
pub async fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Vec<Field>, Problem> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fields = if media.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        parts(media, bytes).await?
    } else {
        let wrong = |_| Problem::invalid("the form is not percent-encoded UTF-8");
        let text = std::str::from_utf8(bytes).map_err(wrong)?;
        let field = |(name, value)| Field { name, value: Value::Text(value) };
        pairs(text, "form")?.into_iter().map(field).collect()
    };
    if fields.len() > MAX_FIELDS {
        return Err(Problem::invalid(format!("a form has {MAX_FIELDS} fields at most")));
    }
    Ok(fields)
}

/// The names and values of a query or a form. `what` is its name for people.
///
/// # Errors
/// 400 where it is not percent-encoded UTF-8.
pub fn pairs(text: &str, what: &str) -> Result<Vec<(String, String)>, Problem> {
    let part = |part: &str| {
        decode(&part.replace('+', " "))
            .ok_or_else(|| Problem::invalid(format!("the {what} is not percent-encoded UTF-8")))
    };
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((part(name)?, part(value)?))
        })
        .collect()
}

async fn parts(media: &str, bytes: &[u8]) -> Result<Vec<Field>, Problem> {
    let wrong = |error: multer::Error| Problem::invalid(format!("the form cannot be read: {error}"));
    let boundary = multer::parse_boundary(media).map_err(wrong)?;
    let whole = stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(bytes))]);
    let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(bytes.len() as u64));
    let mut form = Multipart::with_constraints(whole, boundary, limits);
    let mut fields = Vec::new();
    while let Some(part) = form.next_field().await.map_err(wrong)? {
        let unnamed = || Problem::invalid("a part of the form has no name: add one to its Content-Disposition");
        let name = part.name().map(ToOwned::to_owned).ok_or_else(unnamed)?;
        let file = part.file_name().is_some() || part.content_type().is_some_and(|media| media.type_() != "text");
        let media = part.content_type().map_or_else(String::new, ToString::to_string);
        let value = if file {
            Value::File { media, bytes: part.bytes().await.map_err(wrong)? }
        } else {
            Value::Text(part.text().await.map_err(wrong)?)
        };
        fields.push(Field { name, value });
        if fields.len() > MAX_FIELDS {
            break;
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fields(media: &str, body: &str) -> Result<Vec<(String, String)>, String> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media.parse().unwrap())]);
        let fields = read(&headers, body.as_bytes()).await.map_err(|problem| problem.detail)?;
        let text = |value| match value {
            Value::Text(text) => text,
            Value::File { media, bytes } => format!("{media}: {}", String::from_utf8_lossy(&bytes)),
        };
        Ok(fields.into_iter().map(|field| (field.name, text(field.value))).collect())
    }

    #[tokio::test]
    async fn both_codings_are_read() {
        let wanted = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let urlencoded = fields("application/x-www-form-urlencoded", "a=%C3%A9+b&a=2&c").await;
        assert_eq!(urlencoded, wanted(&[("a", "é b"), ("a", "2"), ("c", "")]));
        let parts = "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n\
                     --b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"n\"\r\nContent-Type: image/png\r\n\r\nPNG\r\n--b--\r\n";
        let multipart = fields("Multipart/Form-Data; boundary=b", parts).await;
        assert_eq!(multipart, wanted(&[("a", "x"), ("f", "image/png: PNG")]));
        for (media, body) in [
            ("application/x-www-form-urlencoded", "a=%zz"),
            ("multipart/form-data", parts),
            ("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx"),
            ("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ] {
            assert!(fields(media, body).await.is_err(), "{media} {body}");
        }
        let many = "a=1&".repeat(MAX_FIELDS + 1);
        assert!(fields("application/x-www-form-urlencoded", &many).await.is_err());
    }
}
