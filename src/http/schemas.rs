//! Additions to the OpenAPI description that the body types do not express: required members, the
//! meaning of answers, binary files. Clients are generated from it, so each of these becomes a type
//! or a default in a client.

use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ArrayItems, KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr};

/// Members that a request must have, or that an answer always has although they can be null. A
/// member that has no default and is not an `Option` is required anyway.
const ALWAYS: &[(&str, &[&str])] = &[
    ("AgentVersion", &["systemPrompt", "releaseNotes", "createdBy"]),
    ("CpuUsage", &["usageUs", "periods", "throttledPeriods", "throttledUs"]),
    ("CreateSession", &["agent"]),
    ("Credential", &["lastUsedAt"]),
    ("DeployAgent", &["name"]),
    ("EvalCase", &["expectedTopics", "expectedNotTopics", "referenceAnswer", "category", "tags", "chatHistory"]),
    ("EvalCompared", &["question", "resultA", "resultB"]),
    ("EvalImport", &["cases"]),
    ("EvalMessage", &["role", "content"]),
    (
        "EvalResult",
        &[
            "agentResponse",
            "topicScore",
            "safetyScore",
            "llmJudgeScore",
            "latencyMs",
            "error",
            "humanScore",
            "humanNotes",
            "completedAt",
        ],
    ),
    ("EvalRun", &["versionNumber", "summary", "error", "startedAt", "completedAt"]),
    ("EvalSummary", &["avgTopicScore", "avgSafetyScore", "avgLlmJudgeScore", "avgLatencyMs"]),
    ("ExecCommand", &["command"]),
    ("LimitInForce", &["value"]),
    ("LimitState", &["value", "set", "most"]),
    ("MemoryUsage", &["currentBytes", "peakBytes", "unreclaimableBytes", "swapBytes", "oomKills"]),
    ("NewAgentFiles", &["files"]),
    ("NewAttachment", &["filename", "content"]),
    ("NewCredential", &["type", "key"]),
    ("NewKey", &["label"]),
    ("NewQueueItem", &["agentName", "prompt"]),
    ("NewWorkspace", &["bundle"]),
    ("PidsUsage", &["current", "peak", "refused"]),
    ("Pressures", &["cpu", "memory", "io"]),
    ("QueueItem", &["sessionId", "result", "error", "startedAt", "completedAt"]),
    ("SendMessage", &["content"]),
    ("Session", &["model", "config", "runnerId", "parentSessionId"]),
    ("SessionStats", &["disk", "turn"]),
    ("SetWarm", &["count"]),
    ("UploadFiles", &["files"]),
];

/// Members with a fixed set of words.
const WORDS: &[(&str, &str, &[&str])] = &[
    ("EvalResult", "status", &["pending", "running", "completed", "failed"]),
    ("EvalRun", "status", &["pending", "running", "completed", "failed"]),
    ("Event", "type", &["lifecycle", "text", "tool_start", "tool_result", "reasoning", "error", "turn_complete"]),
    ("Message", "role", &["user", "assistant"]),
    ("QueueItem", "status", &["pending", "processing", "completed", "failed", "cancelled"]),
    (
        "UsageEvent",
        "eventType",
        &[
            "message",
            "input_tokens",
            "output_tokens",
            "cache_creation_tokens",
            "cache_read_tokens",
            "tool_call",
            "compute_seconds",
        ],
    ),
];

/// Applies all additions to schemas and operations.
pub fn refine(api: &mut OpenApi) {
    let Some(components) = &mut api.components else { return };
    for (name, schema) in &mut components.schemas {
        let RefOr::T(schema) = schema else { continue };
        let always = ALWAYS.iter().find(|(of, _)| of == name).map_or(&[][..], |(_, members)| *members);
        each_object(schema, &mut |object| {
            without_nulls(object);
            require(object, always);
            for (_, member, words) in WORDS.iter().filter(|(of, ..)| of == name) {
                if let Some(RefOr::T(Schema::Object(property))) = object.properties.get_mut(*member) {
                    property.enum_values = Some(words.iter().map(|word| (*word).into()).collect());
                }
            }
        });
        if name == "SessionStats"
            && let Schema::AllOf(all) = schema
            && let Some(usage) = all.items.first_mut()
        {
            *usage = use_of_a_sandbox().into();
        }
    }
}

/// Schemas and members that the lists above name and the description lacks, because they were
/// renamed.
pub fn stale(api: &OpenApi) -> Vec<String> {
    let schemas = api.components.as_ref().map(|components| &components.schemas);
    let has = |schema: &str, member: &str| match schemas.and_then(|schemas| schemas.get(schema)) {
        Some(RefOr::T(Schema::Object(object))) => object.properties.contains_key(member),
        Some(RefOr::T(Schema::AllOf(all))) => all.items.iter().any(|part| match part {
            RefOr::T(Schema::Object(object)) => object.properties.contains_key(member),
            _ => false,
        }),
        _ => false,
    };
    let always = ALWAYS.iter().flat_map(|(schema, members)| members.iter().map(move |member| (*schema, *member)));
    let words = WORDS.iter().map(|(schema, member, _)| (*schema, *member));
    let missing = always.chain(words).filter(|(schema, member)| !has(schema, member));
    missing.map(|(schema, member)| format!("{schema}.{member}")).collect()
}

/// Gives each answer of an operation a description, and describes files as bytes.
pub fn refine_answers(operation: &mut Operation) {
    for (code, answer) in &mut operation.responses.responses {
        let RefOr::T(answer) = answer else { continue };
        if answer.description.is_empty() {
            meaning(code).clone_into(&mut answer.description);
        }
        for (kind, content) in &mut answer.content {
            let RefOr::T(content) = content else { continue };
            if kind != "application/json" && content.schema.as_ref().is_some_and(is_bytes) {
                content.schema = Some(binary().into());
            }
        }
    }
}

/// The description of an answer for which the handler has none.
fn meaning(code: &str) -> &'static str {
    match code {
        "200" => "Success",
        "201" => "Created",
        "204" => "Success, without content",
        "206" => "The part of the file that the Range header asks for",
        "400" => "A field or parameter is missing or wrong; the text names it",
        "403" => "The key may not do this",
        "404" => "Not found",
        _ => "See the error",
    }
}

/// Whether a schema is that of `Vec<u8>`: an array of numbers.
fn is_bytes(schema: &RefOr<Schema>) -> bool {
    let RefOr::T(Schema::Array(array)) = schema else { return false };
    let ArrayItems::RefOrSchema(items) = &array.items else { return false };
    matches!(&**items, RefOr::T(Schema::Object(item)) if item.schema_type == Type::Integer.into())
}

/// Members that a session without processes lacks; the type expresses them as one optional value.
fn use_of_a_sandbox() -> Object {
    let parts = [("memory", "MemoryUsage"), ("cpu", "CpuUsage"), ("pids", "PidsUsage"), ("pressure", "Pressures")];
    let object = ObjectBuilder::new().description(Some("Absent without processes."));
    parts.into_iter().fold(object, |object, (name, of)| object.property(name, Ref::from_schema_name(of))).build()
}

fn binary() -> Object {
    ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary))).build()
}

fn require(object: &mut Object, members: &[&str]) {
    for member in members {
        let Some(property) = object.properties.get_mut(*member) else { continue };
        if let RefOr::T(Schema::Object(property)) = property {
            property.default = None;
        }
        if let RefOr::T(Schema::Array(property)) = property {
            property.default = None;
        }
        if !object.required.iter().any(|name| name == member) {
            object.required.push((*member).to_owned());
        }
    }
}

/// Removes null defaults. A generated client would send null, which clears a field that should
/// stay.
fn without_nulls(object: &mut Object) {
    for (_, property) in &mut object.properties {
        let RefOr::T(property) = property else { continue };
        let default = match property {
            Schema::Object(property) => &mut property.default,
            Schema::Array(property) => &mut property.default,
            Schema::OneOf(property) => &mut property.default,
            Schema::AnyOf(property) => &mut property.default,
            _ => continue,
        };
        if default.as_ref().is_some_and(serde_json::Value::is_null) {
            *default = None;
        }
    }
}

fn each_object(schema: &mut Schema, change: &mut impl FnMut(&mut Object)) {
    match schema {
        Schema::Object(object) => change(object),
        Schema::AllOf(all) => {
            for item in &mut all.items {
                if let RefOr::T(item) = item {
                    each_object(item, change);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_from_lists() {
        let api: OpenApi = serde_json::from_value(serde_json::json!({
            "openapi": "3.1.0", "info": {"title": "t", "version": "1"},
            "paths": {"/f": {"get": {"responses": {
                "200": {"content": {"application/gzip": {"schema": {"type": "array", "items": {"type": "integer"}}}}},
                "204": {},
                "400": {"description": "own words", "content": {"application/json": {"schema": {"type": "array", "items": {"type": "integer"}}}}}
            }}}},
            "components": {"schemas": {
                "DeployAgent": {"type": "object", "properties": {
                    "name": {"type": "string", "default": ""}, "path": {"type": ["string", "null"], "default": null}}},
                "Other": {"type": "object", "properties": {"name": {"type": "string", "default": "x"}}}
            }}
        }))
        .unwrap();
        let mut api = api;
        refine(&mut api);
        refine_answers(api.paths.paths.get_mut("/f").and_then(|item| item.get.as_mut()).unwrap());
        let json = serde_json::to_value(&api).unwrap();
        let answers = &json["paths"]["/f"]["get"]["responses"];
        let file = &answers["200"]["content"]["application/gzip"]["schema"];
        assert_eq!(*file, serde_json::json!({"type": "string", "format": "binary"}));
        assert_eq!(
            (&answers["200"]["description"], &answers["204"]["description"]),
            (&"Success".into(), &"Success, without content".into())
        );
        assert_eq!(answers["400"]["description"], "own words");
        assert_eq!(answers["400"]["content"]["application/json"]["schema"]["type"], "array");
        let deploy = &json["components"]["schemas"]["DeployAgent"];
        assert_eq!(deploy["required"], serde_json::json!(["name"]));
        assert_eq!(deploy["properties"]["name"], serde_json::json!({"type": "string"}));
        assert!(deploy["properties"]["path"].get("default").is_none());
        assert_eq!(json["components"]["schemas"]["Other"]["properties"]["name"]["default"], "x");
    }
}
