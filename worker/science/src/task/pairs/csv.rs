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
#[derive(Clone, Copy)]
enum State {
    /// At its beginning.
    Start,
    Plain,
    Quoted,
    /// After a quote within quotes: doubled, or the end of the quoted part.
    AfterQuote,
}

/// What was read so far.
struct Reader {
    done: Vec<Record>,
    /// The record that is being read, and its last field.
    fields: Vec<String>,
    field: String,
    state: State,
    line: usize,
    begun: usize,
}

/// The records of a text; blank lines are skipped.
fn records(file: &str, text: &str, faults: &mut Faults) -> Vec<Record> {
    let (fields, field) = (Vec::new(), String::new());
    let mut reader = Reader { done: Vec::new(), fields, field, state: State::Start, line: 1, begun: 1 };
    let text = text.replace("\r\n", "\n");
    for c in text.chars().chain((!text.ends_with('\n')).then_some('\n')) {
        if let Err(reason) = reader.take(c) {
            faults.add(file, reader.line, reason);
        }
        reader.line += usize::from(c == '\n');
    }
    if matches!(reader.state, State::Quoted) {
        faults.add(file, reader.begun, "a quote is opened in this row and never closed");
    }
    reader.done
}

impl Reader {
    fn take(&mut self, c: char) -> Result<(), String> {
        self.state = match (self.state, c) {
            (State::Start, '"') => State::Quoted,
            (State::Quoted, '"') => State::AfterQuote,
            (State::Quoted, _) => self.put(c, State::Quoted),
            (State::AfterQuote, '"') => self.put('"', State::Quoted),
            (_, ',') => self.end_field(),
            (_, '\n') => self.end_record(),
            (State::AfterQuote, _) => {
                self.state = self.put(c, State::Plain);
                return Err(format!("`{c}` after a closing quote; quotes within quotes are doubled"));
            }
            (State::Start | State::Plain, _) => self.put(c, State::Plain),
        };
        Ok(())
    }

    fn put(&mut self, c: char, next: State) -> State {
        self.field.push(c);
        next
    }

    fn end_field(&mut self) -> State {
        self.fields.push(std::mem::take(&mut self.field));
        State::Start
    }

    fn end_record(&mut self) -> State {
        let next = self.end_field();
        let fields = std::mem::take(&mut self.fields);
        if fields != [""] {
            self.done.push(Record { line: self.begun, fields });
        }
        self.begun = self.line + 1;
        next
    }
}
