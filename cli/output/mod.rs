//! How results reach standard output: as a table for people, as JSON for programs, or only ids.

pub mod table;

pub use table::render;

use clap::ValueEnum;
use serde_json::Value;
use std::io::{self, Write};
use taskvec_model::table::Table;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table that fits the terminal
    Table,
    /// One array of objects
    Json,
    /// The first column only
    Quiet,
}

/// Prints a listing to standard output.
pub fn print(table: &Table, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table => writeln!(out, "{}", table::render(table))?,
        Format::Json => writeln!(out, "{}", json(table))?,
        Format::Quiet => {
            for first in table.rows.iter().filter_map(|row| row.first()) {
                writeln!(out, "{}", table::cell(first))?;
            }
        }
    }
    out.flush()
}

/// One array of objects, a row a line. Columns of one name keep only the last, as JSON has it.
fn json(table: &Table) -> String {
    let object = |row: &Vec<Value>| {
        let fields: serde_json::Map<String, Value> = table.columns.iter().cloned().zip(row.iter().cloned()).collect();
        Value::Object(fields).to_string()
    };
    let rows: Vec<String> = table.rows.iter().map(object).collect();
    if rows.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", rows.join(",\n")) }
}

/// One object of facts about one thing, as a two-column table or as JSON.
pub fn print_facts(facts: &[(&str, Value)], format: Format) -> io::Result<()> {
    match format {
        Format::Json => {
            let object: serde_json::Map<String, Value> =
                facts.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
            writeln!(io::stdout().lock(), "{}", Value::Object(object))
        }
        Format::Quiet => {
            facts.iter().take(1).try_for_each(|(_, v)| writeln!(io::stdout().lock(), "{}", table::cell(v)))
        }
        Format::Table => {
            let width = facts.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
            let mut out = io::stdout().lock();
            facts.iter().try_for_each(|(k, v)| writeln!(out, "{k:width$}  {}", table::cell(v)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_keeps_types_and_empty_tables_are_arrays() {
        let table = Table { columns: vec!["a".into(), "b".into()], rows: vec![vec![json!(1), json!(null)]] };
        assert_eq!(super::json(&table), "[\n{\"a\":1,\"b\":null}\n]");
        assert_eq!(super::json(&Table::default()), "[]");
    }
}
