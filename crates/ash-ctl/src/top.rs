//! `ashctl top`: live usage per session. Does not thaw sessions.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::CtlError;
use super::client::{Client, encode};
use super::output::{Output, cell};

/// Concurrent requests.
const AT_ONCE: usize = 8;
/// Sampling interval of the CPU share, for a single table.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one table and exit (the default if standard output is not a terminal).
    #[arg(long)]
    pub once: bool,
    /// Seconds between updates.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub every: f64,
    /// Number of rows; sessions with the highest usage first.
    #[arg(long, default_value_t = 40)]
    pub rows: usize,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.2..=3600.0).contains(s)).ok_or_else(|| "expected 0.2 to 3600 seconds".to_owned())
}

/// One sample of a session.
#[derive(Clone, Debug)]
struct Look {
    session: Value,
    stats: Value,
    usage: Value,
    at: Instant,
}

pub async fn run(client: &Client, out: &Output, args: &TopArgs) -> Result<(), CtlError> {
    let live = std::io::stdout().is_terminal() && !args.once && !out.json();
    let mut before = look(client, args.rows).await?;
    let mut pause = GLANCE;
    loop {
        tokio::time::sleep(pause).await;
        let now = look(client, args.rows).await?;
        let rows = rows(&before, &now, args.rows);
        if out.json() {
            return out.value(&json!({ "sessions": rows }));
        }
        let head = head(&client.get("/health").await?);
        if live {
            // Clear the screen.
            out.raw(b"\x1b[H\x1b[2J")?;
        }
        out.line(&head)?;
        table(out, &rows)?;
        if !live {
            return Ok(());
        }
        before = now;
        pause = Duration::from_secs_f64(args.every);
    }
}

/// Samples every session that has, or may have, processes.
async fn look(client: &Client, rows: usize) -> Result<HashMap<String, Look>, CtlError> {
    let mut sessions = Vec::new();
    // Active ones first: there may be far more paused sessions than rows.
    for status in ["active", "starting", "paused"] {
        let left = rows.saturating_sub(sessions.len());
        if left > 0 {
            let list = client.get(&format!("/api/sessions?status={status}&limit={left}")).await?;
            sessions.extend(list["sessions"].as_array().cloned().unwrap_or_default());
        }
    }
    let each = sessions.into_iter().map(|session| async move {
        let id = cell(&session["id"]);
        let name = encode(&id, false);
        let stats = client.get(&format!("/api/sessions/{name}/stats")).await;
        let usage = client.get(&format!("/api/usage/stats?sessionId={name}")).await;
        match (stats, usage) {
            (Ok(stats), Ok(usage)) => Ok(Some((id, Look { session, stats, usage, at: Instant::now() }))),
            // Removed meanwhile.
            (Err(CtlError::Refused { status: 404, .. }), _) => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    });
    let looks: Vec<Result<Option<(String, Look)>, CtlError>> =
        futures_util::stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    Ok(looks.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// One row per session, as numbers: highest CPU use first, then most memory.
fn rows(before: &HashMap<String, Look>, now: &HashMap<String, Look>, most: usize) -> Vec<Value> {
    let mut rows: Vec<Value> = now
        .iter()
        .map(|(id, look)| {
            let stats = &look.stats["stats"];
            let used = |look: &Look| look.stats["stats"]["cpu"]["usageUs"].as_u64();
            let cpu = before.get(id).and_then(|old| {
                let spent = used(look)?.saturating_sub(used(old)?) as f64;
                let passed = look.at.duration_since(old.at).as_micros().max(1) as f64;
                Some((spent / passed * 1000.0).round() / 10.0)
            });
            let pressure = |of: &str| stats["pressure"][of]["some10"].clone();
            json!({
                "id": id,
                "agent": look.session["agentName"],
                "status": look.session["status"],
                "frozen": stats["frozen"],
                "memoryBytes": stats["memory"]["currentBytes"],
                "memoryLimitBytes": stats["limits"]["memoryBytes"],
                "cpuPercent": cpu,
                "cpuLimitMillis": stats["limits"]["cpuMillis"],
                "memoryPressure": pressure("memory"),
                "cpuPressure": pressure("cpu"),
                "ioPressure": pressure("io"),
                "pids": stats["pids"]["current"],
                "diskBytes": stats["disk"]["bytes"],
                "turn": stats["turn"],
                "inputTokens": look.usage["stats"]["totalInputTokens"],
                "outputTokens": look.usage["stats"]["totalOutputTokens"],
            })
        })
        .collect();
    let weight = |row: &Value| (row["cpuPercent"].as_f64().unwrap_or(0.0), row["memoryBytes"].as_u64().unwrap_or(0));
    rows.sort_by(|a, b| {
        weight(b)
            .partial_cmp(&weight(a))
            .unwrap_or(std::cmp::Ordering::Equal)
            .then_with(|| cell(&a["id"]).cmp(&cell(&b["id"])))
    });
    rows.truncate(most);
    rows
}

fn head(health: &Value) -> String {
    let pool = &health["pool"];
    format!(
        "ashd {}, up {}: {} sessions active; sandboxes: {} of {} live, {} running, {} waiting, {} warm",
        cell(&health["version"]),
        span(health["uptime"].as_u64().unwrap_or(0)),
        cell(&health["activeSessions"]),
        cell(&health["activeSandboxes"]),
        cell(&pool["maxCapacity"]),
        cell(&pool["running"]),
        cell(&pool["waiting"]),
        cell(&pool["warm"]),
    )
}

fn table(out: &Output, rows: &[Value]) -> Result<(), CtlError> {
    let texts: Vec<Value> = rows.iter().map(texts).collect();
    let columns = ["session", "agent", "state", "memory", "cpu", "pressure", "pids", "disk", "turn", "tokens"];
    out.rows(&json!({ "sessions": texts }), "sessions", &columns.map(|name| (name, name)))
}

/// A row formatted for people.
fn texts(row: &Value) -> Value {
    let bytes = |value: &Value| value.as_u64().map(size);
    let of = |used: Option<String>, limit: Option<String>| match (used, limit) {
        (Some(used), Some(limit)) => format!("{used}/{limit}"),
        (Some(used), None) => used,
        _ => "-".to_owned(),
    };
    let cpu = row["cpuPercent"].as_f64().map(|percent| format!("{percent:.1}%"));
    let pressure = ["memoryPressure", "cpuPressure", "ioPressure"].map(|of| row[of].as_f64());
    let pressure = match pressure {
        [None, None, None] => "-".to_owned(),
        some => some.map(|value| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))).join("/"),
    };
    let state = if row["status"] == "active" && row["frozen"] == true {
        "active (frozen)".to_owned()
    } else {
        cell(&row["status"])
    };
    let turn = row["turn"]["runningMs"]
        .as_u64()
        .map_or_else(|| "-".to_owned(), |ms| format!("{} ({})", cell(&row["turn"]["number"]), span(ms / 1000)));
    let tokens = [&row["inputTokens"], &row["outputTokens"]].map(|n| count(n.as_u64().unwrap_or(0)));
    json!({
        "session": row["id"],
        "agent": row["agent"],
        "state": state,
        "memory": of(bytes(&row["memoryBytes"]), bytes(&row["memoryLimitBytes"])),
        "cpu": of(cpu, row["cpuLimitMillis"].as_u64().map(|millis| format!("{}%", millis / 10))),
        "pressure": pressure,
        "pids": row["pids"],
        "disk": bytes(&row["diskBytes"]),
        "turn": turn,
        "tokens": format!("{} in, {} out", tokens[0], tokens[1]),
    })
}

fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes / unit >= 10 => format!("{}{name}", bytes / unit),
        Some((unit, name)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => bytes.to_string(),
    }
}

fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{}k", n / 1000),
        _ => format!("{}M", n / 1_000_000),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, used: u64, at: Instant) -> (String, Look) {
        let stats = json!({ "stats": {
            "live": true, "frozen": false, "memory": { "currentBytes": 300 << 20 }, "cpu": { "usageUs": used },
            "pressure": { "memory": null, "cpu": { "some10": 12.4 }, "io": { "some10": 0.0 } }, "pids": { "current": 9 },
            "disk": { "bytes": 2048 }, "limits": { "memoryBytes": 2_u64 << 30, "cpuMillis": 1000 },
            "turn": { "number": 3, "runningMs": 61_000 },
        }});
        let usage = json!({ "stats": { "totalInputTokens": 12_345, "totalOutputTokens": 99 } });
        (id.to_owned(), Look { session: json!({ "agentName": "a", "status": "active" }), stats, usage, at })
    }

    #[test]
    fn the_busiest_comes_first_and_reads_well() {
        let (then, now) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let before = HashMap::from([seen("x", 0, then), seen("y", 1_000_000, then)]);
        let after = HashMap::from([seen("x", 10_000, now), seen("y", 1_500_000, now), seen("z", 5, now)]);
        let rows = rows(&before, &after, 9);
        let order: Vec<String> = rows.iter().map(|row| cell(&row["id"])).collect();
        assert_eq!(order, ["y", "x", "z"]);
        let text = texts(&rows[0]);
        assert_eq!(text["cpu"], "50.0%/100%");
        assert_eq!(text["memory"], "300M/2.0G");
        assert_eq!(
            (&text["pressure"], &text["turn"], &text["disk"]),
            (&json!("-/12/0"), &json!("3 (61s)"), &json!("2.0K"))
        );
        assert_eq!(text["tokens"], "12k in, 99 out");
        // A session without an earlier sample has no share yet.
        assert_eq!(texts(&rows[2])["cpu"], "-");
    }

    #[test]
    fn seconds_have_bounds() {
        assert!(seconds("2").is_ok() && seconds("0.1").is_err() && seconds("x").is_err() && seconds("NaN").is_err());
    }
}
