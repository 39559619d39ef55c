//! JSON values as the YAML an operator would write.

use serde_json::Value;

/// One document, without the `---`.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                text.push_str(&format!("{indent}{}:", scalar(&Value::String(key.clone()))));
                child(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                if nested(item) {
                    // The item's first key stands beside the dash.
                    let mut inner = String::new();
                    block(item, depth + 1, &mut inner);
                    let at = indent.len();
                    text.push_str(&format!("{indent}- {}", &inner[at + 2..]));
                } else {
                    text.push_str(&format!("{indent}- {}\n", scalar(item)));
                }
            }
        }
        other => text.push_str(&format!("{indent}{}\n", scalar(other))),
    }
}

fn child(value: &Value, depth: usize, text: &mut String) {
    if nested(value) {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        text.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn nested(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A plain word where YAML cannot read it as anything but that string; else quoted as JSON does.
fn scalar(value: &Value) -> String {
    let Value::String(word) = value else { return value.to_string() };
    let plain = word.starts_with(|first: char| first.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&word.to_ascii_lowercase().as_str());
    if plain { word.clone() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_like_an_operators() {
        let value = serde_json::json!({
            "kind": "ServiceEntry",
            "spec": {"addresses": ["10.96.0.1"], "ports": [{"name": "http", "number": 8000}],
                     "portLevelMtls": {"80": {"mode": "STRICT"}}, "empty": {}, "on": "on"},
        });
        let text = "kind: ServiceEntry\nspec:\n  addresses:\n    - \"10.96.0.1\"\n  empty: {}\n  \
                    \"on\": \"on\"\n  portLevelMtls:\n    \"80\":\n      mode: STRICT\n  ports:\n    \
                    - name: http\n      number: 8000\n";
        assert_eq!(document(&value), text);
    }
}
