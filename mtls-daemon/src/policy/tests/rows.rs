//! Tables of inputs and expected answers: the project's own, always, and those of the directory
//! that `MTLS_CONFORMANCE` names, which come from other projects' tests.

use std::path::PathBuf;

use serde_json::Value;

const OWN: &str = include_str!("rows.json");

/// Every table called `name`, each with at least one row. Panics where one cannot be read.
pub(crate) fn tables(name: &str) -> Vec<Value> {
    let own: Value = serde_json::from_str(OWN).expect("the project's own rows are JSON");
    let mut tables = vec![own[name].clone()];
    match std::env::var_os("MTLS_CONFORMANCE") {
        Some(dir) => {
            let path = PathBuf::from(dir).join(format!("{name}.json"));
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            tables.push(serde_json::from_str(&text).expect("a table is JSON"));
        }
        None => eprintln!("{name}: MTLS_CONFORMANCE is not set, only the project's own rows run"),
    }
    for table in &tables {
        let count = rows(table).len();
        assert!(count > 0, "{name} has no rows");
        eprintln!("{name}: {count} rows");
    }
    tables
}

pub(crate) fn rows(table: &Value) -> &Vec<Value> {
    table["cases"].as_array().unwrap_or_else(|| panic!("no cases in {table}"))
}

pub(crate) fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// JSON is YAML: objects go through the same reader as files.
pub(crate) fn yaml(objects: &Value) -> String {
    let mut yaml = String::new();
    for object in objects.as_array().expect("a list of objects") {
        let mut object = object.clone();
        // Some rows carry names with spaces, which no API server accepts.
        let name = text(&object["metadata"], "name").replace(' ', "-");
        object["metadata"]["name"] = name.into();
        yaml += &format!("---\n{object}\n");
    }
    yaml
}
