//! Bitwise arithmetic on two binary numbers: `01101 11010` → `01000` (AND).
//!
//! The input is both numbers, all digits written, with one space between; it does not name the operator. Null answers
//! every pair with random digits, always the same ones for a pair and a seed.
//!
//! There are 4^w pairs of w digits. Up to w = 6 all of them are items; beyond, 10 500 different ones drawn at random, the
//! same for every seed. A fifth of the pairs, but at most 500, are test items (at w = 5: 205 or so of 1 024; from w = 7 on
//! 500, and 10 000 for training, as in the paper). Training and test are disjoint as sets of unordered pairs: since the
//! operators are symmetric, `a b` and `b a` are on the same side. All operators share one split.

use super::{
    Counts, Item, Task, draw,
    split::{Split, test_members},
};
use std::collections::BTreeSet;
use taskvec_model::spec::Family;

/// Longest numbers: more digits teach nothing new and make prompts long.
pub const MAX_DIGITS: u32 = 64;
/// Up to so many pairs, all are used.
const ALL_UP_TO: u64 = 4096;
const DRAWN: usize = 10_500;
const MOST_TEST: usize = 500;

/// What is computed of two digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    And,
    Nand,
    Or,
    Nor,
    Xor,
    Xnor,
}

impl Operator {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "AND" => Self::And,
            "NAND" => Self::Nand,
            "OR" => Self::Or,
            "NOR" => Self::Nor,
            "XOR" => Self::Xor,
            "XNOR" => Self::Xnor,
            _ => return None,
        })
    }

    fn apply(self, a: bool, b: bool) -> bool {
        match self {
            Self::And => a & b,
            Self::Nand => !(a & b),
            Self::Or => a | b,
            Self::Nor => !(a | b),
            Self::Xor => a ^ b,
            Self::Xnor => a == b,
        }
    }
}

/// Two numbers as digits, most significant first.
type Pair = (Vec<bool>, Vec<bool>);

/// The tasks of `digits`-digit numbers; `seed` decides what Null answers. `digits` is within its bounds.
pub(super) fn tasks(digits: u32, seed: u64) -> (Vec<Task>, Counts) {
    let pairs = pairs(digits);
    let unordered: Vec<String> = pairs.iter().map(|(a, b)| text(a.min(b)) + &text(a.max(b))).collect();
    let test = test_members(&unordered, MOST_TEST);
    let inputs: Vec<String> = pairs.iter().map(|(a, b)| format!("{} {}", text(a), text(b))).collect();
    let task = |&name: &&str| {
        let items = pairs.iter().zip(&inputs).map(|(pair, input)| {
            let output = Operator::of(name).map_or_else(|| random_digits(digits, seed, input), |o| combined(o, pair));
            Item { input: input.clone(), output }
        });
        let instruction = if name == "Null" { "Random digits" } else { name };
        Task::new(name, instruction, items.zip(test.iter().map(|&t| Split::of(t))))
    };
    let tasks = Family::Bitwise { digits }.latent_tasks().iter().map(task).collect();
    let test = test.iter().filter(|&&t| t).count();
    let n = pairs.len();
    (tasks, Counts { read: n, kept: n, repeated: 0, train: n - test, test })
}

/// Every pair of numbers with so many digits, or the drawn ones where they are too many.
fn pairs(digits: u32) -> Vec<Pair> {
    let all = 4u64.checked_pow(digits).filter(|&n| n <= ALL_UP_TO);
    if let Some(n) = all {
        let number = |v: u64| (0..digits).rev().map(|bit| v >> bit & 1 == 1).collect::<Vec<bool>>();
        return (0..n).map(|i| (number(i >> digits), number(i))).collect();
    }
    let stream = draw::stream(0, &format!("pairs of {digits} digits"));
    let mut seen = BTreeSet::new();
    (0..)
        .map(|i| {
            let mut draws = stream.at(i);
            let mut number = || (0..digits).map(|_| draws.below(2) == 1).collect::<Vec<bool>>();
            (number(), number())
        })
        .filter(|pair| seen.insert(pair.clone()))
        .take(DRAWN)
        .collect()
}

fn combined(operator: Operator, (a, b): &Pair) -> String {
    a.iter().zip(b).map(|(&a, &b)| digit(operator.apply(a, b))).collect()
}

fn random_digits(digits: u32, seed: u64, input: &str) -> String {
    let mut draws = draw::null(seed, input);
    (0..digits).map(|_| digit(draws.below(2) == 1)).collect()
}

fn text(number: &[bool]) -> String {
    number.iter().map(|&d| digit(d)).collect()
}

fn digit(set: bool) -> char {
    if set { '1' } else { '0' }
}
