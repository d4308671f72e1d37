//! Rows from CSV as in RFC 4180: fields divided by commas; in double quotes a field may hold commas, line breaks and,
//! doubled, double quotes. The first line names the columns.

use super::RawRow;
use crate::task::Faults;

pub(super) fn rows(file: &str, text: &str, faults: &mut Faults) -> Vec<RawRow> {
    let mut records = records(file, text, faults).into_iter();
    let Some(header) = records.next() else {
        faults.add(file, 1, "the file is empty; its first line should be task,input,output");
        return Vec::new();
    };
    let column = |name: &str| header.fields.iter().position(|f| f.trim() == name);
    let (Some(task), Some(input), Some(output)) = (column("task"), column("input"), column("output")) else {
        faults.add(file, header.line, "the first line should name the columns task, input and output");
        return Vec::new();
    };
    let mut rows = Vec::new();
    for Record { line, mut fields } in records {
        if fields.len() != header.fields.len() {
            faults.add(file, line, format!("{} fields instead of {}", fields.len(), header.fields.len()));
            continue;
        }
        let mut field = |i: usize| Some(std::mem::take(&mut fields[i]));
        rows.push(RawRow { line, task: field(task), input: field(input), output: field(output) });
    }
    rows
}

struct Record {
    /// Where it begins, from 1.
    line: usize,
    fields: Vec<String>,
}

/// Where in a field the reading is.
enum State {
    /// At its beginning.
    Start,
    Plain,
    Quoted,
    /// After a quote within quotes: doubled, or the end of the quoted part.
    AfterQuote,
}

/// The records of a text; blank lines are skipped.
fn records(file: &str, text: &str, faults: &mut Faults) -> Vec<Record> {
    let mut out = Vec::new();
    let (mut line, mut begun) = (1, 1);
    let (mut state, mut field, mut fields) = (State::Start, String::new(), Vec::new());
    let text = text.replace("\r\n", "\n");
    for c in text.chars().chain((!text.ends_with('\n')).then_some('\n')) {
        match (&state, c) {
            (State::Start, '"') => state = State::Quoted,
            (State::Quoted, '"') => state = State::AfterQuote,
            (State::Quoted, _) => field.push(c),
            (State::AfterQuote, '"') => {
                field.push('"');
                state = State::Quoted;
            }
            (_, ',') => {
                fields.push(std::mem::take(&mut field));
                state = State::Start;
            }
            (_, '\n') => {
                fields.push(std::mem::take(&mut field));
                let fields = std::mem::take(&mut fields);
                if fields != [""] {
                    out.push(Record { line: begun, fields });
                }
                begun = line + 1;
                state = State::Start;
            }
            (State::AfterQuote, _) => {
                faults.add(file, line, format!("`{c}` after a closing quote; quotes within quotes are doubled"));
                field.push(c);
                state = State::Plain;
            }
            (State::Start | State::Plain, _) => {
                field.push(c);
                state = State::Plain;
            }
        }
        line += usize::from(c == '\n');
    }
    if !fields.is_empty() || !field.is_empty() || matches!(state, State::Quoted) {
        faults.add(file, begun, "a quote is opened in this row and never closed");
    }
    out
}
