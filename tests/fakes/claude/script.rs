//! The script of a turn: lines of the message that start with `@`. Commands that the gateway's
//! offline model also has mean the same there, so a test can use either.
//!
//! | line | effect |
//! |---|---|
//! | `@text WORDS` | prints the words |
//! | `@repeat N WORD` | prints the word N times, one delta each |
//! | `@delay 20ms` | waits this long before each following delta |
//! | `@think WORDS` | thinks |
//! | `@tool Bash {"command":"..."}` | runs a command with `/bin/bash` |
//! | `@write PATH CONTENT` | writes a file of the workspace |
//! | `@recall` | prints the first text of the conversation |
//! | `@env` | prints its whole environment |
//! | `@wait 5s` | waits, and can be interrupted |
//! | `@busy 5s` | uses a whole core |
//! | `@alloc BYTES` | holds this much memory until the process ends |
//! | `@fork N` | starts N sleeping processes |
//! | `@exit N`, `@kill` | ends during the turn with a status, or by SIGKILL |
//! | `@raw LINE` | writes a line to stdout unchanged |
//! | `@half` | writes half a line and ends |
//! | `@huge BYTES` | one text of this many bytes |
//! | `@fill BYTES HEAD~UNIT~TAIL` | one line of about this many bytes: the head, the unit repeated, the tail |
//! | `@flood N LINES` | writes lines to stdout unchanged, N times; `~` ends a line |
//! | `@truncate` | empties the stdout file |
//! | `@fail WORDS` | ends the turn with an error result |
//! | `@reports` (first line) | reports on the message as the real one does (`command_lifecycle`) |
//! | `@foreign WORDS` | reports, and prints the words in a turn of its own before it starts the message |
//! | `@ignored` (first line) | does not start the message, and reports it as completed |

use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Step {
    Text(String),
    Repeat(usize, String),
    Delay(Duration),
    Think(String),
    Bash(String),
    Write(String, String),
    Recall,
    Env,
    Wait(Duration),
    Busy(Duration),
    Alloc(usize),
    Fork(usize),
    Exit(i32),
    Kill,
    Raw(String),
    Half,
    Huge(usize),
    Fill(usize, String),
    Flood(usize, String),
    Truncate,
    Fail(String),
}

/// The steps of a text. A text without a script is echoed.
pub fn parse(text: &str) -> Vec<Step> {
    let steps: Vec<Step> = text.lines().filter_map(|line| step(line.trim_end())).collect();
    if steps.is_empty() { vec![Step::Text(format!("You said: {text}"))] } else { steps }
}

fn step(line: &str) -> Option<Step> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = || rest.trim().parse::<usize>().unwrap_or_default();
    Some(match word {
        "@text" => Step::Text(rest.to_owned()),
        "@repeat" => {
            let (n, what) = rest.split_once(' ').unwrap_or((rest, "word"));
            Step::Repeat(n.parse().unwrap_or(1), what.to_owned())
        }
        "@delay" => Step::Delay(duration(rest)),
        "@think" => Step::Think(rest.to_owned()),
        "@tool" => {
            let json = rest.split_once(' ').map_or("{}", |(_, json)| json);
            let input: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
            Step::Bash(input["command"].as_str().unwrap_or("true").to_owned())
        }
        "@write" => {
            let (path, content) = rest.split_once(' ').unwrap_or((rest, ""));
            Step::Write(path.to_owned(), content.to_owned())
        }
        "@recall" => Step::Recall,
        "@env" => Step::Env,
        "@wait" => Step::Wait(duration(rest)),
        "@busy" => Step::Busy(duration(rest)),
        "@alloc" => Step::Alloc(number()),
        "@fork" => Step::Fork(number()),
        "@exit" => Step::Exit(rest.trim().parse().unwrap_or(1)),
        "@kill" => Step::Kill,
        "@raw" => Step::Raw(rest.to_owned()),
        "@half" => Step::Half,
        "@huge" => Step::Huge(number()),
        "@fill" => {
            let (bytes, parts) = rest.split_once(' ').unwrap_or((rest, ""));
            Step::Fill(bytes.parse().unwrap_or_default(), parts.to_owned())
        }
        "@flood" => {
            let (times, lines) = rest.split_once(' ').unwrap_or((rest, ""));
            Step::Flood(times.parse().unwrap_or_default(), lines.replace('~', "\n"))
        }
        "@truncate" => Step::Truncate,
        "@fail" => Step::Fail(rest.to_owned()),
        _ => return None,
    })
}

fn duration(text: &str) -> Duration {
    let text = text.trim();
    match text.strip_suffix("ms") {
        Some(ms) => Duration::from_millis(ms.parse().unwrap_or(0)),
        None => Duration::from_secs_f64(text.trim_end_matches('s').parse().unwrap_or(0.0)),
    }
}
