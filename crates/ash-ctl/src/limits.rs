//! `ashctl limits`: limits of sessions, on every level.

use hyper::Method;
use serde_json::{Map, Value, json};

use super::CtlError;
use super::cli::{Level, LimitsCommand};
use super::client::{Client, encode};
use super::output::{Output, cell};
use ash_model::Limit;

/// A tenant's storage limit, by its name in the API.
const STORAGE: &str = "storageBytes";

pub async fn run(client: &Client, out: &Output, command: LimitsCommand) -> Result<(), CtlError> {
    let answer = match command {
        LimitsCommand::Show { level } => client.get(&path(&level)).await?,
        LimitsCommand::Set { level, limits } => {
            let body: Map<String, Value> = limits.into_iter().map(|(limit, value)| (limit, json!(value))).collect();
            client.json(Method::PATCH, &path(&level), Some(&Value::Object(body))).await?
        }
    };
    if out.json() {
        return out.value(&answer);
    }
    let all = &answer["limits"];
    let mut rows: Vec<Value> = Limit::ALL.into_iter().map(|limit| row(limit, &all[limit.as_str()])).collect();
    let mut columns = vec![
        ("limit", "limit"),
        ("value", "value"),
        ("decided by", "by"),
        ("set here", "set"),
        ("enforced", "enforced"),
    ];
    if all[STORAGE].is_object() {
        rows.extend(of_tenant(all));
        columns.push(("used", "used"));
    }
    out.rows(&json!({ "limits": rows }), "limits", &columns)?;
    for refused in answer["notFollowed"].as_array().into_iter().flatten() {
        eprintln!("session {} keeps its limits: {}", cell(&refused["sessionId"]), cell(&refused["reason"]));
    }
    Ok(())
}

fn path(level: &Level) -> String {
    match (&level.session, &level.agent, &level.tenant) {
        (Some(id), _, _) => format!("/api/sessions/{}/limits", encode(id, false)),
        (_, Some(name), _) => format!("/api/agents/{}/limits", encode(name, false)),
        (_, _, Some(id)) => format!("/api/tenants/{}/limits", encode(id, false)),
        _ => "/api/tenant/limits".to_owned(),
    }
}

fn row(limit: Limit, state: &Value) -> Value {
    let number = |value: &Value| value.as_u64().map(|value| shown(limit, value));
    json!({
        "limit": short(limit),
        "value": number(&state["value"]).unwrap_or_else(|| "none".to_owned()),
        "by": state["decidedBy"],
        "set": number(&state["set"]),
        "enforced": if state["enforced"] == false { "no: this host lacks the cgroup controller" } else { "yes" },
    })
}

/// The limits of a tenant as a whole, with its usage.
fn of_tenant(all: &Value) -> [Value; 2] {
    let (storage, sandboxes) = (&all[STORAGE], &all["sandboxes"]);
    let bytes = |value: &Value| value.as_u64().map(shown_bytes);
    let mib = |value: &Value| value.as_u64().unwrap_or(0).div_ceil(1 << 20);
    let split = &storage["split"];
    let used = format!(
        "{} MiB (files {} MiB, database {} MiB)",
        mib(&storage["used"]),
        mib(&split["files"]),
        mib(&split["database"])
    );
    [
        json!({ "limit": "storage", "value": bytes(&storage["value"]), "by": storage["decidedBy"], "set": bytes(&storage["set"]),
            "enforced": "yes", "used": used }),
        json!({ "limit": "sandboxes", "value": sandboxes["value"].as_u64().map_or_else(|| "none".to_owned(), |n| n.to_string()),
            "by": sandboxes["decidedBy"], "set": null, "enforced": "yes", "used": sandboxes["used"] }),
    ]
}

fn short(limit: Limit) -> &'static str {
    match limit {
        Limit::MemoryBytes => "memory",
        Limit::SwapBytes => "swap",
        Limit::CpuMillis => "cpu",
        Limit::CpuWeight => "weight",
        Limit::Pids => "pids",
        Limit::DiskBytes => "disk",
        Limit::DiskFiles => "files",
        Limit::TurnMs => "turn",
        Limit::IoReadBps => "io-read",
        Limit::IoWriteBps => "io-write",
        Limit::IoReadIops => "io-read-ops",
        Limit::IoWriteIops => "io-write-ops",
    }
}

fn largest(value: u64, units: &[(u64, &str)]) -> String {
    let unit = units.iter().find(|(size, _)| value >= *size && value.is_multiple_of(*size));
    unit.map_or_else(|| value.to_string(), |(size, name)| format!("{}{name}", value / size))
}

fn shown_bytes(value: u64) -> String {
    largest(value, &[(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")])
}

/// A number in its largest whole unit, else as it is.
fn shown(limit: Limit, value: u64) -> String {
    let largest = |units| largest(value, units);
    let bytes = || shown_bytes(value);
    match limit {
        Limit::MemoryBytes | Limit::SwapBytes | Limit::DiskBytes => bytes(),
        Limit::IoReadBps | Limit::IoWriteBps => format!("{}/s", bytes()),
        Limit::IoReadIops | Limit::IoWriteIops => format!("{value}/s"),
        Limit::TurnMs => largest(&[(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")]),
        Limit::CpuMillis => format!("{} cores", value as f64 / 1000.0),
        Limit::CpuWeight | Limit::Pids | Limit::DiskFiles => value.to_string(),
    }
}

/// As [`parse`], and `storage=20GiB`, which only tenants have; the name is that of the API.
///
/// # Errors
/// The text says what is expected.
pub fn parse_named(text: &str) -> Result<(String, Option<u64>), String> {
    let value = text.strip_prefix("storage=").or_else(|| text.strip_prefix("storageBytes="));
    match value {
        Some("none") => Ok((STORAGE.to_owned(), None)),
        Some(value) => {
            let bytes = scaled(value, &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]);
            let bytes =
                bytes.ok_or_else(|| format!("storage={value}: expected 20GiB, or bytes, or none to unset it"))?;
            Ok((STORAGE.to_owned(), Some(bytes)))
        }
        None => parse(text).map(|(limit, value)| (limit.to_string(), value)),
    }
}

/// Parses `memory=2GiB`, `cpu=1.5`, `turn=30m`, `pids=none`.
///
/// # Errors
/// The text says what is expected.
pub fn parse(text: &str) -> Result<(Limit, Option<u64>), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("\"{text}\" is not NAME=VALUE"))?;
    let known = Limit::ALL.into_iter().find(|limit| short(*limit) == name || limit.as_str() == name);
    let limit = known.ok_or_else(|| {
        let names: Vec<&str> = Limit::ALL.into_iter().map(short).collect();
        format!("unknown limit \"{name}\"; expected one of {}", names.join(", "))
    })?;
    if value == "none" {
        return Ok((limit, None));
    }
    // `show` prints "10MiB/s".
    let value = if limit.may_be_unlimited() { value.strip_suffix("/s").unwrap_or(value) } else { value };
    let number = match limit {
        Limit::MemoryBytes | Limit::SwapBytes | Limit::DiskBytes | Limit::IoReadBps | Limit::IoWriteBps => {
            scaled(value, &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)])
        }
        Limit::TurnMs => scaled(value, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]),
        Limit::CpuMillis => cores(value),
        Limit::CpuWeight | Limit::Pids | Limit::DiskFiles | Limit::IoReadIops | Limit::IoWriteIops => {
            value.parse().ok()
        }
    };
    let example = match limit {
        Limit::MemoryBytes | Limit::SwapBytes | Limit::DiskBytes => "2GiB, 512MiB, or bytes",
        Limit::TurnMs => "30m, 90s, or milliseconds",
        Limit::CpuMillis => "cores, such as 1.5",
        Limit::IoReadBps | Limit::IoWriteBps => "50MiB, or bytes per second",
        Limit::CpuWeight | Limit::Pids | Limit::DiskFiles | Limit::IoReadIops | Limit::IoWriteIops => "a whole number",
    };
    let number = number.ok_or_else(|| format!("{name}={value}: expected {example}, or none to unset it"))?;
    Ok((limit, Some(number)))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let size = if unit.is_empty() { 1 } else { units.iter().find(|(name, _)| *name == unit)?.1 };
    number.parse::<u64>().ok()?.checked_mul(size)
}

/// Cores with at most three decimals, as thousandths.
fn cores(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        for (text, want) in [
            ("memory=2GiB", (Limit::MemoryBytes, Some(2 << 30))),
            ("memoryBytes=4096", (Limit::MemoryBytes, Some(4096))),
            ("cpu=1.5", (Limit::CpuMillis, Some(1500))),
            ("cpu=2", (Limit::CpuMillis, Some(2000))),
            ("cpu=0.05", (Limit::CpuMillis, Some(50))),
            ("turn=30m", (Limit::TurnMs, Some(1_800_000))),
            ("turn=500ms", (Limit::TurnMs, Some(500))),
            ("pids=64", (Limit::Pids, Some(64))),
            ("files=none", (Limit::DiskFiles, None)),
            ("io-write=50MiB/s", (Limit::IoWriteBps, Some(50 << 20))),
            ("io-read-ops=100", (Limit::IoReadIops, Some(100))),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in
            ["memory", "mem=1", "memory=2GB", "memory=", "cpu=1.2345", "cpu=x", "pids=1.5", "turn=5y", "disk=-1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("memory=99999999999999999999TiB").is_err());
        assert_eq!(parse_named("storage=20GiB"), Ok(("storageBytes".to_owned(), Some(20 << 30))));
        assert_eq!(parse_named("storage=none"), Ok(("storageBytes".to_owned(), None)));
        assert_eq!(parse_named("pids=64"), Ok(("pids".to_owned(), Some(64))));
        assert!(parse_named("storage=x").unwrap_err().contains("20GiB"));
        assert!(parse("speed=1").unwrap_err().contains("memory, swap, cpu"));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for limit in Limit::ALL {
            for value in [limit.least(), 1 << 30, 3_600_000, 1234] {
                let text = shown(limit, value);
                let text = text.strip_suffix(" cores").unwrap_or(&text);
                assert_eq!(parse(&format!("{}={text}", short(limit))), Ok((limit, Some(value))), "{limit} {text}");
            }
        }
    }
}
