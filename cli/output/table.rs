//! Tables for people.

use comfy_table::{CellAlignment, ContentArrangement, presets};
use serde_json::Value;
use taskvec_model::table::Table;

/// The table as text, fitted to the terminal's width where there is one.
pub fn render(table: &Table) -> String {
    let mut out = comfy_table::Table::new();
    out.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    out.set_header(&table.columns);
    for row in &table.rows {
        out.add_row(row.iter().map(cell));
    }
    for (i, column) in out.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if table.rows.iter().all(|row| row.get(i).is_none_or(|v| v.is_number() || v.is_null())) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    out.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// One value as text: null is empty, other than whole numbers keep five significant digits.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => n.as_f64().map(number).unwrap_or_default(),
        other => other.to_string(),
    }
}

fn number(x: f64) -> String {
    let magnitude = x.abs();
    if x == x.trunc() && magnitude < 1e15 {
        format!("{x}")
    } else if (1e-3..1e6).contains(&magnitude) {
        let decimals = (4 - magnitude.log10().floor() as i32).clamp(0, 7) as usize;
        let text = format!("{x:.decimals$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{x:.4e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_five_significant_digits() {
        let shown: Vec<String> = [1.0, 0.123456, 12.345678, 1234.5678, 1e-7, 0.5].into_iter().map(number).collect();
        assert_eq!(shown, ["1", "0.12346", "12.346", "1234.6", "1.0000e-7", "0.5"]);
    }
}
