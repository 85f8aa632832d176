//! `ashctl eval`: eval cases of an agent, and runs of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::CtlError;
use super::client::{Client, encode};
use super::output::{Output, cell};

/// Poll interval of a running eval.
const LOOK: Duration = Duration::from_millis(500);
/// Maximum characters of a question and of an answer in a table.
const SHOWN: usize = 48;

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Lists the agent's cases, oldest first.
    List {
        agent: String,
        #[arg(long)]
        category: Option<String>,
    },
    /// Adds the cases of a JSON file, {"cases": [{"question": "...", "expectedTopics": ["..."]}]}:
    /// all of them or none.
    Import { agent: String, file: PathBuf },
    /// Prints all cases in the format of the import.
    Export { agent: String },
    /// Asks the agent its active cases, waits until all are complete and prints a table.
    Run {
        agent: String,
        /// Agent version whose prompt to use (default: the active one).
        #[arg(long)]
        version: Option<i64>,
        /// Only cases of this category (repeatable).
        #[arg(long = "category")]
        categories: Vec<String>,
        /// Only cases with this tag (repeatable).
        #[arg(long = "tag")]
        tags: Vec<String>,
        /// Wait until all cases are complete; the default.
        #[arg(long)]
        wait: bool,
        /// Print the id of the run and do not wait.
        #[arg(long, conflicts_with = "wait")]
        detach: bool,
    },
    /// Lists the agent's runs, newest first.
    Runs { agent: String },
    /// Shows the results of one run.
    Show { agent: String, run: String },
    /// Compares two runs, case by case.
    Compare { agent: String, run_a: String, run_b: String },
}

pub async fn run(client: &Client, out: &Output, command: EvalCommand) -> Result<(), CtlError> {
    match command {
        EvalCommand::List { agent, category } => {
            let query = super::sessions::query(&[("category", category)]);
            let list = client.get(&path(&agent, &format!("eval-cases{query}"))).await?;
            let columns = [("id", "id"), ("category", "category"), ("active", "isActive"), ("question", "question")];
            out.rows(&shortened(list, "cases", &["question"], out.json()), "cases", &columns)
        }
        EvalCommand::Import { agent, file } => {
            let answer = client.post(&path(&agent, "eval-cases/import"), &read(&file)?).await?;
            if out.json() {
                return out.value(&answer);
            }
            out.line(&format!("imported {} cases for {agent}", cell(&answer["imported"])))
        }
        EvalCommand::Export { agent } => out.value(&client.get(&path(&agent, "eval-cases/export")).await?),
        EvalCommand::Run { agent, version, categories, tags, wait: _, detach } => {
            let mut body = json!({ "categories": categories, "tags": tags });
            if let Some(version) = version {
                body["versionNumber"] = version.into();
            }
            let begun = client.post(&path(&agent, "eval-runs"), &body).await?;
            let id = cell(&begun["run"]["id"]);
            if detach {
                return if out.json() { out.value(&begun) } else { out.line(&id) };
            }
            wait(client, &agent, &id).await?;
            show(client, out, &agent, &id).await
        }
        EvalCommand::Runs { agent } => {
            let list = client.get(&path(&agent, "eval-runs?limit=1000")).await?;
            if out.json() {
                return out.value(&list);
            }
            let rows: Vec<Value> = list["runs"].as_array().into_iter().flatten().map(summed).collect();
            let columns = [
                ("id", "id"),
                ("version", "versionNumber"),
                ("status", "status"),
                ("cases", "cases"),
                ("topics", "topics"),
                ("safety", "safety"),
                ("passed", "passed"),
                ("created", "createdAt"),
            ];
            out.rows(&json!({ "runs": rows }), "runs", &columns)
        }
        EvalCommand::Show { agent, run } => show(client, out, &agent, &run).await,
        EvalCommand::Compare { agent, run_a, run_b } => compare(client, out, &agent, &run_a, &run_b).await,
    }
}

fn path(agent: &str, rest: &str) -> String {
    format!("/api/agents/{}/{rest}", encode(agent, false))
}

/// The file's `{"cases":[...]}`, or its list of cases.
fn read(file: &std::path::Path) -> Result<Value, CtlError> {
    let wrong = |why: String| CtlError::Usage(format!("{}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
    match json {
        Value::Array(cases) => Ok(json!({ "cases": cases })),
        Value::Object(_) => Ok(json),
        _ => Err(wrong("must hold {\"cases\": [...]} or a list of cases".to_owned())),
    }
}

/// Waits until the run is complete. Writes progress to standard error.
async fn wait(client: &Client, agent: &str, id: &str) -> Result<(), CtlError> {
    let mut said = String::new();
    loop {
        let run = client.get(&path(agent, &format!("eval-runs/{}", encode(id, false)))).await?["run"].take();
        let now = format!("run {id}: {} of {} cases", cell(&run["completedCases"]), cell(&run["totalCases"]));
        if now != said {
            eprintln!("{now}");
            said = now;
        }
        if matches!(run["status"].as_str(), Some("completed" | "failed")) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The table of one run: its cases and a summary.
async fn show(client: &Client, out: &Output, agent: &str, id: &str) -> Result<(), CtlError> {
    let of_run = path(agent, &format!("eval-runs/{}", encode(id, false)));
    let run = client.get(&of_run).await?["run"].take();
    let mut results = client.get(&format!("{of_run}/results")).await?["results"].take();
    if out.json() {
        return out.value(&json!({ "run": run, "results": results }));
    }
    let cases = client.get(&path(agent, "eval-cases")).await?;
    for result in results.as_array_mut().into_iter().flatten() {
        let case = cases["cases"].as_array().into_iter().flatten().find(|case| case["id"] == result["evalCaseId"]);
        result["question"] = case.map_or_else(|| "(deleted)".into(), |case| one_line(&case["question"]));
        result["topics"] = percent(&result["topicScore"]);
        result["safety"] = percent(&result["safetyScore"]);
        let failed = result["error"].is_string();
        result["answer"] = one_line(&result[if failed { "error" } else { "agentResponse" }]);
    }
    let columns = [
        ("question", "question"),
        ("status", "status"),
        ("topics", "topics"),
        ("safety", "safety"),
        ("ms", "latencyMs"),
        ("answer", "answer"),
    ];
    out.rows(&json!({ "results": results }), "results", &columns)?;
    out.line("")?;
    fields(out, &run)
}

fn fields(out: &Output, run: &Value) -> Result<(), CtlError> {
    let sum = summed(run);
    let named = ["id", "status", "versionNumber", "cases", "topics", "safety", "latency", "passed", "error"];
    let titles = ["run", "status", "version", "cases", "topics", "safety", "latency", "passed", "error"];
    let fields: Vec<(&str, String)> = titles.into_iter().zip(named.map(|name| cell(&sum[name]))).collect();
    out.fields(&fields)
}

/// A run with its summary, formatted for a table.
fn summed(run: &Value) -> Value {
    let mut run = run.clone();
    let summary = run["summary"].take();
    run["cases"] = format!("{} of {}", cell(&run["completedCases"]), cell(&run["totalCases"])).into();
    run["topics"] = percent(&summary["avgTopicScore"]);
    run["safety"] = percent(&summary["avgSafetyScore"]);
    run["passed"] = percent(&summary["passRate"]);
    run["latency"] = summary["avgLatencyMs"].as_f64().map_or(Value::Null, |ms| format!("{ms:.0} ms").into());
    run
}

async fn compare(client: &Client, out: &Output, agent: &str, a: &str, b: &str) -> Result<(), CtlError> {
    let query = format!("eval-runs/compare?runA={}&runB={}", encode(a, false), encode(b, false));
    let answer = client.get(&path(agent, &query)).await?;
    if out.json() {
        return out.value(&answer);
    }
    let both = &answer["comparison"];
    let rows: Vec<Value> = both["results"].as_array().into_iter().flatten().map(compared).collect();
    let columns = [
        ("question", "question"),
        ("a", "a"),
        ("topics a", "topicsA"),
        ("safety a", "safetyA"),
        ("b", "b"),
        ("topics b", "topicsB"),
        ("safety b", "safetyB"),
        ("change", "change"),
    ];
    out.rows(&json!({ "results": rows }), "results", &columns)?;
    out.line("")?;
    let (a, b) = (summed(&both["runA"]), summed(&both["runB"]));
    let line = |name: &str| format!("{} -> {}", cell(&a[name]), cell(&b[name]));
    out.fields(&[
        ("version", line("versionNumber")),
        ("topics", line("topics")),
        ("safety", line("safety")),
        ("latency", line("latency")),
        ("passed", line("passed")),
    ])
}

fn compared(row: &Value) -> Value {
    let (a, b) = (&row["resultA"], &row["resultB"]);
    let sum = |result: &Value| Some(result["topicScore"].as_f64()? + result["safetyScore"].as_f64()?);
    let change = match (sum(a), sum(b)) {
        (Some(a), Some(b)) if b > a => "better",
        (Some(a), Some(b)) if b < a => "worse",
        (Some(_), Some(_)) => "same",
        _ => "",
    };
    let question = if row["question"].is_null() { "(deleted)".into() } else { one_line(&row["question"]) };
    json!({
        "question": question, "change": change,
        "a": a["status"], "topicsA": percent(&a["topicScore"]), "safetyA": percent(&a["safetyScore"]),
        "b": b["status"], "topicsB": percent(&b["topicScore"]), "safetyB": percent(&b["safetyScore"]),
    })
}

fn percent(share: &Value) -> Value {
    share.as_f64().map_or(Value::Null, |share| format!("{:.0} %", share * 100.0).into())
}

/// The beginning of a text, on one line.
fn one_line(text: &Value) -> Value {
    let flat = cell(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= SHOWN {
        return flat.into();
    }
    flat.chars().take(SHOWN - 3).chain("...".chars()).collect::<String>().into()
}

/// A list whose long texts are cut for a table; unchanged for programs.
fn shortened(mut list: Value, name: &str, texts: &[&str], whole: bool) -> Value {
    for row in list[name].as_array_mut().into_iter().flatten().filter(|_| !whole) {
        for text in texts {
            row[*text] = one_line(&row[*text]);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent_and_texts_one_line() {
        for (share, shown) in [(json!(0.5), "50 %"), (json!(1), "100 %"), (json!(0.666), "67 %"), (Value::Null, "")] {
            assert_eq!(cell(&percent(&share)), shown, "{share}");
        }
        assert_eq!(one_line(&json!("a\n b\u{1b}[2J")), "a b[2J");
        assert_eq!(one_line(&json!("x".repeat(99))).as_str().map(str::len), Some(SHOWN));
    }

    #[test]
    fn what_became_of_a_case() {
        let result =
            |topic: f64, safety: f64| json!({"status": "completed", "topicScore": topic, "safetyScore": safety});
        for (a, b, change) in [
            (result(0.5, 1.0), result(1.0, 1.0), "better"),
            (result(1.0, 1.0), result(1.0, 0.5), "worse"),
            (result(1.0, 0.5), result(0.5, 1.0), "same"),
            (Value::Null, result(1.0, 1.0), ""),
            (json!({"status": "failed"}), result(1.0, 1.0), ""),
        ] {
            let row = compared(&json!({"question": null, "resultA": a, "resultB": b}));
            assert_eq!((&row["change"], &row["question"]), (&json!(change), &json!("(deleted)")), "{row}");
        }
    }
}
