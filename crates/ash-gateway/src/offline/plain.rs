//! The offline model without a script: it answers a few plain requests with a real tool, everything
//! else with a short text that names the offline model. Pure.

use serde_json::json;

use super::conversation::Conversation;
use super::plan::Act;

/// Maximum characters repeated of the user's text or of a tool's result.
const ECHO: usize = 2000;

/// Answers a text without a script.
pub fn answer(conversation: &Conversation) -> Vec<Act> {
    if conversation.step > 0 {
        return vec![Act::Say(report(conversation))];
    }
    if let Some(call) = wish(conversation) {
        return call;
    }
    let said: String = conversation.last.chars().take(ECHO).collect();
    vec![Act::Say(format!(
        "This is the offline model of ashd: no model key is set, so no real model was asked. You said: \"{said}\". It can \
         create a file, list files, read a file or run a command in backticks, and it follows scripts: a line such as \
         `@text Hello` or `@tool Bash {{\"command\":\"date\"}}` (docs/offline-model.md)."
    ))]
}

/// The text after a tool result, when nothing else is scripted.
pub fn report(conversation: &Conversation) -> String {
    let text = results(conversation);
    if conversation.results.iter().any(|result| result.is_error) {
        return format!("The tool failed: {text}");
    }
    if super::script::parse(&conversation.last).is_some() {
        return "Done.".into();
    }
    if text.trim().is_empty() { "Done. The tool said nothing.".into() } else { format!("Done. The tool said:\n{text}") }
}

pub fn results(conversation: &Conversation) -> String {
    let texts: Vec<&str> = conversation.results.iter().map(|result| result.text.as_str()).collect();
    let text = texts.join("\n");
    match text.char_indices().nth(ECHO) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The path as tools require it.
pub fn absolute(path: &str, conversation: &Conversation) -> String {
    match &conversation.cwd {
        Some(cwd) if !path.starts_with('/') => format!("{}/{path}", cwd.trim_end_matches('/')),
        _ => path.to_owned(),
    }
}

pub fn write(path: &str, content: &str) -> Act {
    Act::Call { name: "Write".into(), input: json!({"file_path": path, "content": content}) }
}

fn bash(command: &str, description: &str) -> Act {
    Act::Call { name: "Bash".into(), input: json!({"command": command, "description": description}) }
}

fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

/// The tool call for a plain request, if it is understood and the tool is offered.
fn wish(conversation: &Conversation) -> Option<Vec<Act>> {
    let said = &conversation.last;
    let lower = said.to_lowercase();
    let has = |words: &[&str]| lower.split(|c: char| !c.is_alphanumeric()).any(|word| words.contains(&word));
    let file = file_name(said);
    if let Some(command) = quoted(said, '`').filter(|_| has(&["run", "execute"]) && conversation.has_tool("Bash")) {
        return Some(vec![say("I run the command."), bash(command, "Run the command that was asked for")]);
    }
    if let (true, Some(file)) = (has(&["create", "write", "make", "save"]), file) {
        let path = absolute(file, conversation);
        let content = content(said, file);
        if conversation.has_tool("Write") {
            return Some(vec![Act::Say(format!("I create {file}.")), write(&path, &content)]);
        }
        if conversation.has_tool("Bash") {
            let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
            let command = format!("printf %s {} > {}", quote(&content), quote(&path));
            return Some(vec![Act::Say(format!("I create {file}.")), bash(&command, "Create the file")]);
        }
    }
    if let (true, Some(file), true) =
        (has(&["read", "show", "print", "cat", "open"]), file, conversation.has_tool("Read"))
    {
        let call = Act::Call { name: "Read".into(), input: json!({"file_path": absolute(file, conversation)}) };
        return Some(vec![Act::Say(format!("I read {file}.")), call]);
    }
    let lists = has(&["files", "ls", "directory", "folder"]) && has(&["what", "which", "list", "show", "ls"]);
    (lists && conversation.has_tool("Bash")).then(|| vec![say("I look."), bash("ls -la", "List the files")])
}

/// The first word that looks like a file name: it has a dot inside, or a path.
fn file_name(said: &str) -> Option<&str> {
    said.split_whitespace()
        .map(|word| word.trim_matches(|c: char| "\"'`,;:()?!".contains(c)).trim_end_matches('.'))
        .find(|word| {
            let name = word.rsplit('/').next().unwrap_or(word);
            let dotted = name.find('.').is_some_and(|at| at + 1 < name.len() && (at > 0 || name.len() > 1));
            dotted && !word.contains("://") && !word.starts_with('-') && !word.contains("..")
        })
}

/// Content for a file: the quoted text, or what follows "with", "containing", "saying".
fn content(said: &str, file: &str) -> String {
    let rest = said.split_once(file).map_or("", |(_, rest)| rest);
    for mark in ['"', '\'', '`'] {
        if let Some(text) = quoted(rest, mark) {
            return text.to_owned();
        }
    }
    let mut words =
        [" containing ", " saying ", " that says ", " with the content ", " with the text ", " with ", ": "].iter();
    words.find_map(|word| rest.split_once(word)).map_or_else(
        || "Hello from the offline model.\n".into(),
        |(_, text)| text.trim().trim_end_matches('.').to_owned(),
    )
}

fn quoted(text: &str, mark: char) -> Option<&str> {
    let (_, rest) = text.split_once(mark)?;
    rest.split_once(mark).map(|(inner, _)| inner).filter(|inner| !inner.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::conversation::ToolResult;
    use super::*;

    fn conversation(said: &str) -> Conversation {
        Conversation {
            last: said.into(),
            tools: ["Bash", "Read", "Write"].map(String::from).to_vec(),
            cwd: Some("/workspace".into()),
            ..Conversation::default()
        }
    }

    fn call(said: &str) -> Option<(String, serde_json::Value)> {
        answer(&conversation(said)).into_iter().find_map(|act| match act {
            Act::Call { name, input } => Some((name, input)),
            _ => None,
        })
    }

    #[test]
    fn plain_requests_use_a_tool() {
        let wrote = |file: &str, content: &str| {
            Some(("Write".to_owned(), json!({"file_path": format!("/workspace/{file}"), "content": content})))
        };
        let default = "Hello from the offline model.\n";
        assert_eq!(call("Create a file hello.txt with \"Hi there\" in it"), wrote("hello.txt", "Hi there"));
        assert_eq!(call("create a file called hello.txt containing Hello World."), wrote("hello.txt", "Hello World"));
        assert_eq!(call("Please write notes/a.md."), wrote("notes/a.md", default));
        assert_eq!(call("Make `x.py` with 'print(1)'"), wrote("x.py", "print(1)"));
        let ran = |command: &'static str| {
            move |(name, input): (String, serde_json::Value)| name == "Bash" && input["command"] == command
        };
        assert!(call("What files are in the workspace?").is_some_and(ran("ls -la")));
        assert!(call("List the files").is_some_and(ran("ls -la")));
        assert!(call("run `git status` now").is_some_and(ran("git status")));
        assert_eq!(call("show me hello.txt"), Some(("Read".into(), json!({"file_path": "/workspace/hello.txt"}))));
        for said in
            ["Hello", "What is 2 + 2?", "Make me laugh", "read https://a.test/x.html?", "create ../../etc/passwd.txt"]
        {
            assert_eq!(call(said), None, "{said}");
        }
    }

    #[test]
    fn without_its_tool_a_request_is_only_answered() {
        let mut asked = conversation("Create a file hello.txt");
        asked.tools = vec!["Bash".into()];
        assert!(matches!(&answer(&asked)[1], Act::Call { name, .. } if name == "Bash"));
        asked.tools.clear();
        assert!(
            matches!(&answer(&asked)[..], [Act::Say(text)] if text.contains("offline model") && text.contains("hello.txt"))
        );
    }

    #[test]
    fn what_a_tool_said_is_reported() {
        let mut asked = conversation("What files are in the workspace?");
        asked.step = 1;
        asked.results = vec![ToolResult { text: "a.txt".into(), is_error: false }];
        assert_eq!(report(&asked), "Done. The tool said:\na.txt");
        asked.results[0].is_error = true;
        assert_eq!(report(&asked), "The tool failed: a.txt");
        asked.results[0] = ToolResult { text: "\u{e9}".repeat(5000), is_error: false };
        assert_eq!(results(&asked).chars().count(), ECHO + 3);
    }
}
