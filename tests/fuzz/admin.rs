//! Inputs of an admin's programs: configuration, streams of the daemon, archives of a backup.

use clap::Parser as _;

use ash_ctl::backup;
use ash_ctl::render::Renderer;
use ash_ctl::sse::Parser;
use ash_launcher::settings::{Flags, Settings};
use ashd::config::Config;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::harness::Target;

pub fn ashd_toml() -> Target {
    const WORDS: &[&str] = &[
        "[server]",
        "[pool]",
        "[limits]",
        "[gateway]",
        "[confinement]",
        "port = ",
        "host = ",
        "\"2GiB\"",
        "\"30m\"",
        "\"99999999999TiB\"",
        "\"all\"",
        "\"-landlock\"",
        "[[",
        "= {a = 1}",
        "\n",
    ];
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let path = directory.path().join("ashd.toml");
    Target::new(WORDS, move |input| {
        let _kept = &directory;
        std::fs::write(&path, input).expect("written");
        match Config::load(Some(&path)) {
            Ok(config) => drop(ashd::config::compare(&config, Config::default())),
            Err(errors) => assert!(!errors.to_string().is_empty(), "an error has a text"),
        }
    })
    // Each unknown key is compared with all known ones.
    .heap(16 << 20, 256)
}

pub fn launcher_toml() -> Target {
    const WORDS: &[&str] =
        &["uid_base = ", "uid_count = ", "cgroup = ", "claude_dir = ", "[ceiling]", "memory_bytes = ", "[floor]", "\n"];
    let directory = tempfile::tempdir_in("/run").expect("a directory that is root's alone");
    let path = directory.path().join("launcher.toml");
    let flags = Flags::try_parse_from(
        ["ash-launcher", "--client-user", "1", "--config"]
            .iter()
            .map(|word| (*word).into())
            .chain([path.clone().into_os_string()]),
    )
    .expect("flags");
    Target::new(WORDS, move |input| {
        let _kept = &directory;
        std::fs::write(&path, input).expect("written");
        match Settings::load(&flags) {
            Ok(settings) => {
                assert!(settings.uid_base.checked_add(settings.uid_count).is_some_and(|end| end < u32::MAX));
                assert!(settings.claude_dir.is_absolute());
            }
            Err(error) => assert!(!error.to_string().is_empty(), "an error has a text"),
        }
    })
}

/// An event stream as ashctl reads and prints it.
pub fn event_stream() -> Target {
    const WORDS: &[&str] = &[
        "id: 1:0:0\n",
        "event: message\n",
        "event: text_delta\n",
        "event: tool_use\n",
        "event: tool_result\n",
        "event: gap\n",
        "data: ",
        "data: {\"type\":\"assistant\",\"message\":{\"content\":[]}}\n\n",
        "\n\n",
        "\r\n",
        ": ping\n\n",
        "retry: 1\n",
    ];
    Target::new(WORDS, |input| {
        let read = |step: usize| {
            let mut parser = Parser::default();
            let frames = input.chunks(step).map(|piece| parser.push(piece)).collect::<Result<Vec<_>, _>>();
            frames.expect("no line is longer than 64 MiB").concat()
        };
        let frames = read(input.len().max(1));
        assert_eq!(frames, read(13), "the same frames however they are cut");
        let mut renderer = Renderer::default();
        for frame in frames {
            let data = serde_json::from_str(&frame.data).unwrap_or_default();
            let shown = renderer.frame(&frame.event, &data);
            assert!(shown.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'), "nothing moves the cursor");
        }
    })
    .heap(8 << 20, 64)
}

/// An archive of a backup: verified, and unpacked even if it is incomplete.
pub fn backup_archive() -> Target {
    const WORDS: &[&str] = &[
        "manifest.jsonl",
        "ashd.db",
        "sessions/",
        "../",
        "/etc/passwd",
        "ustar\0",
        "ustar  \0",
        "\"format\":1",
        "\"sha256\"",
        "\"path\"",
        "77777777777\0",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let (file, data) = (directory.path().join("a.tar.gz"), directory.path().join("data"));
    Target::new(WORDS, move |input| {
        let mut tar = input.to_vec();
        crate::client::correct_sums(&mut tar);
        let mut gz = GzEncoder::new(std::fs::File::create(&file).expect("made"), Compression::fast());
        std::io::Write::write_all(&mut gz, &tar).expect("compressed");
        gz.finish().expect("compressed");
        runtime.block_on(backup::verify(&file)).ok();
        std::fs::create_dir(&data).expect("made");
        backup::restore_files(&file, &data).ok();
        std::fs::remove_dir_all(&data).expect("removed");
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1, "nothing is made elsewhere");
    })
    .heap(32 << 20, 64)
}
