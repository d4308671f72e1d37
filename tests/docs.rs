//! The docs say what the program does: parts that are generated are up to date, and every query in them runs (`store`).

use std::{fs, path::Path};

const BEGIN: &str = "<!-- reference:begin (made by tests/docs.rs) -->\n";
const END: &str = "<!-- reference:end -->";

/// `UPDATE_DOCS=1 cargo test --test docs` writes the table of keys anew.
#[test]
fn the_reference_of_keys_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/users.md");
    let text = fs::read_to_string(&path).expect("docs/users.md");
    let (head, rest) = text.split_once(BEGIN).expect("the begin mark");
    let (_, tail) = rest.split_once(END).expect("the end mark");
    let fresh = format!("{head}{BEGIN}{}\n{END}{tail}", taskvec_sweep::reference().trim_end());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).expect("writes");
    }
    assert!(text == fresh || std::env::var_os("UPDATE_DOCS").is_some(), "run UPDATE_DOCS=1 cargo test --test docs");
}
