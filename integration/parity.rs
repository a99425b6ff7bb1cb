//! What other libraries have and the other modules do not show: see `heirloom::compared`.

use std::collections::BTreeMap;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene};
use crate::visitor::visit;

/// A sequence of numbers that comes out the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    /// Of the seed that the environment gives, or of a new one; printed, so that a failure can be had again.
    fn new() -> Dice {
        let given = std::env::var("HEIRLOOM_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
        println!("HEIRLOOM_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn claim(name: &str, address: &str) -> Value {
    json!({"kind": "tcp", "name": name, "address": address})
}

#[test]
fn ports_that_the_kernel_chose_are_kept() {
    let scene = Scene::new();
    // The same words for two names, and each has a port of its own.
    let claims = json!({"claims": [claim("web", "127.0.0.1:0"), claim("admin", "127.0.0.1:0")]});
    let addresses = |puppet: &mut Puppet| puppet.event("serving")["addresses"].clone();
    let mut owner = Puppet::new();
    owner.ask(scene.begin("1", claims.clone()));
    let before = addresses(&mut owner);
    assert_ne!(before["web"], before["admin"]);
    for version in ["2", "3"] {
        let mut next = Puppet::new();
        next.ask(scene.begin(version, claims.clone()));
        assert_eq!(addresses(&mut next), before);
        assert_eq!(owner.exit_code(), Some(0));
        owner = next;
        for name in ["web", "admin"] {
            assert_eq!(visit(before[name].as_str().unwrap()).pid, owner.pid());
        }
    }
}

#[test]
fn a_changed_address_is_bound_anew_and_the_old_one_is_closed() {
    let scene = Scene::new();
    let claims = |host: &str| json!({"claims": [claim("web", &format!("{host}:0"))]});
    let (mut first, old) = scene.serve("1", claims("127.0.0.1"));
    let (mut second, new) = scene.serve("2", claims("127.0.0.2"));
    assert!(new.starts_with("127.0.0.2:"), "{new}");
    assert_eq!(first.exit_code(), Some(0));
    let web = second.ask(json!({"do": "report"}))["ok"]["entries"]["web"].clone();
    assert_eq!(web["outcome"], "bound");
    assert!(web["why"].as_str().unwrap().contains(&old), "{web}");
    assert_eq!(visit(&new).pid, second.pid());
    let refused = TcpStream::connect(&old).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "nobody kept it");
}

/// What an application believes that its service has, while it adds, removes and replaces at random moments of takeovers
/// that succeed, give up or are killed.
#[test]
fn random_changes_during_takeovers_are_refused_or_inherited() {
    let mut dice = Dice::new();
    let scene = Scene::new();
    let (mut owner, web) = scene.serve("0", json!({}));
    let mut all = BTreeMap::from([("web".to_owned(), web)]);
    let (mut done, mut refused, mut number) = (0, 0, 0);
    for version in 1..=12 {
        let mut next = Puppet::new();
        next.tell(&scene.begin(&version.to_string(), json!({"ready": false, "claims": []})));
        // Some come before the offer, some after it.
        for _ in 0..=dice.below(12) {
            let names: Vec<String> = all.keys().filter(|name| *name != "web").cloned().collect();
            let victim = names.get(dice.below(names.len().max(1) as u64) as usize).cloned();
            let removes = victim.filter(|_| dice.below(3) == 0);
            let answer = match &removes {
                Some(name) => owner.try_ask(json!({"do": "remove", "name": name})),
                None => {
                    number += 1;
                    let kind = ["tcp", "own-tcp"][dice.below(2) as usize];
                    let name = format!("extra-{number}");
                    owner.try_ask(json!({"do": "claim", "kind": kind, "name": name, "address": "127.0.0.1:0"}))
                }
            };
            if answer.get("error").is_some() {
                assert_eq!(answer["error"]["code"], "frozen", "{answer}");
                refused += 1;
                continue;
            }
            done += 1;
            match removes {
                Some(name) => drop(all.remove(&name)),
                None => {
                    let address = answer["ok"]["address"].as_str().unwrap().to_owned();
                    all.insert(format!("extra-{number}"), address);
                }
            }
        }
        next.answer();
        assert_eq!(next.event("started")["entries"], json!(all.keys().collect::<Vec<_>>()));
        match dice.below(4) {
            0 => next.kill(),
            1 => drop(next.ask(json!({"do": "abort"}))),
            _ => {
                for (name, address) in &all {
                    let mut claim = claim(name, address);
                    claim["do"] = json!("claim");
                    next.ask(claim);
                }
                next.ask(json!({"do": "ready"}));
                next.event("serving");
                assert_eq!(owner.exit_code(), Some(0));
                owner = next;
            }
        }
        scene.status_where(|status| status.takeover.is_none() && status.predecessor.is_none());
        for address in all.values() {
            assert_eq!(visit(address).pid, owner.pid());
        }
    }
    println!("{done} changes were made, {refused} refused");
    assert!(done > 0);
}
