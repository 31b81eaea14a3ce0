//! The form in which a service registers its events.

/// The events of a service, by what they are about: a line for each, with the name in [`Event`](super::todo::Event), the newest
/// struct, and its type. After `=` the struct is written here: the aggregate, and who made the change. After `is` it is written by
/// hand, with `of`, and with the aggregate in the field that the block names.
///
/// What it superseded follows, the newest first, each as `before`; its struct, and the upcaster `impl From<Old> for` the one that
/// superseded it, are written by hand. Where the aggregate was another struct then, that follows its struct: `before MovedV1: CargoV1`.
macro_rules! events {
    (
        service $service:literal, owner $owner:literal;
        $($about:ident: $aggregate:ident {$(
            $(#[$doc:meta])*
            $name:ident $made:tt $newest:ident $type:literal $(before $old:ident $(: $old_aggregate:ident)? $old_type:literal)*;
        )*})*
    ) => {
        /// The service's name in types, subjects and streams.
        pub const SERVICE: &str = $service;
        /// Who answers for its events.
        pub const OWNER: &str = $owner;
        /// The CloudEvents `source`.
        pub const SOURCE: &str = concat!("/flotilla/", $service);

        $($(
            event_struct!($made $(#[$doc])* $newest, $about: $aggregate);
            event_type!($newest, $type, $about: $aggregate, None);
            $(event_type!($old, $old_type, $about: $aggregate $(, $old_aggregate)?, Some(<$old as $crate::events::Superseded>::By::TYPE));)*
            upcasters!($name, $newest $(, $old)*);
        )*)*

        /// Any event of the service, in its newest version.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Event {$($(
            #[doc = concat!("See [`", stringify!($newest), "`].")]
            $name($newest),
        )*)*}

        /// What an event of the service is about, as it was after the change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum About<'a> {$(
            #[doc = concat!("See [`", stringify!($aggregate), "`].")]
            $aggregate(&'a $aggregate),
        )*}

        /// Every type that [`Event::decode`] knows.
        pub const TYPES: &[&str] = &[$($($($old_type,)* $type,)*)*];

        /// The same, as they are registered.
        pub(super) const REGISTRY: &[$crate::events::Type] = &[$($(
            $($crate::events::Type::of::<$old>(SERVICE, OWNER, None),)*
            $crate::events::Type::of::<$newest>(SERVICE, OWNER, Some(|| {
                $crate::envelope::sample(|actor| $newest::of(<$aggregate as $crate::events::Aggregate>::example(), actor))
            })),
        )*)*];

        impl Event {
            /// Reads the data of a CloudEvent of this type, older versions through their upcasters. `Ok(None)` is a type that
            /// is not known here: to be skipped and counted, never an error.
            ///
            /// # Errors
            /// Fails when the data does not fit the schema of its type.
            pub fn decode(event_type: &str, data: &str) -> Result<Option<Self>, $crate::events::DecodeError> {
                use $crate::events::read;
                Ok(Some(match event_type {
                    $($(
                        $($old_type => read::<$old>(data)?.into(),)*
                        $type => read::<$newest>(data)?.into(),
                    )*)*
                    _ => return Ok(None),
                }))
            }

            /// What it is about.
            #[must_use]
            pub const fn about(&self) -> About<'_> {
                match self {
                    $($(Self::$name(event) => About::$aggregate(&event.$about),)*)*
                }
            }
        }
    };
}

macro_rules! event_struct {
    (is $(#[$doc:meta])* $newest:ident, $about:ident: $aggregate:ident) => {};
    (= $(#[$doc:meta])* $newest:ident, $about:ident: $aggregate:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub struct $newest {
            #[doc = concat!("The ", stringify!($about), " after the change.")]
            pub $about: $aggregate,
            /// Who made the change.
            pub actor: $crate::events::Actor,
        }

        impl $newest {
            /// The event about this state.
            #[must_use]
            pub const fn of($about: $aggregate, actor: $crate::events::Actor) -> Self {
                Self { $about, actor }
            }
        }
    };
}

macro_rules! event_type {
    ($event:ident, $type:literal, $about:ident: $aggregate:ident, $then:ident, $by:expr) => {
        event_type!($event, $type, $about: $then, $by);
    };
    ($event:ident, $type:literal, $about:ident: $aggregate:ident, $by:expr) => {
        const _: () = $crate::events::check($type, SERVICE);

        impl $crate::events::EventType for $event {
            const TYPE: &'static str = $type;
            const SOURCE: &'static str = SOURCE;
            const SUPERSEDED_BY: Option<&'static str> = $by;
            type About = $aggregate;

            fn about(&self) -> &$aggregate {
                &self.$about
            }
        }
    };
}

/// Converts each version to the one that superseded it, and the newest to the event.
macro_rules! upcasters {
    ($name:ident, $newest:ident $(, $old:ident)*) => {
        impl From<$newest> for Event {
            fn from(newest: $newest) -> Self {
                Self::$name(newest)
            }
        }
        upcasters!(@ $newest $($old)*);
    };
    (@ $newest:ident) => {};
    (@ $newer:ident $old:ident $($older:ident)*) => {
        impl $crate::events::Superseded for $old {
            type By = $newer;
        }

        impl From<$old> for Event {
            fn from(old: $old) -> Self {
                $newer::from(old).into()
            }
        }
        upcasters!(@ $old $($older)*);
    };
}
