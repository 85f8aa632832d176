//! The record of usage: what the gateway counted, whichever process asked the model and whatever is
//! killed. The counts are compared with the `usage` of the offline model's answers.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Api, Daemon, Options, leftovers};
use serde_json::{Value, json};

/// A shell function that asks the model over the sandbox's connection: `ask SCRIPT`, with `\n` as
/// in JSON. The whole answer goes to stdout.
const ASK: &str = r#"
start() {
  body='{"model":"m","max_tokens":999,"stream":true,"messages":[{"role":"user","content":"'"$1"'"}]}'
  exec 3<>/dev/tcp/127.0.0.1/${ANTHROPIC_BASE_URL##*:}
  printf 'POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s' \
    "$ANTHROPIC_API_KEY" "${#body}" "$body" >&3
}
ask() { start "$1"; cat <&3; }
"#;

async fn exec(api: &Api, id: &str, command: &str) -> Value {
    let body = json!({"command": format!("{ASK}\n{command}"), "timeoutMs": 120_000});
    api.post(&format!("/api/sessions/{id}/exec"), body).await.expect(200)
}

/// Input and output tokens reported in a possibly incomplete answer.
fn said(answer: &str) -> (u64, u64) {
    let (mut input, mut output) = (0, 0);
    for data in answer.lines().filter_map(|line| line.trim_end().strip_prefix("data: ")) {
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        for usage in [&event["message"]["usage"], &event["usage"]] {
            input = input.max(usage["input_tokens"].as_u64().unwrap_or(0));
            output = output.max(usage["output_tokens"].as_u64().unwrap_or(0));
        }
    }
    (input, output)
}

async fn tokens(api: &Api, filter: &str) -> (u64, u64) {
    let stats = api.get(&format!("/api/usage/stats{filter}")).await.expect(200)["stats"].clone();
    (stats["totalInputTokens"].as_u64().unwrap(), stats["totalOutputTokens"].as_u64().unwrap())
}

#[tokio::test]
async fn a_model_call_of_a_command_is_counted_and_what_is_printed_is_not() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let other = api.session("a").await;
    // claude's own output can be forged by the payload.
    let forged = r#"{"type":"result","subtype":"success","duration_ms":1,"usage":{"input_tokens":777777,"output_tokens":777777},"model_usage_since_last_result":{"m":{"inputTokens":777777,"outputTokens":777777}}}"#;
    api.turn(&id, &format!("@raw {forged}")).await;
    assert_eq!(tokens(&api, "").await, (0, 0), "no model was asked");

    let answer = exec(&api, &id, "ask '@text some words to be counted'").await;
    let answer = answer["stdout"].as_str().unwrap();
    assert!(answer.contains("message_stop"), "{answer}");
    let (input, output) = said(answer);
    assert!(input > 0 && output > 0);
    assert_eq!(tokens(&api, &format!("?sessionId={id}")).await, (input, output));
    assert_eq!(tokens(&api, "?agentName=a").await, (input, output));
    assert_eq!(tokens(&api, &format!("?sessionId={other}")).await, (0, 0), "its neighbour paid nothing");

    // A refused request, a token count and a request without a token do not count.
    exec(&api, &id, "ask '@error 500'; ask '@error 400'; ANTHROPIC_API_KEY=x ask '@text no'").await;
    assert_eq!(tokens(&api, "").await, (input, output));

    let events = api.get(&format!("/api/usage?sessionId={id}")).await.expect(200)["events"].clone();
    let one = events.as_array().unwrap().iter().find(|event| event["eventType"] == "input_tokens").unwrap().clone();
    let mut names: Vec<_> = one.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["agentName", "createdAt", "eventType", "id", "sessionId", "tenantId", "value"]);
    assert_eq!((&one["agentName"], &one["tenantId"], &one["sessionId"]), (&json!("a"), &json!("default"), &json!(id)));
    daemon.stop();
}

#[tokio::test]
async fn the_model_key_is_not_spent_by_a_process_that_was_left_behind() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let (id, other) = (api.session("a").await, api.session("a").await);
    // Waits until the command has ended, then asks 200 times at once.
    let script = r#"
flood() {
  while [ ! -e /workspace/go ]; do sleep 0.05; done
  for n in $(seq 200); do (start '@text x'; read -r line <&3; echo "$line" >> "/workspace/got.$((n % 8))") & done
  wait; echo done > /workspace/over
}
flood >/dev/null 2>&1 & disown"#;
    exec(&api, &id, script).await;
    std::fs::write(daemon.data().join("sessions").join(&id).join("workspace/go"), "go").unwrap();
    let start = Instant::now();
    while api.get(&format!("/api/sessions/{id}/files/over")).await.status != 200 {
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(90)), "the flood does not end");
        // Another session is served meanwhile.
        let answer = exec(&api, &other, "ask '@text hello'").await;
        assert!(answer["stdout"].as_str().unwrap().contains("message_stop"), "{answer}");
    }
    let mut got = String::new();
    for n in 0..8 {
        got += &api.get(&format!("/api/sessions/{id}/files/got.{n}")).await.text;
    }
    let refused = got.lines().filter(|line| line.starts_with("HTTP/1.1 403")).count();
    assert_eq!(refused, 200, "{got}");
    assert_eq!(tokens(&api, &format!("?sessionId={id}")).await, (0, 0));
    let metrics = api.get("/metrics").await.text;
    let counted = metrics.lines().find_map(|line| line.strip_prefix("ash_gateway_refused_total{reason=\"outside\"} "));
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 200, "{metrics}");
    // The same request from a command is served, and counted.
    let answer = exec(&api, &id, "ask '@text hello'").await;
    let used = said(answer["stdout"].as_str().unwrap());
    assert!(used.0 > 0 && used.1 > 0);
    assert_eq!(tokens(&api, &format!("?sessionId={id}")).await, used);
    daemon.stop();
}

fn kill_gateway(daemon: &Daemon) {
    let gateway = leftovers::processes(daemon)
        .into_iter()
        .find(|(pid, _)| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("ash-gateway")));
    let pid = nix::unistd::Pid::from_raw(gateway.expect("a gateway runs").0);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Waits until a file of the workspace contains this word. Read from disk, because ashd may be
/// down.
fn until(daemon: &Daemon, id: &str, file: &str, word: &str) -> String {
    let path = daemon.data().join("sessions").join(id).join("workspace").join(file);
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains(word) {
            return text;
        }
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(60)),
            "{file} never says {word}: {text}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_is_killed_in_mid_answer_each_token_is_counted_once() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let (mut api, mut expected) = (api, (0, 0));
    for round in 0..6 {
        let file = format!("answer.{round}");
        let command = format!("{{ ask '@delay 15ms\\n@repeat 60 word'; echo OVER; }} > /workspace/{file}");
        let asked = {
            let (api, id) = (api.clone(), id.clone());
            tokio::spawn(async move { exec(&api, &id, &command).await })
        };
        until(&daemon, &id, &file, "message_start");
        until(&daemon, &id, &file, "word");
        if round % 3 == 0 {
            kill_gateway(&daemon);
        } else if round % 3 == 1 {
            daemon.kill9();
        } else {
            kill_gateway(&daemon);
            daemon.kill9();
        }
        let answer = until(&daemon, &id, &file, "OVER");
        // The rest of the command's answer may be lost with ashd.
        let _ = asked.await;
        if round % 3 != 0 {
            daemon.restart();
            api = daemon.api();
        }
        let used = said(&answer);
        assert_eq!(answer.contains("message_stop"), round % 3 == 1, "ashd's end does not disturb an answer: {answer}");
        expected = (expected.0 + used.0, expected.1 + used.1);
        // The gateway may be restarting; it has the record afterwards.
        let start = Instant::now();
        while tokens(&api, "").await != expected && start.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(tokens(&api, "").await, expected, "round {round}");
    }
    assert!(expected.0 > 0 && expected.1 > 60);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens(&api, &format!("?sessionId={id}")).await, expected);
    let left = std::fs::read_dir(daemon.dir.join("data-gateway")).unwrap().count();
    assert!(left <= 2, "{left} ledgers are left of gateways that are gone");
    daemon.stop();
}
