//! Environment variables of the reference server that have no effect here.

/// Prefixes of their names, and the replacement.
const FOREIGN: [(&str, &str); 7] = [
    ("ASH_DATABASE_URL", "ashd keeps its data in SQLite below ASH_DATA_DIR"),
    ("ASH_SNAPSHOT_URL", "sessions stay below ASH_DATA_DIR; `ashctl backup` copies them elsewhere"),
    ("ASH_MODE", "ashd always runs its sandboxes itself; remove the variable"),
    (
        "ASH_INTERNAL_SECRET",
        "no other processes connect to ashd; `ashctl keys create --tenant` makes keys for other tenants",
    ),
    ("ASH_RUNNER_", "ashd runs its sandboxes itself; ASH_MAX_SANDBOXES bounds how many"),
    ("ASH_TELEMETRY_", "ashd sends nothing anywhere; GET /metrics and its log have what can be measured"),
    ("OTEL_", "ashd exports no OpenTelemetry data; GET /metrics (Prometheus) and its log have what can be measured"),
];

/// Reports the variables without effect: one line per kind, with their names and the replacement.
pub fn without_effect(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut found: [Vec<String>; FOREIGN.len()] = Default::default();
    for name in names {
        let kind = FOREIGN.iter().position(|(known, _)| match known.ends_with('_') {
            true => name.starts_with(known),
            false => name == *known,
        });
        if let Some(kind) = kind {
            found[kind].push(name);
        }
    }
    let said = found.into_iter().zip(FOREIGN).filter(|(names, _)| !names.is_empty());
    said.map(|(mut names, (_, instead))| {
        names.sort_unstable();
        let verb = if names.len() == 1 { "has" } else { "have" };
        format!("{} {verb} no effect: {instead}", names.join(", "))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_named_once() {
        let names = [
            "ASH_PORT",
            "PATH",
            "OTEL_B",
            "OTEL_A",
            "ASH_MODE",
            "ASH_MODEL",
            "ASH_RUNNER_ID",
            "ASH_DATABASE_URL",
            "ASH_SNAPSHOT_URL",
            "ASH_TELEMETRY_URL",
            "ASH_INTERNAL_SECRET",
            "ASH_DATABASE_URL_X",
            "XOTEL_A",
            "ASH_RUNNER",
        ];
        let said = without_effect(names.map(str::to_owned));
        let begins = [
            "ASH_DATABASE_URL has no effect: ",
            "ASH_SNAPSHOT_URL has no effect: ",
            "ASH_MODE has no effect: ",
            "ASH_INTERNAL_SECRET has no effect: ",
            "ASH_RUNNER_ID has no effect: ",
            "ASH_TELEMETRY_URL has no effect: ",
            "OTEL_A, OTEL_B have no effect: ",
        ];
        assert_eq!(said.len(), begins.len(), "{said:?}");
        for (line, begin) in said.iter().zip(begins) {
            assert!(line.starts_with(begin) && line.len() > begin.len() + 20, "{line}");
        }
        assert!(without_effect(["HOME".to_owned()]).is_empty());
    }
}
