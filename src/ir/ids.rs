//! Entities: `u32` newtypes that index the arenas of a module.
//!
//! They are plain numbers: which value, op or weight they mean is decided by the arena they index.

use std::fmt;

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);

        impl $name {
            /// The entity at position `index` of its arena.
            ///
            /// Arenas hold at most `u32::MAX` elements; importers refuse larger inputs first.
            pub fn new(index: usize) -> Self {
                Self(u32::try_from(index).unwrap_or(u32::MAX))
            }

            /// Position in the arena.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

entity!(
    /// A value: a graph input, a region input, or a result of an op.
    ValueId,
    "%"
);
entity!(
    /// An op in a graph's arena.
    OpId,
    "op"
);
entity!(
    /// A weight of the module.
    WeightId,
    "@"
);
