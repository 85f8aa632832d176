//! The data of timeline events.

use serde_json::{Value, json};

/// Data of a `lifecycle` event. `more` is an object of further fields, or null.
pub fn lifecycle(action: &str, more: Value) -> String {
    let mut data = json!({ "action": action });
    if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
        data.extend(more);
    }
    data.to_string()
}
