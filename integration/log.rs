//! The log of a service: a line for each phase, with the word that `ctl status` has for it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::ctl::stage::{CTL, Running, eventually};
use crate::puppet::{Scene, skip};

/// The phases of the interface.
const PHASES: [&str; 7] = ["starting", "serving", "handing-over", "standing-by", "draining", "holding", "stopping"];

/// An example that logs to a file; killed and reaped when it is dropped.
struct Example {
    child: Child,
    log: std::path::PathBuf,
}

impl Example {
    /// `None`, said aloud, where the examples were not built.
    fn start(scene: &Scene, version: &str, more: &[&str]) -> Option<Example> {
        let deps = std::env::current_exe().unwrap();
        let path = deps.parent().unwrap().parent().unwrap().join("examples/http");
        if !path.exists() {
            skip(&format!("{} is not there: cargo build --examples", path.display()));
            return None;
        }
        let log = scene.path(&format!("{version}.log"));
        let child = Command::new(path)
            .arg("--control")
            .arg(scene.control())
            .args(["--listen", "127.0.0.1:0", "--app-version", version])
            .args(more)
            .env("RUST_LOG", "heirloom=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Some(Example { child, log })
    }

    /// The phases in its log, in their order.
    fn words(&self) -> Vec<String> {
        let phases = lines(&self.log).into_iter().filter_map(|line| Some(line.split_once(": ")?.0.to_owned()));
        phases.filter(|word| PHASES.contains(&word.as_str())).collect()
    }

    #[track_caller]
    fn logs(&self, wanted: impl Fn(&str) -> bool) -> String {
        eventually(|| lines(&self.log).into_iter().find(|line| wanted(line)))
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is logged, without time, level and module.
fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().filter_map(|line| Some(line.split_once("] ")?.1.to_owned())).collect()
}

#[test]
fn the_log_has_a_line_for_each_phase_in_the_words_of_a_status() {
    let scene = Scene::new();
    let Some(mut first) = Example::start(&scene, "1", &[]) else { return };
    let serving = first.logs(|line| line.starts_with("serving: "));
    assert!(serving.contains("generation 1; ") && serving.contains("bound (first of its family)"), "{serving}");
    let mut watch =
        Running::new(Command::new(CTL).arg("--socket").arg(scene.control()).args(["--json", "status", "--watch"]));
    let status = watch.object();
    assert_eq!(status["phase"], "serving");
    let address = status["listeners"][0]["address"].as_str().unwrap().to_owned();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /slow?ms=1000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    eventually(|| (scene.status().in_flight > 0).then_some(()));

    let Some(mut second) = Example::start(&scene, "2", &["--warm-up", "200ms"]) else { return };
    let starting = second.logs(|line| line.starts_with("starting: "));
    assert!(starting.contains(&format!("of pid {}, version 1", first.child.id())), "{starting}");
    let serving = second.logs(|line| line.starts_with("serving: "));
    assert!(serving.contains("generation 2; ") && serving.contains(" adopted"), "{serving}");
    let mut seen = vec!["serving".to_owned()];
    loop {
        let status = watch.object();
        if status["generation"] == 1 {
            seen.push(status["phase"].as_str().unwrap().to_owned());
        } else if status["phase"] == "serving" && status["predecessor"] == Value::Null {
            break;
        }
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(first.child.wait().unwrap().success());
    seen.dedup();
    assert_eq!(seen, ["serving", "handing-over", "draining"]);
    assert_eq!(first.words(), ["starting", "serving", "handing-over", "draining"]);
    let handing_over = first.logs(|line| line.starts_with("handing-over: "));
    assert!(handing_over.contains(&format!("to pid {}, version 2", second.child.id())), "{handing_over}");

    scene.client().stop().unwrap();
    assert!(second.child.wait().unwrap().success());
    assert_eq!(second.words(), ["starting", "serving", "stopping"]);
}
