//! Patterns of names: `*` stands for any characters, `?` for one.

/// Does `text` stand for several names?
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Does the whole of `name` match? The time is at most the product of the two lengths, whatever the pattern.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // After the last `*`, and what of the name it covers so far: an earlier one need never cover more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                p += 1;
                star = Some((p, n));
            }
            (Some(&c), _) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            (_, Some((after, covered))) => {
                (p, n) = (after, covered + 1);
                star = Some((after, n));
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, wanted) in [
            ("step*", "step1000-tokens4B", true),
            ("step*", "main", false),
            ("*4B", "step1000-tokens4B", true),
            ("step?000-*", "step1000-tokens4B", true),
            ("step?000-*", "step10000-tokens40B", false),
            ("*", "anything", true),
            ("*", "", true),
            ("?", "", false),
            ("", "", true),
            ("", "x", false),
            ("step", "step1", false),
            ("step1", "step", false),
            ("*é*", "caféine", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**a?", "xxab", true),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
        assert!(is_pattern("step*") && is_pattern("v?") && !is_pattern("main"));
    }

    #[test]
    fn a_hostile_pattern_takes_no_longer() {
        assert!(!matches(&"*a".repeat(100), &("a".repeat(2000) + "b")));
    }
}
