//! Single values: numbers, names, texts.

use super::{Reader, hints::is_name};
use crate::{
    schema::{Kind, MAX_TASK},
    tree::{Node, Value},
};
use serde_json::{Value as Json, json};
use taskvec_model::spec::NULL_TASK;

impl Reader<'_> {
    pub(super) fn scalar(&mut self, node: &Node, kind: &Kind, path: &str) -> Option<Json> {
        let read = match (kind, &node.value) {
            (Kind::Whole { min, max }, _) => return self.whole(node, *min, *max, kind, path),
            // Adding 0 turns -0 into 0, which is the same number in another spelling.
            (Kind::Number(range), _) => number(node).filter(|x| range.contains(*x)).map(|x| Json::from(x + 0.0)),
            (Kind::Flag, Value::Bool(flag)) => Some(Json::from(*flag)),
            (Kind::Name, Value::Text(name)) if is_name(name) => Some(name.as_str().into()),
            // The database keeps no NUL characters.
            (Kind::Text { .. } | Kind::Task, Value::Text(text)) if text.contains('\0') => {
                return self.wrong(node, kind, path, "; it has a NUL character, which no text may have");
            }
            (Kind::Text { min, max, .. }, Value::Text(text)) => {
                (*min..=*max).contains(&text.chars().count()).then(|| text.as_str().into())
            }
            (Kind::Task, Value::Text(text)) => {
                (1..=MAX_TASK).contains(&text.chars().count()).then(|| text.as_str().into())
            }
            (Kind::Task, Value::Null { named: true }) => Some(NULL_TASK.into()),
            (Kind::Blocks, Value::Text(text)) => blocks(text),
            (Kind::Blocks, Value::List(items)) => range(items),
            _ => None,
        };
        match read {
            Some(json) => Some(json),
            None => self.wrong(node, kind, path, ""),
        }
    }

    fn whole(&mut self, node: &Node, min: u64, max: u64, kind: &Kind, path: &str) -> Option<Json> {
        match node.value {
            Value::Whole(n) if (i128::from(min)..=i128::from(max)).contains(&n) => Some((n as u64).into()),
            // `8e4` and `80.0` are floating-point numbers in YAML.
            Value::Number(x) if x.fract() == 0.0 && x >= min as f64 && x <= (max as f64).min(2f64.powi(53)) => {
                self.wrong(node, kind, path, &format!("; write it as `{}`", x as u64))
            }
            _ => self.wrong(node, kind, path, ""),
        }
    }
}

fn number(node: &Node) -> Option<f64> {
    match node.value {
        Value::Number(x) => Some(x),
        Value::Whole(n) => Some(n as f64),
        _ => None,
    }
}

/// `all`, `first:N` or `last:N` as [`taskvec_model::spec::LoraLayers`].
fn blocks(text: &str) -> Option<Json> {
    let Some((end, count)) = text.split_once(':') else {
        return (text == "all").then(|| "all".into());
    };
    let count: u32 = count.parse().ok().filter(|n| *n > 0)?;
    ["first", "last"].contains(&end).then(|| json!({ end: count }))
}

/// `[FIRST, LAST]` as [`taskvec_model::spec::LoraLayers`].
fn range(items: &[Node]) -> Option<Json> {
    let whole = |node: &Node| match node.value {
        Value::Whole(n) => u32::try_from(n).ok(),
        _ => None,
    };
    let [from, to] = items else { return None };
    let (from, to) = (whole(from)?, whole(to)?);
    (1 <= from && from <= to).then(|| json!({ "range": [from, to] }))
}
