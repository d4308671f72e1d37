//! From what a file says to the shape of the specification, where the two differ, and defaults that follow from other
//! values. Works on JSON: what does not have the expected shape was reported and is left alone.

use serde_json::{Map, Value as Json, json};
use taskvec_model::spec::Family;

/// One whole run.
pub(crate) fn run(run: &mut Json) {
    let kind = run.get("kind").and_then(Json::as_str).unwrap_or_default().to_owned();
    let natural = matches!(kind.as_str(), "evaluate" | "finetune");
    if natural {
        if let Some(data) = run.get_mut("data") {
            *data = natural_data(data);
        }
    } else {
        read_in_std(run);
    }
    let shots = if natural { run["data"]["shots"].clone() } else { json!([]) };
    for item in run.get_mut("analyses").and_then(Json::as_array_mut).into_iter().flatten() {
        *item = analysis(item, &shots);
    }
}

/// One analysis. `shots` are those of the data; synthetic data have none.
pub(crate) fn analysis(json: &Json, shots: &Json) -> Json {
    let mut out = json.clone();
    if let Some(map) = out.as_object_mut() {
        map.entry("at").or_insert_with(|| "all".into());
        if map.get("kind").and_then(Json::as_str) == Some("interventions") {
            let given = map.entry("shots").or_insert(Json::Null);
            if given.is_null() {
                *given = shots.clone();
            }
        }
    }
    out
}

/// The tasks in words: all of a family by name, files as [`taskvec_model::spec::DataFile`].
pub(crate) fn natural_data(json: &Json) -> Json {
    let mut out = json.clone();
    let Some(map) = out.as_object_mut() else { return out };
    if let Some(tasks) = map.get_mut("tasks") {
        *tasks = tasks.get("list").cloned().unwrap_or_else(|| json!([]));
    }
    if let Some(file) = map.get_mut("file") {
        *file = data_file(file);
    }
    if let Some(corpus) = map.get_mut("corpus").and_then(Json::as_object_mut)
        && let Some(path) = corpus.remove("path")
    {
        corpus.insert("file".to_owned(), data_file(&path));
    }
    name_all_tasks(map);
    out
}

fn data_file(path: &Json) -> Json {
    json!({ "path": path, "digest": null })
}

fn name_all_tasks(data: &mut Map<String, Json>) {
    let all = data.get("family").and_then(Json::as_str).map_or(&[][..], Family::tasks_of);
    if let Some(tasks) = data.get_mut("tasks").filter(|tasks| tasks.as_array().is_some_and(Vec::is_empty)) {
        *tasks = all.into();
    }
}

/// The deviation of PyTorch's `nn.Linear`.
fn read_in_std(run: &mut Json) {
    let Some(dim) = run.pointer("/data/dim").and_then(Json::as_u64) else { return };
    let own = run.pointer("/data/y_channel").and_then(Json::as_str) == Some("own");
    let channels = (dim + u64::from(own)) as f64;
    if let Some(std @ Json::Null) = run.pointer_mut("/model/init/read_in_std") {
        *std = (1.0 / (3.0 * channels).sqrt()).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_their_shape_and_all_tasks_their_names() {
        let data = json!({ "family": "pos", "corpus": { "format": "brown", "path": "b.zip" }, "tasks": "all" });
        let done = natural_data(&data);
        assert_eq!(done["corpus"], json!({ "format": "brown", "file": { "path": "b.zip", "digest": null } }));
        assert_eq!(done["tasks"].as_array().map(Vec::len), Some(7));
        let data = json!({ "family": "pairs", "file": "rows.csv", "tasks": { "list": ["a", "b"] } });
        let done = natural_data(&data);
        assert_eq!((&done["file"]["path"], &done["tasks"]), (&json!("rows.csv"), &json!(["a", "b"])));
    }

    #[test]
    fn interventions_take_the_shots_of_the_data_unless_they_have_their_own() {
        let shots = json!([1, 4]);
        assert_eq!(analysis(&json!({ "kind": "interventions", "shots": null }), &shots)["shots"], shots);
        assert_eq!(analysis(&json!({ "kind": "interventions", "shots": [4] }), &shots)["shots"], json!([4]));
        assert_eq!(analysis(&json!({ "kind": "icl", "at": "last" }), &shots), json!({ "kind": "icl", "at": "last" }));
    }
}
