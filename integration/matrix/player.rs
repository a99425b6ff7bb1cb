//! A puppet in a cell, and what the cell knows of it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cell::LOOK;
use crate::puppet::{Puppet, Scene, merge};

/// How long it may take until the clients and peers of a process that are gone are forgotten.
const SETTLED: Duration = Duration::from_secs(5);
/// How long an owner with nothing to do is watched, and how much of that time it may run: a spin takes all of it.
const WATCHED: Duration = Duration::from_millis(60);
const RESTLESS: Duration = Duration::from_millis(20);

/// A puppet, and what is known of it.
pub(super) struct Player {
    pub(super) puppet: Puppet,
    pub(super) thread: u64,
    pub(super) log: PathBuf,
    /// What its descriptors led to before it took part.
    pub(super) blank: Vec<String>,
    /// What it was told and has not answered to: whether an error means that its attempt is over.
    asked: VecDeque<bool>,
    /// It has something in flight, so that it does not leave yet.
    pub(super) lease: bool,
    /// This run has ended it.
    pub(super) killed: bool,
    /// Its attempt was over before another was ended.
    pub(super) gave_up: bool,
}

impl Player {
    pub(super) fn new(scene: &Scene, number: u32) -> Player {
        let mut puppet = Puppet::new();
        let log = scene.path(&format!("accepted/{number}"));
        puppet.ask(json!({"do": "exit-on-term"}));
        puppet.ask(json!({"do": "service", "log": log}));
        let thread = puppet.ask(json!({"do": "thread"}))["ok"].as_u64().unwrap();
        let mut player = Player {
            puppet,
            thread,
            log,
            blank: Vec::new(),
            asked: VecDeque::new(),
            lease: false,
            killed: false,
            gave_up: false,
        };
        player.blank = player.kinds();
        player
    }

    pub(super) fn begin(&mut self, scene: &Scene, version: &str, more: Value) {
        let mut command = scene.begin(
            version,
            json!({
                "claims": [
                    {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
                    {"kind": "tcp", "name": "queue", "address": "127.0.0.1:0"},
                ],
                "accept": false,
                "exclusive": true,
                "progress_ms": 1500,
                "release_ms": 1000,
            }),
        );
        merge(&mut command, more);
        self.puppet.tell(&command);
        self.asked.push_back(true);
    }

    /// Tells it to do something, without a wait for its answer.
    pub(super) fn order(&mut self, command: Value) {
        self.puppet.tell(&command);
        self.asked.push_back(false);
    }

    /// Lets it leave.
    pub(super) fn end_lease(&mut self) {
        if std::mem::take(&mut self.lease) {
            self.order(json!({"do": "end-lease"}));
        }
    }

    /// What its descriptors lead to, without numbers, and without the name of its own log.
    pub(super) fn kinds(&mut self) -> Vec<String> {
        let found = self.puppet.ask(json!({"do": "descriptors"}));
        let log = self.log.display().to_string();
        let mut kinds: Vec<String> = found["ok"]
            .as_array()
            .unwrap()
            .iter()
            .map(|descriptor| descriptor.as_str().unwrap().split_once(' ').unwrap().1)
            .map(|link| if link == log { "log" } else { link.split(":[").next().unwrap() }.to_owned())
            .collect();
        kinds.sort();
        kinds
    }

    /// The same while nobody is connected: a client of another cell may still knock at a port that was his until now.
    pub(super) fn kinds_at_rest(&mut self) -> Vec<String> {
        let end = Instant::now() + SETTLED;
        loop {
            let free = |player: &mut Player| player.puppet.ask(json!({"do": "connections"}))["ok"] == 0;
            let before = free(self);
            let kinds = self.kinds();
            if before && free(self) {
                return kinds;
            }
            assert!(Instant::now() < end, "somebody stays connected");
            thread::sleep(LOOK);
        }
    }

    /// Whether its attempt is over: it could not even begin, or it said that it failed.
    pub(super) fn failed(&mut self) -> bool {
        while !self.asked.is_empty()
            && let Some(answer) = self.puppet.heard()
        {
            self.answered(&answer);
        }
        self.gave_up |= self.puppet.has_said("failed");
        self.gave_up
    }

    fn answered(&mut self, answer: &Value) {
        self.gave_up |= self.asked.pop_front() == Some(true) && answer.get("error").is_some();
    }

    /// Where it is in its life; `None` where that is over.
    pub(super) fn state(&mut self) -> Option<Value> {
        while !self.asked.is_empty() {
            let answer = self.puppet.answer_if_alive()?;
            self.answered(&answer);
        }
        self.puppet.ask_if_alive(json!({"do": "state"})).map(|state| state["ok"].clone())
    }

    /// Whether the thread of the handoff is in this state: `S` where it waits, `T` where it is stopped (proc(5)).
    pub(super) fn is(&self, state: char) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/task/{}/stat", self.puppet.pid(), self.thread));
        // The name before it may have any letters in it.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(state)))
    }

    /// For how long all its threads have run so far.
    fn ran(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.puppet.pid())).unwrap();
        let times = tasks.flatten().filter_map(|task| {
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            times.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(times.sum())
    }

    /// Waits until it has these descriptors and no others: the end of its clients is no event. After an error it may lack
    /// what it could not have, and does without.
    pub(super) fn settles(&mut self, wanted: &[String], lacking: bool) {
        let end = Instant::now() + SETTLED;
        loop {
            let found = self.kinds();
            let mut left = wanted.to_vec();
            let allowed = found.iter().all(|one| {
                let at = left.iter().position(|other| other == one);
                at.map(|at| left.swap_remove(at)).is_some()
            });
            if allowed && (lacking || left.is_empty()) {
                return;
            }
            if Instant::now() > end {
                let connections = self.puppet.ask(json!({"do": "connections"}))["ok"].clone();
                panic!("descriptors, with {connections} connections:\n{found:?}, where there were\n{wanted:?}");
            }
            thread::sleep(LOOK);
        }
    }

    /// Watches it for a while in which there is nothing to do: it says nothing, and does not spin.
    pub(super) fn rests(&mut self) {
        let before = self.ran();
        assert!(self.puppet.is_silent_for(WATCHED), "an owner with nothing to do has something to say");
        let ran = self.ran() - before;
        assert!(ran < RESTLESS, "an owner with nothing to do ran for {ran:?} of {WATCHED:?}");
    }
}
