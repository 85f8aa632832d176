//! The script language of the offline model: lines of the user's text that begin with `@`. Pure.
//! See `docs/offline-model.md`.

use std::time::Duration;

use serde_json::Value;

/// A directive. A step of the script is a list of them; a tool call ends a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Directive {
    Text(String),
    Think(String),
    Tool {
        name: String,
        input: Value,
    },
    /// The `Write` tool, with an absolute path.
    Write {
        path: String,
        content: String,
    },
    /// Pause before each following delta.
    Delay(Duration),
    /// One pause.
    Hang(Duration),
    Repeat {
        count: u64,
        word: String,
    },
    /// Fails, always or for the first `times` attempts at this step.
    Error {
        status: u16,
        message: String,
        times: Option<u32>,
    },
    /// Closes the connection, with the same count.
    Cut {
        times: Option<u32>,
    },
    /// Repeats the first user text.
    Recall,
    /// Repeats the results of the last tools.
    Result,
    Show(Show),
    Stop(String),
}

/// Parts of the request that `@show` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Model,
    System,
    Tools,
}

/// Directive names, for recognising a script and suggesting the nearest one.
const NAMES: &[&str] = &[
    "also", "cut", "delay", "error", "hang", "recall", "repeat", "result", "show", "stop", "text", "think", "tool",
    "write",
];

/// Maximum bytes of the word of `@repeat`: each is one event.
const MAX_WORD: usize = 4096;
/// Maximum count of `@repeat`.
const MAX_REPEAT: u64 = 1_000_000;
/// Maximum time of `@delay` and `@hang`.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// The steps of the script in the user's text; `None` if it is not a script.
///
/// # Errors
/// Names the line and the mistake.
pub fn parse(said: &str) -> Option<Result<Vec<Vec<Directive>>, String>> {
    let lines = said.lines().map(str::trim).filter_map(|line| line.strip_prefix('@'));
    let lines: Vec<(&str, &str)> =
        lines.map(|line| line.split_once(char::is_whitespace).unwrap_or((line, ""))).collect();
    // `@src/main.rs` names a file for claude; one known word makes the text a script.
    lines.iter().any(|(name, _)| NAMES.contains(name) || nearest(name).is_some()).then(|| steps(&lines))
}

/// A known word that was probably meant.
fn nearest(name: &str) -> Option<&'static str> {
    let word = name.len() >= 3 && name.bytes().all(|b| b.is_ascii_lowercase());
    NAMES.iter().find(|known| word && strsim::damerau_levenshtein(known, name) == 1).copied()
}

fn steps(lines: &[(&str, &str)]) -> Result<Vec<Vec<Directive>>, String> {
    let mut steps = vec![Vec::new()];
    let mut called = false;
    let mut delay = None;
    for (name, rest) in lines {
        let directive = directive(name, rest.trim())
            .map_err(|why| format!("The offline model cannot read the line `@{name} {rest}`: {why}."))?;
        let joins = *name == "also" || matches!(directive, Directive::Stop(_));
        if called && !joins {
            // The current delay continues in the next step.
            steps.push(delay.iter().map(|pause| Directive::Delay(*pause)).collect());
            called = false;
        }
        if let Directive::Delay(pause) = directive {
            delay = Some(pause);
        }
        called |= matches!(directive, Directive::Tool { .. } | Directive::Write { .. });
        steps.last_mut().expect("begins with one").push(directive);
    }
    Ok(steps)
}

fn directive(name: &str, rest: &str) -> Result<Directive, String> {
    let (word, tail) = rest.split_once(char::is_whitespace).map_or((rest, ""), |(word, tail)| (word, tail.trim()));
    Ok(match name {
        "text" => Directive::Text(unescape(rest)),
        "think" => Directive::Think(unescape(rest)),
        "tool" | "also" if word.is_empty() => return Err(format!("write @{name} NAME {{json}}")),
        "tool" | "also" => {
            let input = if tail.is_empty() { "{}" } else { tail };
            let input: Value = serde_json::from_str(input).map_err(|why| format!("the input is not JSON: {why}"))?;
            Directive::Tool { name: word.to_owned(), input }
        }
        "write" if word.is_empty() => return Err("write @write PATH CONTENT".into()),
        "write" => Directive::Write { path: word.to_owned(), content: unescape(tail) },
        "delay" => Directive::Delay(pause(rest)?),
        "hang" => Directive::Hang(pause(rest)?),
        "repeat" => {
            let count = word.parse().ok().filter(|count| *count <= MAX_REPEAT);
            let count = count.ok_or_else(|| format!("write @repeat COUNT WORD, with a count up to {MAX_REPEAT}"))?;
            let said = if tail.is_empty() { "word" } else { tail };
            if said.len() > MAX_WORD {
                return Err(format!("the word of @repeat has {} bytes, at most {MAX_WORD} are repeated", said.len()));
            }
            Directive::Repeat { count, word: unescape(said) }
        }
        "error" => error(word, tail)?,
        "cut" => Directive::Cut { times: if rest.is_empty() { None } else { Some(times(rest)?) } },
        "recall" => Directive::Recall,
        "result" => Directive::Result,
        "show" => Directive::Show(match rest {
            "model" => Show::Model,
            "system" => Show::System,
            "tools" => Show::Tools,
            _ => return Err("write @show model, @show system or @show tools".into()),
        }),
        "stop" if word.is_empty() => return Err("write @stop REASON, such as max_tokens".into()),
        "stop" => Directive::Stop(word.to_owned()),
        _ => {
            let hint = nearest(name).map(|known| format!("; @{known} is near")).unwrap_or_default();
            return Err(format!("there is no such directive{hint}; there are @{}", NAMES.join(" @")));
        }
    })
}

/// Parses `529 overloaded`, `500 x2`, `500 x2 some text`.
fn error(status: &str, tail: &str) -> Result<Directive, String> {
    let status = status.parse().ok().filter(|status| (400..=599).contains(status));
    let status = status.ok_or("write @error STATUS [xTIMES] [MESSAGE], with a status from 400 to 599")?;
    let (word, rest) = tail.split_once(char::is_whitespace).unwrap_or((tail, ""));
    let (times, message) = match times(word) {
        Ok(times) => (Some(times), rest.trim()),
        Err(_) => (None, tail),
    };
    let message = if message.is_empty() { "scripted error" } else { message };
    Ok(Directive::Error { status, message: unescape(message), times })
}

fn times(text: &str) -> Result<u32, String> {
    let count = text.strip_prefix('x').and_then(|count| count.parse().ok());
    count.ok_or_else(|| format!("`{text}` is no count such as x2"))
}

/// Parses `250ms`, `5s`, `2m`.
fn pause(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(format!("`{text}` is no time such as 20ms, 5s or 2m")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no time such as 20ms, 5s or 2m"))?;
    let pause = Duration::from_millis(number.saturating_mul(unit));
    if pause > MAX_PAUSE { Err("the longest time is 60m".into()) } else { Ok(pause) }
}

/// Replaces `\n`, `\t` and `\\`; keeps everything else.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.as_str().chars().next()) {
            ('\\', Some(next @ ('n' | 't' | '\\'))) => {
                chars.next();
                out.push(match next {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(line: &str) -> Directive {
        let mut steps = parse(line).expect("a script").expect("no fault");
        assert_eq!((steps.len(), steps[0].len()), (1, 1), "{line}");
        steps.remove(0).remove(0)
    }

    #[test]
    fn each_directive() {
        let ms = Duration::from_millis;
        let error = |status, message: &str, times| Directive::Error { status, message: message.into(), times };
        let table = [
            ("@text Hello there", Directive::Text("Hello there".into())),
            (r"  @text a\nb\\n\q", Directive::Text("a\nb\\n\\q".into())),
            ("@think hm", Directive::Think("hm".into())),
            (
                r#"@tool Bash {"command":"ls"}"#,
                Directive::Tool { name: "Bash".into(), input: json!({"command": "ls"}) },
            ),
            ("@tool Ls", Directive::Tool { name: "Ls".into(), input: json!({}) }),
            (r"@write a.txt one\ntwo", Directive::Write { path: "a.txt".into(), content: "one\ntwo".into() }),
            ("@write a.txt", Directive::Write { path: "a.txt".into(), content: String::new() }),
            ("@delay 20ms", Directive::Delay(ms(20))),
            ("@hang 5s", Directive::Hang(ms(5000))),
            ("@repeat 200 word", Directive::Repeat { count: 200, word: "word".into() }),
            ("@error 529 overloaded", error(529, "overloaded", None)),
            ("@error 500 x2", error(500, "scripted error", Some(2))),
            ("@error 429 x1 slow down", error(429, "slow down", Some(1))),
            ("@cut", Directive::Cut { times: None }),
            ("@cut x1", Directive::Cut { times: Some(1) }),
            ("@recall", Directive::Recall),
            ("@result", Directive::Result),
            ("@show tools", Directive::Show(Show::Tools)),
            ("@stop max_tokens", Directive::Stop("max_tokens".into())),
        ];
        for (line, expected) in table {
            assert_eq!(one(line), expected, "{line}");
        }
    }

    #[test]
    fn a_tool_call_ends_a_step_and_the_delay_goes_on() {
        let script = "Please:\n@delay 1ms\n@text a\n@tool A\n@also B\n@stop tool_use\n@text b\n@write f x\n@text c";
        let steps = parse(script).unwrap().unwrap();
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [5, 3, 2]);
        assert_eq!(steps[1][0], Directive::Delay(Duration::from_millis(1)));
        assert!(matches!(&steps[0][3], Directive::Tool { name, .. } if name == "B"));
    }

    #[test]
    fn what_is_no_script() {
        for said in ["hello", "mail me@home", "@src/main.rs explain", "@README.md", "", "@ text"] {
            assert_eq!(parse(said), None, "{said}");
        }
    }

    #[test]
    fn faults_are_named() {
        let table = [
            ("@txet hi", "@text is near"),
            ("@text a\n@frobnicate", "no such directive"),
            ("@tool Bash {oops", "not JSON"),
            ("@tool", "@tool NAME"),
            ("@delay fast", "no time"),
            ("@hang 2h", "no time"),
            ("@hang 100m", "60m"),
            ("@repeat many x", "COUNT"),
            ("@repeat 9999999 x", "1000000"),
            ("@error 200", "400 to 599"),
            ("@cut 3", "x2"),
            ("@show secrets", "@show model"),
        ];
        for (said, part) in table {
            let why = parse(said).expect(said).unwrap_err();
            assert!(why.contains(part), "{said}: {why}");
        }
    }
}
