//! Rows from JSON, one object a line or an array of objects.

use super::RawRow;
use crate::task::Faults;
use serde_json::{Deserializer, Value};

/// One object a line; blank lines are skipped.
pub(super) fn lines(file: &str, text: &str, faults: &mut Faults) -> Vec<RawRow> {
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(value) => rows.extend(row(file, i + 1, value, faults)),
            Err(e) => faults.add(file, i + 1, format!("no JSON: {}", without_place(&e))),
        }
    }
    rows
}

/// An array of objects. It is read one by one, because only so is it known in which line each begins.
pub(super) fn array(file: &str, text: &str, faults: &mut Faults) -> Vec<RawRow> {
    let mut rows = Vec::new();
    let mut at = Place { text, offset: 0, line: 1 };
    if !at.takes('[') {
        faults.add(file, at.line, "no array: the file should begin with `[`");
        return rows;
    }
    while !at.takes(']') {
        let mut values = Deserializer::from_str(at.rest()).into_iter::<Value>();
        let line = at.line;
        match values.next() {
            Some(Ok(value)) => {
                at.advance(values.byte_offset());
                rows.extend(row(file, line, value, faults));
            }
            // What follows broken JSON cannot be told apart from it.
            Some(Err(e)) => {
                faults.add(file, line + e.line() - 1, format!("no JSON: {}", without_place(&e)));
                return rows;
            }
            None => {
                faults.add(file, line, "the array ends without `]`");
                return rows;
            }
        }
        if !at.takes(',') && !at.rest().starts_with(']') {
            faults.add(file, at.line, "`,` or `]` should follow a row");
            return rows;
        }
    }
    if !at.rest().is_empty() {
        faults.add(file, at.line, "something follows the array");
    }
    rows
}

/// How far a text is read.
struct Place<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl<'a> Place<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest()[..bytes].matches('\n').count();
        self.offset += bytes;
    }

    /// Goes past blanks, and past `wanted` and the blanks after it where it is next.
    fn takes(&mut self, wanted: char) -> bool {
        self.blanks();
        let found = self.rest().starts_with(wanted);
        if found {
            self.advance(wanted.len_utf8());
            self.blanks();
        }
        found
    }

    fn blanks(&mut self) {
        self.advance(self.rest().len() - self.rest().trim_start().len());
    }
}

fn row(file: &str, line: usize, value: Value, faults: &mut Faults) -> Option<RawRow> {
    let Value::Object(mut object) = value else {
        faults.add(file, line, "a row should be an object with `input` and `output`");
        return None;
    };
    let known = faults.0.len();
    let mut text = |name: &str| match object.remove(name) {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => {
            faults.add(file, line, format!("`{name}` should be text in quotes, not {}", kind(&other)));
            None
        }
    };
    let row = RawRow { line, task: text("task"), input: text("input"), output: text("output") };
    (faults.0.len() == known).then_some(row)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The message without its line, which counts from where reading began.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_owned())
}
