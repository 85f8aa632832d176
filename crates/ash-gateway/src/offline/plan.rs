//! Plans the offline model's answer to a conversation. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::conversation::{ANSWER_TOOL, Conversation};
use super::plain;
use super::script::{self, Directive, Show};

/// One act of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Sent word by word.
    Say(String),
    /// The same word repeatedly.
    Repeat {
        count: u64,
        word: String,
    },
    Think(String),
    Call {
        name: String,
        input: Value,
    },
    Delay(Duration),
    Hang(Duration),
    Fail {
        status: u16,
        message: String,
    },
    Cut,
    Stop(String),
}

/// The acts that answer `conversation`. `attempt` is the number of earlier attempts at this step;
/// it ends errors with a count.
pub fn plan(conversation: &Conversation, attempt: u32) -> Vec<Act> {
    if let Some(schema) = &conversation.schema {
        return vec![Act::Say(Fit::of(&conversation.last).value(schema, 0).to_string())];
    }
    let acts = match script::parse(&conversation.last) {
        None => plain::answer(conversation),
        Some(Err(fault)) => vec![Act::Say(fault)],
        Some(Ok(steps)) => match steps.get(conversation.step) {
            Some(step) => scripted(step, conversation, attempt),
            None => vec![Act::Say(plain::report(conversation))],
        },
    };
    structured(acts, conversation)
}

/// If the client collects the answer with a tool, a last answer without a call becomes that call.
/// The call's result is followed by a plain end.
fn structured(acts: Vec<Act>, conversation: &Conversation) -> Vec<Act> {
    let Some(schema) = &conversation.answer_tool else { return acts };
    let ends = acts.iter().any(|act| matches!(act, Act::Call { .. } | Act::Fail { .. } | Act::Cut));
    // claude answers its own tool with this text; the structured answer may follow any other
    // result.
    let given = conversation.results.iter().any(|result| result.text.contains("tructured output provided"));
    if ends || given {
        return acts;
    }
    let input = Fit::of(&conversation.last).value(schema, 0);
    acts.into_iter().chain([Act::Call { name: ANSWER_TOOL.into(), input }]).collect()
}

fn scripted(step: &[Directive], conversation: &Conversation, attempt: u32) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut earlier = attempt;
    for directive in step {
        match directive {
            Directive::Text(text) => acts.push(Act::Say(text.clone())),
            Directive::Think(text) => acts.push(Act::Think(text.clone())),
            Directive::Tool { name, input } => acts.push(Act::Call { name: name.clone(), input: input.clone() }),
            Directive::Write { path, content } => {
                acts.push(plain::write(&plain::absolute(path, conversation), content));
            }
            Directive::Delay(pause) => acts.push(Act::Delay(*pause)),
            Directive::Hang(pause) => acts.push(Act::Hang(*pause)),
            Directive::Repeat { count, word } => acts.push(Act::Repeat { count: *count, word: word.clone() }),
            Directive::Recall => acts.push(Act::Say(conversation.first.clone())),
            Directive::Result => acts.push(Act::Say(plain::results(conversation))),
            Directive::Show(Show::Model) => acts.push(Act::Say(conversation.model.clone())),
            Directive::Show(Show::System) => acts.push(Act::Say(conversation.system.clone())),
            Directive::Show(Show::Tools) => acts.push(Act::Say(conversation.tools.join(" "))),
            Directive::Stop(reason) => acts.push(Act::Stop(reason.clone())),
            Directive::Error { status, message, times } => {
                if still(*times, &mut earlier) {
                    acts.push(Act::Fail { status: *status, message: message.clone() });
                    return acts;
                }
            }
            Directive::Cut { times } => {
                if still(*times, &mut earlier) {
                    acts.push(Act::Cut);
                    return acts;
                }
            }
        }
    }
    acts
}

/// Whether a fault with `times` occurrences (always, if none) still applies after `earlier`
/// attempts.
fn still(times: Option<u32>, earlier: &mut u32) -> bool {
    let Some(times) = times else { return true };
    let due = *earlier < times;
    *earlier = earlier.saturating_sub(times);
    due
}

/// Maximum bytes of the value generated for a schema, and of its nesting: lists in lists multiply.
const FIT: usize = 64 << 10;
const FIT_DEPTH: usize = 16;

/// Generates the smallest value that fits a JSON schema; free strings repeat the user's text. A
/// value beyond [`FIT`] ends early.
struct Fit {
    said: String,
    left: usize,
}

impl Fit {
    fn of(said: &str) -> Self {
        let words: Vec<String> = said.split_whitespace().take(6).map(|word| word.chars().take(60).collect()).collect();
        let said: String = words.join(" ").chars().take(60).collect();
        Self { said: if said.is_empty() { "offline".to_owned() } else { said }, left: FIT }
    }

    fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    fn value(&mut self, schema: &Value, depth: usize) -> Value {
        self.spend(1);
        if depth > FIT_DEPTH || self.left == 0 {
            return Value::Null;
        }
        if let Some(first) = schema.get("const").or_else(|| schema.get("enum").and_then(|values| values.get(0))) {
            self.spend(first.to_string().len());
            return first.clone();
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(first) = schema.get(key).and_then(|schemas| schemas.get(0)) {
                return self.value(first, depth + 1);
            }
        }
        let kind = schema.get("type").map(|kind| kind.get(0).unwrap_or(kind)).and_then(Value::as_str);
        let least = |key: &str| schema.get(key).and_then(Value::as_i64).unwrap_or(0);
        match kind {
            Some("string") => {
                self.spend(self.said.len());
                json!(self.said)
            }
            Some("integer" | "number") => json!(least("minimum")),
            Some("boolean") => json!(false),
            Some("null") => Value::Null,
            Some("array") => {
                let text = json!({"type": "string"});
                let item = schema.get("items").unwrap_or(&text);
                let count = usize::try_from(least("minItems").clamp(0, 16)).unwrap_or(0);
                Value::Array((0..count).map_while(|_| (self.left > 0).then(|| self.value(item, depth + 1))).collect())
            }
            _ => {
                let properties = schema.get("properties").and_then(Value::as_object);
                let fitted = properties.into_iter().flatten().map(|(key, schema)| {
                    self.spend(key.len());
                    (key.clone(), self.value(schema, depth + 1))
                });
                Value::Object(fitted.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conversation::ToolResult;
    use super::*;

    fn conversation(said: &str, step: usize) -> Conversation {
        Conversation {
            model: "m".into(),
            first: "first words".into(),
            last: said.into(),
            step,
            system: "be brief".into(),
            tools: ["Bash", "Read", "Write"].map(String::from).to_vec(),
            cwd: Some("/workspace".into()),
            results: if step == 0 { vec![] } else { vec![ToolResult { text: "out".into(), is_error: false }] },
            max_tokens: 1000,
            ..Conversation::default()
        }
    }

    fn say(text: &str) -> Act {
        Act::Say(text.into())
    }

    #[test]
    fn steps_of_a_script() {
        let script = "@text one\n@tool Bash {\"command\":\"ls\"}\n@result\n@write f.txt hi\n@recall";
        let at = |step| plan(&conversation(script, step), 0);
        assert_eq!(at(0), [say("one"), Act::Call { name: "Bash".into(), input: json!({"command": "ls"}) }]);
        let write = json!({"file_path": "/workspace/f.txt", "content": "hi"});
        assert_eq!(at(1), [say("out"), Act::Call { name: "Write".into(), input: write }]);
        assert_eq!(at(2), [say("first words")]);
        assert_eq!(at(3), [say("Done.")], "a finished script");
    }

    #[test]
    fn shows() {
        for (line, text) in [("@show model", "m"), ("@show system", "be brief"), ("@show tools", "Bash Read Write")] {
            assert_eq!(plan(&conversation(line, 0), 0), [say(text)]);
        }
    }

    #[test]
    fn faults_go_away_in_order() {
        let script = "@error 500 x2 bad\n@text a\n@cut x1\n@text b";
        let at = |attempt| plan(&conversation(script, 0), attempt);
        let fail = Act::Fail { status: 500, message: "bad".into() };
        assert_eq!(at(0), std::slice::from_ref(&fail));
        assert_eq!(at(1), [fail]);
        assert_eq!(at(2), [say("a"), Act::Cut]);
        assert_eq!(at(3), [say("a"), say("b")]);
        let always = plan(&conversation("@error 529 overloaded\n@text a", 0), 99);
        assert_eq!(always, [Act::Fail { status: 529, message: "overloaded".into() }]);
    }

    #[test]
    fn structured_answers_fit_their_schema() {
        let schema = json!({"type": "object", "properties": {"title": {"type": "string"}, "n": {"type": "integer", "minimum": 3},
            "kind": {"enum": ["a", "b"]}, "ok": {"type": ["boolean", "null"]}, "list": {"type": "array", "minItems": 1,
            "items": {"type": "number"}}}});
        let fitted = json!({"title": "what is this", "n": 3, "kind": "a", "ok": false, "list": [0]});
        let mut asked = conversation("what is this", 0);
        asked.schema = Some(schema.clone());
        assert_eq!(plan(&asked, 0), [say(&fitted.to_string())]);
        asked.schema = None;
        asked.answer_tool = Some(schema);
        let acts = plan(&asked, 0);
        assert_eq!(acts.last(), Some(&Act::Call { name: ANSWER_TOOL.into(), input: fitted }));
        asked.step = 1;
        asked.results = vec![ToolResult { text: "Structured output provided successfully".into(), is_error: false }];
        assert!(matches!(plan(&asked, 0)[..], [Act::Say(_)]));
    }

    #[test]
    fn a_faulty_script_says_so() {
        let acts = plan(&conversation("@txet hi", 0), 0);
        assert!(matches!(&acts[..], [Act::Say(text)] if text.contains("@text is near")));
    }
}
