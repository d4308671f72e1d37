//! Enums that are stored and shown under a name each.

/// Gives an enum of plain variants `ALL`, `as_str`, `Display` and `FromStr`; `$what` is for messages about bad names.
macro_rules! names {
    ($ty:ident, $what:literal, $($variant:ident = $name:literal),+ $(,)?) => {
        impl $ty {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $ty {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $ty {
            type Err = crate::job::BadName;
            fn from_str(s: &str) -> Result<Self, crate::job::BadName> {
                match s {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(crate::job::BadName { what: $what, text: s.to_owned() }),
                }
            }
        }
    };
}

pub(crate) use names;
