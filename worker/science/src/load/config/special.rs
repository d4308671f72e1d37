//! Numbers that JSON does not have, in the two ways that transformers writes them.

use serde_json::Value;

/// JSON with `Infinity`, `-Infinity` and `NaN`, as Python and transformers 4 write it, in the way of transformers 5, which
/// is JSON: `{"__float__": "Infinity"}`.
pub(super) fn tagged(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some(first) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"].into_iter().find(|n| !quoted && rest.starts_with(n));
        let taken = match number {
            Some(number) => {
                out.push_str(&format!("{{\"__float__\": \"{number}\"}}"));
                number.len()
            }
            // A backslash hides what follows it, a quotation mark too.
            None if quoted && first == '\\' => first.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8),
            None => {
                quoted ^= first == '"';
                first.len_utf8()
            }
        };
        if number.is_none() {
            out.push_str(&rest[..taken]);
        }
        rest = &rest[taken..];
    }
    out
}

/// A number, also one that JSON does not have.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value.get("__float__").and_then(Value::as_str) {
        None => value.as_f64(),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_writing_infinity_are_read() {
        let text =
            r#"{"a": [0.5, Infinity], "b": -Infinity, "c": "Infinity \" NaN \\", "d": {"__float__": "Infinity"}}"#;
        let json: Value = serde_json::from_str(&tagged(text)).unwrap();
        assert_eq!([&json["a"][0], &json["a"][1]].map(number), [Some(0.5), Some(f64::INFINITY)]);
        assert_eq!([&json["b"], &json["d"]].map(number), [Some(f64::NEG_INFINITY), Some(f64::INFINITY)]);
        assert_eq!(json["c"], r#"Infinity " NaN \"#);
        assert_eq!(number(&json["c"]), None);
    }
}
