//! Where words go: data to stdout, talk to stderr. Nothing here panics when the other end is closed, because a keeper
//! must not die of that.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

/// How this run speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    pub(crate) fn new(json: bool) -> Printer {
        Printer { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether a person looks at stderr.
    pub(crate) fn is_watched(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Data, as text or as one JSON object on a line.
    pub(crate) fn print(self, text: impl FnOnce() -> String, object: impl FnOnce() -> Value) -> io::Result<()> {
        if self.json { self.object(&object()) } else { self.text(&text()) }
    }

    pub(crate) fn object(self, object: &Value) -> io::Result<()> {
        self.text(&object.to_string())
    }

    /// Text on stdout, with one line end at its end.
    pub(crate) fn text(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Talk, for a person; none of it beside JSON.
    pub(crate) fn say(self, text: &str) {
        self.line(&format!("ctl: {text}"));
    }

    pub(crate) fn hint(self, text: &str) {
        self.line(&format!("hint: {text}"));
    }

    /// A line on stderr as it is.
    pub(crate) fn line(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}
