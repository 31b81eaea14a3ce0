//! The form in which a service registers its events.

/// The events of a service, by what they are about: a line for each, with the name in [`Event`](super::todo::Event), the struct of
/// the newest version, and its type. A version that it superseded follows as `before`; its struct, and the upcaster
/// `impl From<Old> for New`, are written by hand.
macro_rules! events {
    (
        service $service:literal, owner $owner:literal;
        $($about:ident: $aggregate:ident {$(
            $(#[$doc:meta])*
            $name:ident = $newest:ident $type:literal $(before $old:ident $old_type:literal)*;
        )*})*
    ) => {
        /// The service's name in types, subjects and streams.
        pub const SERVICE: &str = $service;
        /// Who answers for its events.
        pub const OWNER: &str = $owner;
        /// The CloudEvents `source`.
        pub const SOURCE: &str = concat!("/flotilla/", $service);

        $($(
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

            registered!($newest, $type, $about: $aggregate);
            $(registered!($old, $old_type, $about: $aggregate);)*
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
        pub(super) static REGISTRY: &[$crate::events::Type] = &[$($(
            $($crate::events::Type {
                name: $old_type,
                service: SERVICE,
                owner: OWNER,
                superseded_by: Some($type),
                schema: $crate::events::schema_of::<$old>,
                sample: None,
            },)*
            $crate::events::Type {
                name: $type,
                service: SERVICE,
                owner: OWNER,
                superseded_by: None,
                schema: $crate::events::schema_of::<$newest>,
                sample: Some(|| {
                    let about = <$aggregate as $crate::events::Aggregate>::example();
                    $crate::envelope::sample(|actor| $newest::of(about, actor))
                }),
            },
        )*)*];

        impl Event {
            /// Reads the data of a CloudEvent of this type, older versions through their upcaster. `Ok(None)` is a type that
            /// is not known here: to be skipped and counted, never an error.
            ///
            /// # Errors
            /// Fails when the data does not fit the schema of its type.
            pub fn decode(event_type: &str, data: &str) -> Result<Option<Self>, $crate::events::DecodeError> {
                use $crate::events::read;
                Ok(Some(match event_type {
                    $($(
                        $($old_type => Self::$name($newest::from(read::<$old>(event_type, data)?)),)*
                        $type => Self::$name(read(event_type, data)?),
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

macro_rules! registered {
    ($event:ident, $type:literal, $about:ident: $aggregate:ident) => {
        impl $crate::events::EventType for $event {
            const TYPE: &'static str = $type;
            const SOURCE: &'static str = SOURCE;
            type About = $aggregate;

            fn about(&self) -> &$aggregate {
                &self.$about
            }
        }
    };
}
