//! What filters of lists are: tests of fields, and how they are put together.

use chrono::{DateTime, Utc};

/// A field that filters may name.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the contract: `due_time`. Filters may also say `dueTime`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// The column that holds it, of the table `t`: an empty text may be null.
    pub column: &'static str,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of these, always: `=` and `!=`.
    Choice(&'static [&'static str]),
    /// A text: `=`, `!=`, and `:*` where there is any.
    Text,
    /// Several texts: `:` where one of them is this, and `:*` where there is any.
    Texts,
    /// A time: all comparisons, and `:*` where there is one. Without one, only `!=` and NOT hold.
    Time,
}

impl Kind {
    /// What may stand behind it.
    pub(crate) const fn takes(self) -> &'static str {
        match self {
            Self::Choice(_) => "= or !=",
            Self::Text => "=, != or :*",
            Self::Texts => ":",
            Self::Time => "=, !=, <, <=, >, >= or :*",
        }
    }
}

/// A filter.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Each of these holds; all that is listed when there is none.
    All(Vec<Self>),
    /// One of these holds.
    Any(Vec<Self>),
    /// This does not hold.
    Not(Box<Self>),
    /// The test holds.
    Is(Test),
}

/// A test of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Of what.
    pub field: &'static Field,
    /// How its value is compared.
    pub how: How,
    /// With what.
    pub value: Value,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// `=`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
    /// `:`
    Has,
    /// `:*`
    Present,
}

impl How {
    /// The operator of both AIP-160 and SQL.
    #[must_use]
    pub const fn operator(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
            Self::Has | Self::Present => ":",
        }
    }
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text, or the name of a choice.
    Text(String),
    /// A time, to the microsecond.
    Time(DateTime<Utc>),
    /// Nothing: of [`How::Present`].
    None,
}

impl Filter {
    /// This and also that test.
    #[must_use]
    pub fn and(self, test: Test) -> Self {
        match self {
            Self::All(mut all) => {
                all.push(Self::Is(test));
                Self::All(all)
            }
            other => Self::All(vec![other, Self::Is(test)]),
        }
    }

    /// The tests that hold for everything that this holds for.
    pub fn certain(&self) -> Box<dyn Iterator<Item = &Test> + '_> {
        match self {
            Self::All(all) => Box::new(all.iter().flat_map(Self::certain)),
            Self::Is(test) => Box::new(std::iter::once(test)),
            Self::Any(_) | Self::Not(_) => Box::new(std::iter::empty()),
        }
    }
}

/// A name as JSON has it.
pub(crate) fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at_checked(1).unwrap_or_default();
        name + &initial.to_uppercase() + rest
    })
}
