//! Path templates of `google.api.http` (google/api/http.proto, "Path template syntax"):
//! `/v1/todos/{id}:complete`, `*` for one segment, `**` for all that follow, `{field=pattern}`.

/// A template that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path template")]
pub struct TemplateError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// A field path, and which segments it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    field: String,
    from: usize,
    to: usize,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
    verb: Option<String>,
    variables: Vec<Variable>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// It does not follow the syntax.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = || TemplateError(text.to_owned());
        let mut rest = text.strip_prefix('/').ok_or_else(wrong)?;
        let after_variables = rest.rfind('}').map_or(0, |at| at + 1);
        let mut verb = None;
        if let Some(at) = rest[after_variables..].rfind(':').map(|at| at + after_variables)
            && !rest[at..].contains('/')
        {
            verb = Some(rest[at + 1..].to_owned()).filter(|verb| !verb.is_empty());
            rest = &rest[..at];
        }
        let mut template = Self { segments: Vec::new(), verb, variables: Vec::new() };
        while !rest.is_empty() {
            let part;
            if let Some(inner) = rest.strip_prefix('{') {
                let end = inner.find('}').ok_or_else(wrong)?;
                let (field, pattern) = inner[..end].split_once('=').unwrap_or((&inner[..end], "*"));
                let from = template.segments.len();
                template.segments.extend(pattern.split('/').map(segment));
                let to = template.segments.len();
                template.variables.push(Variable { field: field.to_owned(), from, to });
                part = &rest[end + 2..];
            } else {
                let end = rest.find('/').unwrap_or(rest.len());
                template.segments.push(segment(&rest[..end]));
                part = &rest[end..];
            }
            rest = match part.strip_prefix('/') {
                Some("") => return Err(wrong()),
                Some(next) => next,
                None if part.is_empty() => part,
                None => return Err(wrong()),
            };
        }
        let plain = |text: &str| !text.is_empty() && !text.contains(['{', '}', '*', ':']);
        let sound = template.segments.iter().enumerate().all(|(at, segment)| match segment {
            Segment::Literal(text) => plain(text),
            Segment::One => true,
            Segment::Rest => at + 1 == template.segments.len(),
        });
        let fields = template.variables.iter().all(|variable| plain(&variable.field));
        if sound && fields && !template.segments.is_empty() { Ok(template) } else { Err(wrong()) }
    }

    /// How many segments are given: the more, the closer the template describes what it matches.
    #[must_use]
    pub fn literals(&self) -> usize {
        let literals = self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count();
        literals + usize::from(self.verb.is_some())
    }

    /// Whether a part of the path fills a field.
    #[must_use]
    pub const fn has_variables(&self) -> bool {
        !self.variables.is_empty()
    }

    /// Whether it matches the same paths as another one.
    #[cfg(test)]
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.segments, &self.verb) == (&other.segments, &other.verb)
    }

    /// The fields that a path sets, with their values; `None` when the template does not match the path.
    #[must_use]
    pub fn matches(&self, path: &str) -> Option<Vec<(String, String)>> {
        let mut path = path.strip_prefix('/')?;
        let last = path.rfind('/').map_or(0, |at| at + 1);
        match (&self.verb, path[last..].rfind(':').map(|at| at + last)) {
            (Some(verb), Some(at)) if path[at + 1..] == **verb => path = &path[..at],
            (None, None) => {}
            _ => return None,
        }
        // Most templates are others': nothing is copied to find that out.
        let parts = path.split('/').count();
        let fits = match self.segments.last() {
            Some(Segment::Rest) => parts + 1 >= self.segments.len(),
            _ => parts == self.segments.len(),
        };
        let is = |part: &str, text: &str| part == text || (part.contains('%') && decode(part).as_deref() == Some(text));
        let same = |(segment, part): (&Segment, &str)| match segment {
            Segment::Literal(text) => is(part, text),
            Segment::One => !part.is_empty(),
            Segment::Rest => true,
        };
        if !fits || !self.segments.iter().zip(path.split('/')).all(same) {
            return None;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let value = |variable: &Variable| {
            let to = if self.segments.get(variable.to - 1) == Some(&Segment::Rest) { parts.len() } else { variable.to };
            // A slash of several segments separates them; one within a segment stays as it was sent (google/api/http.proto).
            let several = variable.to > variable.from + 1 || self.segments.get(variable.to - 1) == Some(&Segment::Rest);
            let read = |part: &&str| if several { decode_but_slashes(part) } else { decode(part) };
            let parts: Option<Vec<String>> = parts.get(variable.from..to)?.iter().map(read).collect();
            Some((variable.field.clone(), parts?.join("/")))
        };
        self.variables.iter().map(value).collect()
    }
}

fn segment(text: &str) -> Segment {
    match text {
        "*" => Segment::One,
        "**" => Segment::Rest,
        literal => Segment::Literal(literal.to_owned()),
    }
}

/// As [`decode`], but `%2F` and `%2f` stay.
fn decode_but_slashes(text: &str) -> Option<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.to_ascii_lowercase().find("%2f") {
        let (before, slash) = (rest.get(..at)?, rest.get(at..at + 3)?);
        parts.extend([decode(before)?, slash.to_owned()]);
        rest = rest.get(at + 3..)?;
    }
    parts.push(decode(rest)?);
    Some(parts.concat())
}

/// Percent-decodes a text; `None` when the result is not UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (hex, tail) = tail.split_at_checked(2)?;
            if !hex.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(template: &str, path: &str) -> Option<Vec<(String, String)>> {
        Template::parse(template).unwrap().matches(path)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_table_of_http_proto() {
        for (template, path, wanted) in [
            ("/v1/todos", "/v1/todos", pairs(&[])),
            ("/v1/todos", "/v1/todos/", None),
            ("/v1/todos", "/v1/todos/1", None),
            ("/v1/todos/{id}", "/v1/todos/1", pairs(&[("id", "1")])),
            ("/v1/todos/{id}", "/v1/todos/", None),
            ("/v1/todos/{id}", "/v1/todos/1:complete", None),
            ("/v1/todos/{id}:complete", "/v1/todos/1:complete", pairs(&[("id", "1")])),
            ("/v1/todos/{id}:complete", "/v1/todos/1", None),
            ("/v1/todos:search", "/v1/todos:search", pairs(&[])),
            ("/v1/todos:search", "/v1/todos", None),
            ("/v1/{name=todos/*}", "/v1/todos/1", pairs(&[("name", "todos/1")])),
            ("/v1/{name=todos/*}/items/{item}", "/v1/todos/1/items/2", pairs(&[("name", "todos/1"), ("item", "2")])),
            ("/v1/files/{path=**}", "/v1/files/a/b/c", pairs(&[("path", "a/b/c")])),
            ("/v1/{a.b}", "/v1/x%2Fy%C3%A9", pairs(&[("a.b", "x/yé")])),
            ("/v1/{a=x/*}", "/v1/x/1%2F2%20%2f3", pairs(&[("a", "x/1%2F2 %2f3")])),
            ("/v1/{a=**}", "/v1/1%2f2/3%20", pairs(&[("a", "1%2f2/3 ")])),
            ("/v1/{a=**}", "/v1/%252F", pairs(&[("a", "%2F")])),
            ("/v1/{a=**}", "/v1", pairs(&[("a", "")])),
            ("/v1/{a}", "/v1/%ff", None),
            ("/v1/{a}", "/v1/%zz", None),
            ("/v1/{a}", "/v1/%+1", None),
        ] {
            assert_eq!(matches(template, path), wanted, "{template} {path}");
        }
    }

    #[test]
    fn what_is_not_a_template_is_refused() {
        for text in ["", "v1", "/", "/v1/", "/v1//x", "/v1/{", "/v1/{}", "/v1/{a}b", "/v1/**/x", "/v1/a*b"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(template in "/[a-z{}*:/=.]{0,20}", path in "/[ -~]{0,20}") {
            if let Ok(template) = Template::parse(&template) {
                drop(template.matches(&path));
            }
        }

        #[test]
        fn a_variable_takes_back_what_was_put_in(value in "[a-zA-Z0-9._~-]{1,20}") {
            prop_assert_eq!(matches("/v1/x/{id}:go", &format!("/v1/x/{value}:go")), pairs(&[("id", &value)]));
        }
    }
}
