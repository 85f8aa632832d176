# Generates ashd.toml(5) from ashd.sample.toml. A test checks that the sample has every key with its default, so the page is correct as well.
function escape(text) { gsub(/\\/, "\\e", text); gsub(/-/, "\\-", text); return text ~ /^[.']/ ? "\\&" text : text }
function flush() { if (text != "") printf ".PP\n%s", text; text = "" }
BEGIN {
    print ".TH ASHD.TOML 5 \"\" \"ashd\" \"File formats\"\n.SH NAME\nashd.toml \\- configuration of ashd\n.SH SYNOPSIS"
    print ".nf\n/etc/ashd/ashd.toml\n/etc/ashd/ashd.toml.d/*.toml\n.fi\n.SH DESCRIPTION"
    print "Sources are the defaults, ashd.toml, its drop\\-ins by name, and variables of the environment. Later sources override earlier ones, key by key. An unknown key is"
    print "an error that names file, line and the nearest valid key;\n.B ashd check\\-config\nshows all errors at once. The file is TOML."
    print ".PP\nUnder systemd the launcher and the gateway have files of their own:\n.IR /etc/ashd/launcher.toml ,\n.IR /etc/ashd/gateway.env ."
    print ".SH KEYS\nShown with their defaults."
    head = 1
}
/^\[/ { flush(); head = 0; printf ".SS %s\n", escape($0); next }
# The file's own first lines are about the file.
head && /^# (Every key|Sizes|Check)/ { if (/Sizes/) sizes = escape(substr($0, 3)); next }
/^#[a-z_]+ = / { line = escape(substr($0, 2)); gsub(/"/, "\\(dq", line); printf ".TP\n.B %s\n%s", line, text; text = ""; next }
/^# / { text = text escape(substr($0, 3)) "\n"; next }
/^$/ { flush() }
END {
    flush()
    print ".SH VALUES\n" sizes "\n.SH EXAMPLE\n.nf\n[pool]\nmax_sandboxes = 200\n\n[limits]\nmemory_bytes = \"4GiB\"\nturn_ms = \"30m\"\n.fi"
    print ".SH SEE ALSO\n.BR ashd (8),\n.BR ash\\-launcher (8),\n.BR ashctl (1)"
}
