use std::io::Write;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

fn session() -> (TempDir, File) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = File::options().create(true).append(true).open(dir.path().join("stdout")).expect("created");
    (dir, out)
}

fn tail(dir: &TempDir, offset: u64) -> Tail {
    Tail::open(dir.path(), offset, &Hub::start().expect("a hub")).expect("a tail")
}

async fn soon(tail: &mut Tail) -> Result<Batch, TailError> {
    tokio::time::timeout(Duration::from_secs(10), tail.next_batch()).await.expect("woken within 10 s")
}

#[tokio::test]
async fn lines_come_as_they_are_written_and_whole() {
    let (dir, mut out) = session();
    let mut tail = tail(&dir, 0);
    out.write_all(b"one\ntwo\nthr").expect("written");
    let batch = soon(&mut tail).await.expect("lines");
    assert_eq!(batch.lines().collect::<Vec<_>>(), [(0, 4, b"one".as_slice()), (4, 8, b"two")]);
    assert!(tail.drain().expect("no error").is_none(), "a partial line stays");
    let waiting = tokio::spawn(async move { (soon(&mut tail).await, tail) });
    tokio::time::sleep(Duration::from_millis(20)).await;
    out.write_all(b"ee\n").expect("written");
    let (batch, mut tail) = waiting.await.expect("joined");
    assert_eq!(
        batch.expect("lines"),
        Batch { start: 8, end: 14, bytes: Bytes::from_static(b"three\n"), abridged: false }
    );
    assert_eq!(tail.offset(), 14);
    out.write_all(b"\n\nx\n").expect("written");
    let batch = soon(&mut tail).await.expect("lines");
    assert_eq!(batch.lines().collect::<Vec<_>>(), [(14, 15, b"".as_slice()), (15, 16, b""), (16, 18, b"x")]);
    assert_eq!(batch.end(), 18);
}

#[tokio::test]
async fn it_goes_on_at_an_offset() {
    let (dir, mut out) = session();
    out.write_all(b"one\ntwo\n").expect("written");
    let mut tail = tail(&dir, 4);
    assert_eq!(tail.drain().expect("no error").expect("lines").bytes, "two\n");
}

#[tokio::test]
async fn many_lines_come_in_bounded_batches_and_a_long_one_in_its_own() {
    let (dir, mut out) = session();
    let mut text = "short\n".repeat(300_000);
    text += &"y".repeat(3 << 20);
    text += "\nend\n";
    out.write_all(text.as_bytes()).expect("written");
    let mut tail = tail(&dir, 0);
    let mut got = Vec::new();
    while let Some(batch) = tail.drain().expect("no error") {
        assert_eq!(batch.start, got.len() as u64);
        assert!(batch.bytes.len() as u64 <= BATCH_BYTES || batch.bytes.len() > 3 << 20, "{}", batch.bytes.len());
        got.extend_from_slice(&batch.bytes);
    }
    assert!(got == text.as_bytes());
}

#[tokio::test]
async fn what_the_payload_can_do_to_the_file_is_said() {
    // Truncated.
    let (dir, mut out) = session();
    out.write_all(b"one\ntwo\n").expect("written");
    let mut cut = tail(&dir, 0);
    cut.drain().expect("no error");
    out.set_len(2).expect("truncated");
    assert!(matches!(soon(&mut cut).await, Err(TailError::Truncated { length: 2, offset: 8 })));
    // Truncated and refilled.
    let (dir, mut out) = session();
    out.write_all(b"one\ntwo\n").expect("written");
    let mut refilled = tail(&dir, 0);
    refilled.drain().expect("no error");
    out.set_len(0).expect("truncated");
    out.write_all(b"something else and longer\n").expect("written");
    assert!(matches!(soon(&mut refilled).await, Err(TailError::Overwritten { offset: 8 })));
    // Endless, in a sparse file: no disk space and no newline.
    let (dir, out) = session();
    let mut endless = tail(&dir, 0);
    out.set_len(LINE_BYTES * 4).expect("extended");
    let error = soon(&mut endless).await.expect_err("too long");
    assert!(matches!(error, TailError::TooLong { offset: 0 }));
    assert!(error.to_string().contains("longer than 32 MiB (it begins at byte 0"), "{error}");
}

#[tokio::test]
async fn a_line_is_held_up_to_a_bound_and_abridged_up_to_another() {
    for (bytes, abridged) in [(WHOLE_BYTES, false), (WHOLE_BYTES + 1, true), (LINE_BYTES, true)] {
        let (dir, mut out) = session();
        let mut tail = tail(&dir, 0);
        let around = r#"{"type":"result","result":"","num_turns":4}"#;
        let text = "x".repeat(bytes as usize - around.len());
        let line = format!("{{\"type\":\"result\",\"result\":\"{text}\",\"num_turns\":4}}\n");
        out.write_all(&line.as_bytes()[..line.len() / 2]).expect("written");
        assert!(tail.drain().expect("no error").is_none());
        out.write_all(&line.as_bytes()[line.len() / 2..]).expect("written");
        out.write_all(b"next\n").expect("written");
        let batch = soon(&mut tail).await.expect("the line");
        assert_eq!((batch.abridged, batch.start, batch.end()), (abridged, 0, bytes + 1));
        let [(0, end, kept)] = batch.lines().collect::<Vec<_>>()[..] else { panic!("one line") };
        assert_eq!(end, bytes + 1);
        if abridged {
            let json: serde_json::Value = serde_json::from_slice(kept).expect("JSON");
            assert!(kept.len() < 1 << 20 && json["num_turns"] == 4);
            assert_eq!((&json["omitted"]["bytes"], &json["omitted"]["outputOffset"]), (&bytes.into(), &0.into()));
        } else {
            assert!(kept == line.trim_end().as_bytes());
        }
        assert_eq!(soon(&mut tail).await.expect("the next").bytes, "next\n");
    }
}

#[tokio::test]
async fn a_long_line_that_is_no_object_is_an_empty_one() {
    let (dir, mut out) = session();
    let mut tail = tail(&dir, 0);
    out.write_all(&vec![b'x'; WHOLE_BYTES as usize + 9]).expect("written");
    out.write_all(b"\n").expect("written");
    let batch = soon(&mut tail).await.expect("the line");
    assert_eq!(batch.lines().collect::<Vec<_>>(), [(0, WHOLE_BYTES + 10, b"".as_slice())]);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let error = Tail::open(dir.path(), 0, &Hub::start().expect("a hub")).expect_err("no file").to_string();
    assert!(error.contains("stdout") && error.contains("opened"), "{error}");
}

#[tokio::test]
async fn two_tails_of_one_file_and_of_two_share_a_hub() {
    let hub = Hub::start().expect("a hub");
    let ((one, mut out), (two, mut out2)) = (session(), session());
    let open = |dir: &TempDir| Tail::open(dir.path(), 0, &hub).expect("a tail");
    let (mut a, mut b, mut c) = (open(&one), open(&one), open(&two));
    out.write_all(b"x\n").expect("written");
    assert_eq!(soon(&mut a).await.expect("lines").bytes, "x\n");
    drop(a);
    assert_eq!(soon(&mut b).await.expect("lines").bytes, "x\n");
    out.write_all(b"y\n").expect("written");
    out2.write_all(b"z\n").expect("written");
    assert_eq!(soon(&mut b).await.expect("lines").bytes, "y\n");
    assert_eq!(soon(&mut c).await.expect("lines").bytes, "z\n");
    drop((b, c));
    let mut again = open(&one);
    out.write_all(b"w\n").expect("written");
    assert_eq!(soon(&mut again).await.expect("lines").bytes, "x\ny\nw\n");
}
