# Generates ashd.toml(5) from ashd.sample.toml. tests/package.rs checks that the sample has every key with its default.
function escape(text) { gsub(/\\/, "\\e", text); gsub(/-/, "\\-", text); return text ~ /^[.']/ ? "\\&" text : text }
function flush() { if (text != "") printf ".PP\n%s", text; text = "" }
BEGIN {
    print ".TH ASHD.TOML 5 \"\" \"ashd\" \"File formats\"\n.SH NAME\nashd.toml \\- configuration of ashd\n.SH SYNOPSIS"
    print ".nf\n/etc/ashd/ashd.toml\n/etc/ashd/ashd.toml.d/*.toml\n.fi\n.SH DESCRIPTION"
    print "The file is in TOML format. Sources are the defaults, ashd.toml, its drop\\-ins in the order of their names, and environment variables."
    print "Later sources override earlier ones, key by key. An unknown key is an error that names file, line and the nearest valid key."
    print ".B ashd check\\-config\nshows all errors at once."
    print ".PP\nUnder systemd the launcher and the gateway have configuration files of their own:\n.I /etc/ashd/launcher.toml\nand\n.IR /etc/ashd/gateway.env ."
    print ".SH KEYS\nEach key is shown with its default."
    head = 1
}
/^\[/ { flush(); head = 0; printf ".SS %s\n", escape($0); next }
# The first lines of the sample describe the file itself.
head && /^# (Every key|Sizes|Check)/ { if (/Sizes/) sizes = escape(substr($0, 3)); next }
/^#[a-z_]+ = / { line = escape(substr($0, 2)); gsub(/"/, "\\(dq", line); printf ".TP\n.B %s\n%s", line, text; text = ""; next }
/^# / { text = text escape(substr($0, 3)) "\n"; next }
/^$/ { flush() }
END {
    flush()
    print ".SH VALUES\n" sizes "\n.SH EXAMPLE\n.nf\n[pool]\nmax_sandboxes = 200\n\n[limits]\nmemory_bytes = \"4GiB\"\nturn_ms = \"30m\"\n.fi"
    print ".SH SEE ALSO\n.BR ashd (8),\n.BR ash\\-launcher (8),\n.BR ashctl (1)"
}
