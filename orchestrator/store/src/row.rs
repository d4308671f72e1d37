//! Between database rows and domain types. A row that cannot be read is named in the error.

use crate::error::StoreError;
use std::{borrow::Cow, fmt::Display, str::FromStr};
use taskvec_model::id::Digest;

/// The most of a worker's text (log, reason) that is kept, in bytes.
pub(crate) const TEXT_LIMIT: usize = 64 << 10;

/// Where a value was read, for error messages.
#[derive(Clone, Copy)]
pub(crate) struct Place<I> {
    pub table: &'static str,
    pub id: I,
}

impl<I: Display + Copy> Place<I> {
    pub fn bad(self, why: impl Display) -> StoreError {
        StoreError::BadRow { table: self.table, id: self.id.to_string(), why: why.to_string() }
    }

    pub fn name<T: FromStr<Err: Display>>(self, text: &str) -> Result<T, StoreError> {
        text.parse().map_err(|e| self.bad(e))
    }

    pub fn digest(self, bytes: &[u8]) -> Result<Digest, StoreError> {
        Digest::try_from(bytes).map_err(|e| self.bad(e))
    }

    pub fn unsigned<A: TryInto<B, Error: Display>, B>(self, number: A) -> Result<B, StoreError> {
        number.try_into().map_err(|e| self.bad(e))
    }

    pub fn json<T: serde::de::DeserializeOwned>(self, value: serde_json::Value) -> Result<T, StoreError> {
        serde_json::from_value(value).map_err(|e| self.bad(e))
    }
}

/// Text that PostgreSQL takes (no NUL) and that stays within [`TEXT_LIMIT`]: of a longer one, the end.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    const MARK: &str = "[…]\n";
    let mut out = Cow::Borrowed(text);
    if text.contains('\0') {
        out = Cow::Owned(text.replace('\0', "\u{fffd}"));
    }
    if out.len() > TEXT_LIMIT {
        let mut start = out.len() - (TEXT_LIMIT - MARK.len());
        while !out.is_char_boundary(start) {
            start += 1;
        }
        out = Cow::Owned(format!("{MARK}{}", &out[start..]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_keeps_its_end_and_whole_characters() {
        let long = format!("start{}é", "é".repeat(TEXT_LIMIT));
        let kept = text(&long);
        assert!(kept.len() <= TEXT_LIMIT && kept.len() > TEXT_LIMIT - 4, "{}", kept.len());
        assert!(kept.starts_with("[…]\né") && kept.ends_with('é'));
    }

    #[test]
    fn text_without_fault_is_untouched_and_nul_is_replaced() {
        assert!(matches!(text("fine"), Cow::Borrowed("fine")));
        assert_eq!(text("a\0b"), "a\u{fffd}b");
    }

    #[test]
    fn a_bad_value_is_named() {
        let place = Place { table: "jobs", id: 7 };
        let error = place.name::<taskvec_model::state::JobState>("runing").expect_err("no such state");
        assert_eq!(error.to_string(), "row 7 of jobs cannot be read: `runing` is not a job state");
    }
}
