//! Content type and disposition of a file, by its name.

/// The media type of an extension. Text is declared as UTF-8, which agents write.
pub fn of(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "txt" | "log" | "ini" | "cfg" | "conf" | "env" | "rst" | "diff" | "patch" | "gitignore" => {
            "text/plain; charset=utf-8"
        }
        "rs" | "py" | "go" | "c" | "h" | "cc" | "cpp" | "hpp" | "java" | "kt" | "rb" | "php" | "pl" | "sh" | "bash"
        | "zsh" | "fish" | "sql" | "lua" | "swift" | "scala" | "r" | "jl" | "ex" | "exs" | "hs" | "ml" | "cs"
        | "vue" | "svelte" | "tf" | "proto" | "graphql" => "text/plain; charset=utf-8",
        "ts" | "tsx" | "mts" | "cts" => "text/typescript; charset=utf-8",
        "js" | "mjs" | "cjs" | "jsx" => "text/javascript; charset=utf-8",
        "md" | "markdown" => "text/markdown; charset=utf-8",
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "tsv" => "text/tab-separated-values; charset=utf-8",
        "xml" => "application/xml",
        "json" | "map" => "application/json",
        "jsonl" | "ndjson" => "application/x-ndjson",
        "yaml" | "yml" => "application/yaml",
        "toml" => "application/toml",
        "ipynb" => "application/x-ipynb+json",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "bmp" => "image/bmp",
        "ico" => "image/x-icon",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "ogg" => "audio/ogg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mov" => "video/quicktime",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "wasm" => "application/wasm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        _ => "application/octet-stream",
    }
}

/// For files to be saved, never displayed.
pub fn attachment(name: &str) -> String {
    named("attachment", name)
}

/// `inline` for what a browser can display safely, otherwise `attachment`: an agent's HTML or SVG
/// must not run as a page of this origin. The name has both forms of RFC 6266.
pub fn disposition(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let kind = of(path);
    let active = ["text/html", "text/javascript", "image/svg", "application/xml"];
    let inline = (kind.starts_with("text/")
        || kind.starts_with("image/")
        || kind == "application/pdf"
        || kind == "application/json")
        && !active.iter().any(|prefix| kind.starts_with(prefix));
    named(if inline { "inline" } else { "attachment" }, name)
}

fn named(kind: &str, name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\\') || c == ' ' { c } else { '_' })
        .collect();
    let mut exact = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            exact.push(char::from(byte));
        } else {
            exact.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        for (path, expected) in [
            ("src/index.ts", "text/typescript; charset=utf-8"),
            ("A.PNG", "image/png"),
            ("Makefile", "application/octet-stream"),
            ("dir.txt/file", "application/octet-stream"),
            ("data.json", "application/json"),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }

    #[test]
    fn dispositions() {
        for (path, expected) in [
            ("a/b.txt", "inline; filename=\"b.txt\"; filename*=UTF-8''b.txt"),
            ("x.html", "attachment; filename=\"x.html\"; filename*=UTF-8''x.html"),
            ("x.svg", "attachment; filename=\"x.svg\"; filename*=UTF-8''x.svg"),
            ("ä \"q\".md", "inline; filename=\"_ _q_.md\"; filename*=UTF-8''%C3%A4%20%22q%22.md"),
            ("a\r\nb.txt", "inline; filename=\"a__b.txt\"; filename*=UTF-8''a%0D%0Ab.txt"),
        ] {
            assert_eq!(disposition(path), expected, "{path:?}");
        }
    }
}
