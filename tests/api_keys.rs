//! Keys of tenants for the model, and the admin's access without a key.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

/// A model provider that reports the key of each request.
fn provider() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let head: Vec<String> =
                reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let field = |wanted: &str| {
                head.iter().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
                })
            };
            let key = field("x-api-key");
            // All of the request: closing a socket with unread bytes resets the connection, and the answer
            // may be lost.
            let length = field("content-length").map_or(0, |length| length.parse().unwrap());
            let _ = reader.read_exact(&mut vec![0; length]);
            let body = r#"{"type":"error","error":{"type":"not_found_error","message":"no model here"}}"#;
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            if tell.send(key.unwrap_or_default()).is_err() {
                return;
            }
        }
    });
    (port, told)
}

const ASK: &str = "python3 -c 'import os,urllib.request as u
r=u.Request(os.environ[\"ANTHROPIC_BASE_URL\"]+\"/v1/messages\", data=b\"{}\", headers={\"x-api-key\": os.environ[\"ANTHROPIC_API_KEY\"], \"content-type\": \"application/json\"})
try: u.urlopen(r, timeout=20)
except Exception as e: print(e)'; env";

#[tokio::test]
async fn a_session_uses_its_credential_and_never_sees_it() {
    let (port, told) = provider();
    let options = Options::default().env("ASH_UPSTREAM", &format!("http://127.0.0.1:{port}"));
    let mut daemon = Daemon::start(options.env("ANTHROPIC_API_KEY", "the-daemons-own"));
    let api = daemon.api();
    let agent = json!({"name": "a", "files": [{"path": "CLAUDE.md", "content": "WW91Lg=="}], "env": {"ANTHROPIC_API_KEY": "the-agents"}});
    api.post("/api/agents", agent).await.expect(201);
    api.deploy("plain").await;
    let add = async |api: &Api, kind: &str, key: &str| {
        let made = api.post("/api/credentials", json!({"type": kind, "key": key, "label": "mine"})).await;
        assert!(!made.text.contains(key), "{}", made.text);
        made.expect(201)["credential"]["id"].as_str().unwrap().to_owned()
    };
    let secret = "sk-ant-the-tenants-own-secret";
    let id = add(&api, "anthropic", secret).await;
    let listed = api.get("/api/credentials").await;
    assert!(!listed.text.contains(secret));
    let listed = &listed.expect(200)["credentials"][0];
    assert_eq!(
        (listed["id"].as_str().unwrap(), &listed["type"], &listed["active"], &listed["lastUsedAt"]),
        (id.as_str(), &json!("anthropic"), &json!(true), &Value::Null)
    );

    // The key with which a session's requests arrive, and what the sandbox knows of it.
    let mut sessions = Vec::new();
    for (body, key) in [
        (json!({"agent": "plain"}), "the-daemons-own"),
        (json!({"agent": "a"}), "the-agents"),
        (json!({"agent": "a", "credentialId": id}), secret),
        (json!({"agent": "a", "credentialId": id, "extraEnv": {"ANTHROPIC_API_KEY": "the-sessions"}}), "the-sessions"),
    ] {
        let made = api.post("/api/sessions", body.clone()).await;
        let session = made.expect(201)["session"]["id"].as_str().unwrap().to_owned();
        while told.try_recv().is_ok() {}
        let ended = api.post(&format!("/api/sessions/{session}/exec"), json!({"command": ASK})).await;
        assert!(ended.text.contains("404"), "{}", ended.text);
        assert!(!ended.text.contains(key), "{body}: the key is in the sandbox");
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)).unwrap(), key, "{body}");
        sessions.push(session);
    }
    for (kind, part) in
        [("openai", "store a key of type anthropic"), ("bedrock", "run a proxy"), ("azure", "one of anthropic, custom")]
    {
        let error = api.post("/api/credentials", json!({"type": kind, "key": "sk-planted"})).await.expect(400);
        let error = error["error"].as_str().unwrap();
        assert!(error.contains(part) && !error.contains("planted"), "{error}");
    }
    assert_eq!(api.get("/api/credentials").await.expect(200)["credentials"].as_array().unwrap().len(), 1);
    for (credential, part) in [
        ("00000000-0000-4000-8000-000000000000", "there is no credential"),
        ("nonsense", "there is no credential \"nonsense\""),
    ] {
        let error = api.post("/api/sessions", json!({"agent": "a", "credentialId": credential})).await.expect(400);
        assert!(error["error"].as_str().unwrap().contains(part), "{error}");
    }
    // Another tenant neither has nor can use the credential.
    let minted = api.post("/api/api-keys", json!({"label": "b", "tenantId": "b"})).await.expect(201);
    let other = api.with_key(minted["key"].as_str());
    other.deploy("a").await;
    assert_eq!(other.get("/api/credentials").await.expect(200)["credentials"], json!([]));
    other.delete(&format!("/api/credentials/{id}")).await.expect(404);
    other.post("/api/sessions", json!({"agent": "a", "credentialId": id})).await.expect(400);

    // Sealed at rest: it is nowhere below the data directory, nor in the rows of sessions.
    daemon.kill9();
    for file in
        walkdir::WalkDir::new(daemon.data()).into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_file())
    {
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none(), "{} holds the key", file.path().display());
    }
    daemon.restart();
    let api = daemon.api();
    // A session that another daemon resumes gets its credential again. If the credential is gone,
    // the error says so.
    let path = format!("/api/sessions/{}", sessions[2]);
    api.call("POST", &format!("{path}/stop"), None).await.expect(200);
    api.call("POST", &format!("{path}/resume"), None).await.expect(200);
    while told.try_recv().is_ok() {}
    api.post(&format!("{path}/exec"), json!({"command": ASK})).await.expect(200);
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)).unwrap(), secret);
    api.delete(&format!("/api/credentials/{id}")).await.expect(204);
    api.delete(&format!("/api/credentials/{id}")).await.expect(404);
    api.call("POST", &format!("{path}/stop"), None).await.expect(200);
    let error = api.call("POST", &format!("{path}/resume"), None).await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("was deleted"), "{error}");
}

fn over_unix(daemon: &Daemon, head: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(daemon.run().join("ashd.sock")).unwrap();
    let length = body.len();
    write!(stream, "{head}\r\nhost: ashd\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(json).unwrap_or_else(|_| panic!("{answer}")))
}

#[tokio::test]
async fn root_needs_no_key_on_the_unix_socket_and_makes_keys_for_tenants() {
    let daemon = Daemon::start(Options::default().config("[server]\nrequests_per_minute = 1"));
    let body = r#"{"label":"ci","tenantId":"acme"}"#;
    let (status, minted) = over_unix(&daemon, "POST /api/internal/api-keys HTTP/1.0", body);
    assert_eq!(status, 201, "{minted}");
    let acme = daemon.api().with_key(minted["key"].as_str());
    assert_eq!(acme.get("/api/agents").await.expect(200)["agents"], json!([]));
    assert_eq!(acme.get("/api/agents").await.status, 429, "one a minute");
    for _ in 0..3 {
        assert_eq!(over_unix(&daemon, "GET /api/agents HTTP/1.0", "").0, 200);
    }
    // A key that is sent is checked on the socket too; over TCP every request needs one.
    let (status, error) = over_unix(&daemon, "GET /api/agents HTTP/1.0\r\nauthorization: Bearer nonsense", "");
    assert_eq!((status, &error["error"]), (401, &json!("Invalid API key")));
    daemon.api().with_key(None).get("/api/agents").await.expect(401);
}
