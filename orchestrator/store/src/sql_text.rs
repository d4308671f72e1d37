//! Just enough of SQL's lexical rules to find where a statement ends.

/// The statement without its closing semicolons and what follows them, if that is only space and comments.
pub(crate) fn without_terminator(sql: &str) -> &str {
    let bytes = sql.as_bytes();
    let mut end = bytes.len();
    let mut closed = false;
    let mut i = 0;
    while i < bytes.len() {
        let next = token_end(sql, i);
        match bytes[i] {
            b';' if !closed => (end, closed) = (i, true),
            b';' => {}
            _ if is_blank(bytes, i) => {}
            // More follows: the semicolon was no terminator of the whole.
            _ => (end, closed) = (bytes.len(), false),
        }
        i = next;
    }
    &sql[..end]
}

fn is_blank(bytes: &[u8], i: usize) -> bool {
    bytes[i].is_ascii_whitespace() || bytes[i..].starts_with(b"--") || bytes[i..].starts_with(b"/*")
}

/// Where the token that starts at `i` ends: a comment, a quoted piece, a word, or one character.
fn token_end(sql: &str, i: usize) -> usize {
    let bytes = sql.as_bytes();
    let rest = &bytes[i..];
    match rest[0] {
        b'-' if rest.starts_with(b"--") => i + rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |n| n + 1),
        b'/' if rest.starts_with(b"/*") => comment_end(bytes, i),
        b'\'' => quoted_end(bytes, i, b'\'', false),
        b'"' => quoted_end(bytes, i, b'"', false),
        b'e' | b'E' if rest.get(1) == Some(&b'\'') => quoted_end(bytes, i + 1, b'\'', true),
        b'$' => dollar_end(sql, i),
        b if is_word(b) => i + rest.iter().position(|b| !is_word(*b) && *b != b'$').unwrap_or(rest.len()),
        _ => i + 1,
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii()
}

/// Comments nest.
fn comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0usize);
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            (i, depth) = (i + 2, depth + 1);
        } else if bytes[i..].starts_with(b"*/") {
            (i, depth) = (i + 2, depth - 1);
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// A doubled quote does not end it; nor, with `escapes`, does one behind a backslash.
fn quoted_end(bytes: &[u8], open: usize, quote: u8, escapes: bool) -> usize {
    let mut i = open + 1;
    while i < bytes.len() {
        let escaped = escapes && bytes[i] == b'\\';
        if escaped || (bytes[i] == quote && bytes.get(i + 1) == Some(&quote)) {
            i += 2;
        } else if bytes[i] == quote {
            return i + 1;
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// `$tag$ … $tag$`, or only the dollar sign of a parameter.
fn dollar_end(sql: &str, i: usize) -> usize {
    let rest = &sql[i + 1..];
    let tag = rest.bytes().position(|b| !is_word(b)).unwrap_or(rest.len());
    if !rest[tag..].starts_with('$') || rest.starts_with(|c: char| c.is_ascii_digit()) {
        return i + 1;
    }
    let delimiter = &sql[i..i + tag + 2];
    let body = i + delimiter.len();
    sql[body..].find(delimiter).map_or(sql.len(), |n| body + n + delimiter.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_semicolon_at_the_end_is_a_terminator() {
        for (sql, kept) in [
            ("SELECT 1", "SELECT 1"),
            ("SELECT 1;", "SELECT 1"),
            ("SELECT 1 ; ; -- done; really\n /* a; /* b; */ c */ ;", "SELECT 1 "),
            ("SELECT ';' ;", "SELECT ';' "),
            ("SELECT 'it''s;' -- x", "SELECT 'it''s;' -- x"),
            (r"SELECT E'\';' ;", r"SELECT E'\';' "),
            (r"SELECT '\' ; -- '", r"SELECT '\' "),
            ("SELECT $$;$$, $a$ $b$; $a$;", "SELECT $$;$$, $a$ $b$; $a$"),
            ("SELECT \";\"\"\" FROM a$b;", "SELECT \";\"\"\" FROM a$b"),
            ("SELECT 1; SELECT 2;", "SELECT 1; SELECT 2"),
            ("SELECT 'é' AS \"ü;\" ; --é", "SELECT 'é' AS \"ü;\" "),
            ("SELECT '", "SELECT '"),
            ("SELECT E'\\", "SELECT E'\\"),
            ("/* open", "/* open"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(without_terminator(sql), kept, "{sql}");
        }
    }
}
