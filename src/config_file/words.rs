//! What is said of what a file has wrong: by the schema, in words that name no value, since that may be a secret.

use serde_json::Value;

use super::tree::{Flaw, Kind, Node};

/// serde's message without the value: that may be a secret. One that stands in the file as it is may be named where it is one of
/// a few words.
pub(super) fn without_values(words: &str, is_as_written: bool) -> String {
    if let Some(rest) = words.strip_prefix("invalid type: ").or(words.strip_prefix("invalid value: ")) {
        let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, "something else"));
        let found = found.split(' ').next().unwrap_or_default();
        let found = match found {
            "string" => "a text",
            "integer" | "floating" => "a number",
            "boolean" => "true or false",
            "sequence" => "a list",
            "map" => "a table",
            "unit" | "null" => "nothing",
            other => other,
        };
        let expected = match expected {
            expected if expected.starts_with("struct ") || expected == "a map" => "a table",
            expected if expected.starts_with('u') || expected.starts_with('i') => "a whole number",
            "f64" => "a number",
            "a string" => "a text",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            other => other,
        };
        return format!("must be {expected}, and is {found}");
    }
    match words.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected ")) {
        Some((_, expected)) if !is_as_written => format!("must be {expected}"),
        _ => words.to_owned(),
    }
}

/// serde takes a list for a table, by the order of the fields; a file never means that.
pub(super) fn refuse_lists(
    root: &Value,
    schemas: &[&Value],
    node: &Node,
    path: &mut Vec<String>,
    flaws: &mut Vec<Flaw>,
) {
    match &node.kind {
        Kind::List(_) if !schemas.is_empty() && !schemas.iter().any(|schema| takes_list(schema)) => {
            flaws.push(Flaw { mark: node.mark, key: path.join("."), rule: "must be no list".into() });
        }
        Kind::Table(entries) => {
            for entry in entries {
                path.push(entry.key.clone());
                refuse_lists(root, &below(root, schemas, &entry.key), &entry.node, path, flaws);
                path.pop();
            }
        }
        _ => {}
    }
}

fn takes_list(schema: &Value) -> bool {
    match &schema["type"] {
        Value::String(kind) => kind == "array",
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "array"),
        // A schema without a type refers to one that has it.
        _ => false,
    }
}

pub(super) fn resolve<'s>(root: &'s Value, schema: &'s Value) -> Vec<&'s Value> {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return resolve(root, &root["$defs"][name]);
    }
    let either = ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let mut all: Vec<_> = either.flat_map(|schema| resolve(root, schema)).collect();
    all.push(schema);
    all
}

/// The schemas of what stands under this key.
fn below<'s>(root: &'s Value, schemas: &[&'s Value], key: &str) -> Vec<&'s Value> {
    let next = schemas.iter().flat_map(|schema| {
        [&schema["properties"][key], &schema["additionalProperties"], &schema["items"]]
            .into_iter()
            .filter(|next| next.is_object())
    });
    next.flat_map(|schema| resolve(root, schema)).collect()
}

/// The schemas of what stands at this path.
fn schemas_at<'s>(root: &'s Value, path: &[String]) -> Vec<&'s Value> {
    path.iter().fold(resolve(root, root), |at, key| below(root, &at, key))
}

/// The rule for an unknown key: it names the key most like it of those that may stand there.
pub(super) fn unknown_key(schema: &Value, path: &[String]) -> String {
    let Some((last, before)) = path.split_last() else { return "unknown key".into() };
    let keys = keys_at(schema, before);
    let near = keys.iter().map(|key| (distance(key, last), key)).min();
    match near {
        Some((far, key)) if far <= 1 + last.len() / 4 => format!("unknown key; did you mean `{key}`?"),
        _ if !keys.is_empty() => format!("unknown key; there are {}", keys.join(", ")),
        _ => "unknown key".into(),
    }
}

/// The keys that the table at this path must have, and has not.
pub(super) fn missing_keys(schema: &Value, tree: &Node, path: &[String]) -> Vec<String> {
    let required = schemas_at(schema, path);
    let required =
        required.iter().filter_map(|schema| schema["required"].as_array()).flatten().filter_map(Value::as_str);
    let table = tree.node(path);
    let is_missing = |key: &&str| table.is_none_or(|table| table.get(key).is_none());
    required.filter(is_missing).map(|key| format!("`{key}`")).collect()
}

/// The keys that an object at this path may have.
fn keys_at(root: &Value, path: &[String]) -> Vec<String> {
    let at = schemas_at(root, path);
    let keys =
        at.iter().filter_map(|schema| schema["properties"].as_object()).flat_map(|fields| fields.keys().cloned());
    keys.collect()
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
