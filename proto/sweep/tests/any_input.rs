//! Whatever comes in: no panic, no endless work, and the order of keys never matters.

use proptest::prelude::*;
use std::time::Instant;
use taskvec_sweep::{Limits, plan};

const FULL: &str = include_str!("../../../sweeps/quickstart.yaml");

/// A mapping or scalar, written as flow YAML with the keys of every mapping in the order that `pick` gives.
fn permuted(value: &serde_yaml::Value, path: &str, pick: &mut impl FnMut(usize) -> usize) -> String {
    match value {
        serde_yaml::Value::Mapping(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            let mut parts = Vec::new();
            while !entries.is_empty() {
                // The order of the grid is the order of the runs.
                let i = if path == "grid" { 0 } else { pick(entries.len()) };
                let (key, inner) = entries.remove(i);
                let key = key.as_str().expect("the file has only words as keys");
                parts.push(format!("{key}: {}", permuted(inner, key, pick)));
            }
            format!("{{ {} }}", parts.join(", "))
        }
        serde_yaml::Value::Sequence(items) => {
            let items: Vec<String> = items.iter().map(|item| permuted(item, "", pick)).collect();
            format!("[{}]", items.join(", "))
        }
        scalar => serde_yaml::to_string(scalar).expect("it was read from YAML").trim().to_owned(),
    }
}

/// Text that looks like YAML more often than random characters do.
fn yaml_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("version: 1\n"),
        Just("kind: pretrain\n"),
        Just("kind: selftest\n"),
        Just("grid:\n"),
        Just("  seed: "),
        Just("model: "),
        Just("train:\n"),
        Just("  steps: 10\n"),
        Just("analyses:\n"),
        Just("  - "),
        Just("- "),
        Just("{ "),
        Just(" }"),
        Just("[ "),
        Just(" ]"),
        Just(", "),
        Just(": "),
        Just("? "),
        Just("| \n"),
        Just("> \n"),
        Just("&a "),
        Just("*a"),
        Just("!!str "),
        Just("!<"),
        Just("<<: "),
        Just("---\n"),
        Just("...\n"),
        Just("%YAML 1.2\n"),
        Just("'"),
        Just("\""),
        Just("\\x"),
        Just("# x\n"),
        Just("\t"),
        Just("\n"),
        Just("  "),
        Just("1e999"),
        Just(".nan"),
        Just("-9223372036854775809"),
        Just("~"),
        Just("null"),
        Just("é"),
        Just("\u{feff}"),
        Just("\r\n"),
        Just("\u{85}"),
        Just("\0"),
        Just("selftest: { jobs: 1 }\n"),
        Just("name: x\n"),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn survives(text: &str) {
    match plan(text, "any.yaml", &Limits::default()) {
        Ok(plan) => assert!(!plan.runs.is_empty()),
        Err(faults) => {
            assert!(!faults.is_empty());
            let lines = text.lines().count().max(1);
            for fault in faults.iter() {
                assert!(fault.at.line >= 1 && fault.at.column >= 1, "{fault:?}");
                assert!(fault.at.line <= lines, "{fault:?}");
                assert!(!fault.message.contains('\n'), "{fault:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn anything_like_yaml_is_read_or_refused(text in yaml_like()) {
        survives(&text);
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(at in 0..FULL.len(), remove in 0usize..40, insert in yaml_like()) {
        prop_assume!(FULL.is_char_boundary(at));
        let rest: String = FULL[at..].chars().skip(remove).collect();
        survives(&format!("{}{insert}{rest}", &FULL[..at]));
    }

    #[test]
    fn the_order_of_keys_does_not_matter(picks in prop::collection::vec(any::<prop::sample::Index>(), 80)) {
        let mut picks = picks.into_iter().cycle();
        let value: serde_yaml::Value = serde_yaml::from_str(FULL).unwrap();
        let text = permuted(&value, "", &mut |n| picks.next().unwrap().index(n));
        let limits = Limits::default();
        prop_assert_eq!(plan(&text, "a", &limits).unwrap(), plan(FULL, "b", &limits).unwrap());
    }
}

/// Files of the largest size allowed, made to take long. None needs a second; the bound is for machines that are busy with other things.
#[test]
fn hostile_files_are_dealt_with_in_reasonable_time() {
    let megabyte = |piece: &str| piece.repeat((1 << 20) / piece.len() - 200);
    let many = |name: &str| (0..60_000).map(|i| format!("{name}{i}: 1\n")).collect::<String>();
    let head = "version: 1\nname: x\nkind: pretrain\n";
    let seeds = (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let cases = [
        ("unknown keys", format!("{head}{}", many("stepz"))),
        ("unknown keys at every point", format!("{head}{}grid: {{ seed: [{seeds}] }}\n", many("m"))),
        ("one long key", format!("{head}{}: 1\n", megabyte("k"))),
        ("brackets", megabyte("[")),
        ("braces", megabyte("{a: ")),
        ("dashes", megabyte("- ")),
        ("question marks", megabyte("? ")),
        ("a long list", format!("{head}analyses: [{}]\n", megabyte("1,"))),
        ("a long grid", format!("{head}grid: {{ seed: [{}] }}\n", megabyte("1,"))),
        (
            "many axes",
            format!(
                "{head}grid: {{ {} }}\n",
                (0..40_000).map(|i| format!("train.x{i}: [1]")).collect::<Vec<_>>().join(", ")
            ),
        ),
        ("quotes", megabyte("\"a\" ")),
        ("comments", megabyte("# a\n")),
        ("long scalar", format!("name: {}", megabyte("a "))),
        ("anchors", megabyte("&a ")),
    ];
    for (what, text) in cases {
        let start = Instant::now();
        survives(&text);
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s");
        assert!(seconds < 30.0, "{what} took {seconds:.1} s");
    }
}

#[test]
fn a_sweep_of_ten_thousand_runs_is_planned() {
    let seeds = (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let text = FULL
        .replace("seed: [0, 1, 2, 3]", &format!("seed: [{seeds}]"))
        .replace("count: 11, resume_every: 500", "count: 2, resume_every: 3000");
    let start = Instant::now();
    let plan = plan(&text, "many.yaml", &Limits::default()).unwrap();
    println!("{} jobs in {:.2} s", plan.jobs.len(), start.elapsed().as_secs_f64());
    assert_eq!(plan.jobs.len(), 10_000 * (1 + 1 + 2 * 2));
}
