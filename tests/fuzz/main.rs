//! Every parser of bytes from a payload, a client, the model, or a file that a crash may have
//! damaged, runs on samples (`corpus/<target>`) and mutated samples. None may panic, overflow its
//! stack, allocate without a bound or take long. `docs/testing.md` has the table of parsers and
//! targets.
#![allow(clippy::unwrap_used)]

mod admin;
mod between;
mod client;
mod harness;
#[path = "../http_support/mod.rs"]
mod http_support;
mod model;
mod mutate;
mod payload;

macro_rules! targets {
    ($($module:ident: $($name:ident)+;)+) => {
        const NAMES: &[&str] = &[$($(stringify!($name),)+)+];

        $($(
            #[test]
            fn $name() {
                harness::fuzz(stringify!($name), NAMES.len(), $module::$name);
            }
        )+)+
    };
}

targets! {
    payload: claude_line long_line output_file probe_report init_packets kernel_texts raw_json;
    client: requests workspace_archive workspace_names words;
    model: model_answer offline_model gateway_connection gateway_control gateway_replies gateway_settings;
    between: launcher_packets launcher_records ledger stored_rows;
    admin: ashd_toml launcher_toml event_stream backup_archive;
}

/// Finds a target without samples, samples without a target, and a parser that the table does not
/// name.
#[test]
fn the_table_names_every_target() {
    let table =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/testing.md")).expect("docs/testing.md");
    for name in NAMES {
        assert!(table.contains(&format!("| `{name}` |")), "docs/testing.md does not name the target {name}");
    }
    let corpus = harness::corpus("");
    let mut found: Vec<String> = std::fs::read_dir(&corpus)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let mut names: Vec<&str> = NAMES.to_vec();
    names.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, names, "{}", corpus.display());
}
