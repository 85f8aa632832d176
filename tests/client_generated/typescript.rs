//! TypeScript types of an OpenAPI description: an interface per schema, and one with parameters,
//! body and answer of each route.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The file, with names in alphabetical order.
pub fn types(spec: &Value) -> String {
    let mut out =
        "// Generated from /docs/json. Do not edit: ASH_UPDATE_CLIENTS=1 cargo nextest run --test client_generated\n"
            .to_owned();
    for (name, schema) in members(&spec["components"]["schemas"]) {
        out.push('\n');
        comment(&mut out, "", schema["description"].as_str());
        let _ = match schema.get("properties") {
            Some(_) if schema.get("additionalProperties").is_none() => {
                writeln!(out, "export interface {name} {}", object(schema, ""))
            }
            _ => writeln!(out, "export type {name} = {};", of(schema, "")),
        };
    }
    out.push_str("\n/** Every route, by its method and path. An answer that is no JSON (a file, an event stream) is a `Response`. */\n");
    out.push_str("export interface Operations {\n");
    for (path, item) in members(&spec["paths"]) {
        for (method, operation) in members(item) {
            comment(&mut out, "  ", operation["summary"].as_str());
            let _ = writeln!(out, "  \"{} {path}\": {{", method.to_uppercase());
            for place in ["path", "query", "header"] {
                parameters(&mut out, operation, place);
            }
            if let Some(body) = operation["requestBody"].pointer("/content/application~1json/schema") {
                let optional = operation["requestBody"]["required"] != Value::Bool(true);
                let _ = writeln!(out, "    body{}: {};", if optional { "?" } else { "" }, of(body, "    "));
            }
            let _ = writeln!(out, "    answer: {};\n  }};", answer(operation));
        }
    }
    out.push_str("}\n");
    out
}

fn parameters(out: &mut String, operation: &Value, place: &str) {
    let all = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let these: Vec<&Value> = all.iter().filter(|parameter| parameter["in"] == place).collect();
    if these.is_empty() {
        return;
    }
    let required = |parameter: &Value| parameter["required"] == Value::Bool(true);
    let optional = if these.iter().any(|p| required(p)) { "" } else { "?" };
    let _ = writeln!(out, "    {place}{optional}: {{");
    for parameter in these {
        comment(out, "      ", parameter["description"].as_str());
        let optional = if required(parameter) { "" } else { "?" };
        let name = key(parameter["name"].as_str().unwrap_or_default());
        let _ = writeln!(out, "      {name}{optional}: {};", of(&parameter["schema"], "      "));
    }
    out.push_str("    };\n");
}

fn answer(operation: &Value) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for (_, answer) in members(&operation["responses"]).filter(|(code, _)| code.starts_with('2')) {
        let contents: Vec<_> = members(&answer["content"]).collect();
        if contents.is_empty() {
            kinds.push("undefined".to_owned());
        }
        for (kind, content) in contents {
            kinds.push(if kind == "application/json" { of(&content["schema"], "") } else { "Response".to_owned() });
        }
    }
    kinds.sort();
    kinds.dedup();
    // A route that only refuses.
    if kinds.is_empty() { "never".to_owned() } else { kinds.join(" | ") }
}

/// The type of a schema. `indent` is that of its line.
fn of(schema: &Value, indent: &str) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    for (word, sign) in [("oneOf", " | "), ("anyOf", " | "), ("allOf", " & ")] {
        if let Some(parts) = schema[word].as_array() {
            return parts.iter().map(|part| of(part, indent)).collect::<Vec<_>>().join(sign);
        }
    }
    match &schema["type"] {
        Value::String(kind) => simple(kind, schema, indent),
        Value::Array(kinds) => {
            let kinds = kinds.iter().filter_map(Value::as_str);
            kinds.map(|kind| simple(kind, schema, indent)).collect::<Vec<_>>().join(" | ")
        }
        _ => "unknown".to_owned(),
    }
}

fn simple(kind: &str, schema: &Value, indent: &str) -> String {
    match kind {
        "integer" | "number" => "number".to_owned(),
        "array" => format!("Array<{}>", of(&schema["items"], indent)),
        "object" if schema.get("properties").is_some() => object(schema, indent),
        "object" => match schema.get("additionalProperties") {
            Some(value) if value.is_object() => format!("Record<string, {}>", of(value, indent)),
            _ => "Record<string, unknown>".to_owned(),
        },
        other => other.to_owned(),
    }
}

fn object(schema: &Value, indent: &str) -> String {
    let inner = format!("{indent}  ");
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let mut out = "{\n".to_owned();
    for (name, property) in members(&schema["properties"]) {
        comment(&mut out, &inner, property["description"].as_str());
        let optional = if required.iter().any(|known| known == name) { "" } else { "?" };
        let _ = writeln!(out, "{inner}{}{optional}: {};", key(name), of(property, &inner));
    }
    out + indent + "}"
}

fn key(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { name.to_owned() } else { format!("\"{name}\"") }
}

fn comment(out: &mut String, indent: &str, text: Option<&str>) {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").replace("*/", "*\\/");
    let _ = writeln!(out, "{indent}/** {words} */");
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

#[test]
fn each_form_of_a_schema_has_its_type() {
    let spec = serde_json::json!({
        "components": {"schemas": {
            "A": {"type": "object", "description": "An a.", "required": ["id"], "properties": {
                "id": {"type": "string", "description": "Two\n lines */"}, "n": {"type": ["integer", "null"]},
                "b-c": {"type": "array", "items": {"$ref": "#/components/schemas/B"}},
                "map": {"type": "object", "additionalProperties": {"type": "number"}}, "any": {}, "free": {"type": "object"},
                "in": {"type": "object", "required": ["x"], "properties": {"x": {"oneOf": [{"type": "string"}, {"type": "null"}]}}}}},
            "B": {"type": "string", "enum": ["x", "y"]},
            "C": {"allOf": [{"$ref": "#/components/schemas/A"}, {"type": "object", "properties": {"d": {"type": "boolean"}}}]}
        }},
        "paths": {"/a/{id}": {
            "get": {"summary": "Read", "parameters": [
                {"name": "id", "in": "path", "required": true, "schema": {"type": "string"}},
                {"name": "q", "in": "query", "required": false, "schema": {"type": "integer"}}],
                "responses": {"200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}, "x/y": {}}}, "404": {}}},
            "post": {"requestBody": {"required": true, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}},
                "responses": {"204": {}}},
            "put": {"responses": {"403": {}}}
        }}
    });
    let text = types(&spec);
    let expected = r#"
/** An a. */
export interface A {
  any?: unknown;
  "b-c"?: Array<B>;
  free?: Record<string, unknown>;
  /** Two lines *\/ */
  id: string;
  in?: {
    x: string | null;
  };
  map?: Record<string, number>;
  n?: number | null;
}

export type B = "x" | "y";

export type C = A & {
  d?: boolean;
};

/** Every route, by its method and path. An answer that is no JSON (a file, an event stream) is a `Response`. */
export interface Operations {
  /** Read */
  "GET /a/{id}": {
    path: {
      id: string;
    };
    query?: {
      q?: number;
    };
    answer: A | Response;
  };
  "POST /a/{id}": {
    body: A;
    answer: undefined;
  };
  "PUT /a/{id}": {
    answer: never;
  };
}
"#;
    assert_eq!(text.split_once('\n').map(|(_, rest)| rest), Some(expected), "{text}");
}
