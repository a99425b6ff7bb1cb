//! `ctl hold`: takeovers are refused with a reason, and whoever owns goes on with it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use heirloom::{Client, Drained, Error, Event, Handoff, Phase};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::json;

use super::stage::{Place, Service, eventually};
use crate::puppet::PATIENCE;

#[test]
fn a_hold_refuses_takeovers_with_the_reason_until_it_is_lifted() {
    let service = Service::start();
    let set = service.json(&["hold", "--reason", "disk\x1b[2J full"]);
    assert_eq!(set["hold"]["reason"], "disk[2J full");
    let status = service.json(&["status"]);
    let hold = &status["hold"];
    assert_eq!(hold["reason"], "disk[2J full");
    assert!(hold["until"].is_null() && hold["since"].as_str().unwrap().ends_with('Z'), "{hold}");
    assert_eq!(hold["by"]["uid"], nix::unistd::geteuid().as_raw());
    assert!(hold["by"]["pid"].is_u64(), "{hold}");
    assert!(service.run(&["status"]).stdout.contains("disk[2J full"));

    let run = service.run(&["--json", "handoff", "--commit"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("held")));
    let run = service.run(&["handoff", "--commit"]);
    assert!(run.code == 1 && run.stderr.contains("disk[2J full") && run.stderr.contains("--lift"), "{}", run.stderr);
    // Before anything is started.
    let mark = service.place.path("started");
    let run = service.run(&["upgrade", "--", "touch", mark.to_str().unwrap()]);
    assert!(run.code == 1 && run.stderr.lines().next().unwrap().contains("disk[2J full"), "{}", run.stderr);
    assert!(!mark.exists());
    let run = service.run(&["--json", "upgrade", "--", "true"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("held")));
    assert_eq!(service.run(&["handoff"]).code, 0, "a rehearsal is no takeover");

    assert!(service.json(&["hold", "--lift"])["hold"].is_null());
    assert!(service.json(&["status"])["hold"].is_null());
    assert!(service.json(&["hold", "--lift"])["hold"].is_null(), "nothing is left to lift");
    let _next = service.keeper(&[]);
}

#[test]
fn a_hold_ends_by_itself() {
    let service = Service::start();
    let set = service.json(&["hold", "--reason", "for a moment", "--for", "1h"]);
    let until: jiff::Timestamp = set["hold"]["until"].as_str().unwrap().parse().unwrap();
    let left = until.duration_since(jiff::Timestamp::now());
    assert!(left.as_secs() > 3000 && left.as_secs() <= 3600, "{left}");
    let run = service.run(&["handoff", "--commit"]);
    assert!(run.code == 1 && run.stderr.contains("try again in"), "{}", run.stderr);
    // Another takes its place.
    service.json(&["hold", "--reason", "for a blink", "--for", "50ms"]);
    eventually(|| service.json(&["status"])["hold"].is_null().then_some(()));
    let _next = service.keeper(&[]);
}

#[test]
fn a_hold_calls_off_a_takeover_that_is_not_ready() {
    let service = Service::start();
    let starting = Handoff::at(&service.place.socket).app_version("two").start().unwrap();
    service.place.status_where(|status| status.takeover.is_some());
    service.json(&["hold", "--reason", "incident 7"]);
    let failed = starting.ready().unwrap_err();
    let Error::GaveUp(why) = &failed else { panic!("{failed}") };
    assert_eq!((why.code.as_str(), why.message.as_str()), ("held", "incident 7"));
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

#[test]
fn an_upgrade_says_that_a_hold_came_in_between() {
    let service = Service::start();
    let mut upgrade = service.spawn(&["--json", "upgrade", "--", "sleep", "1000"]);
    // Its log is there before its program is.
    let log = PathBuf::from(format!("{}.log", service.place.socket.display()));
    eventually(|| log.exists().then_some(()));
    service.json(&["hold", "--reason", "incident 8"]);
    let object = upgrade.object();
    assert_eq!((upgrade.code(), &object["error"]["code"]), (1, &json!("held")), "{object}");
    let message = object["error"]["message"].as_str().unwrap();
    assert!(message.contains("incident 8"), "{message}");
    assert_eq!(service.status().generation, 1);
}

/// It is too late to call the takeover off: the new owner goes on with the hold.
#[test]
fn a_hold_after_ready_goes_on_in_the_new_owner() {
    let place = Place::new();
    let mut serving = Handoff::at(&place.socket).exclusive(true).start().unwrap().ready().unwrap();
    let mut next = place.spawn(&["handoff", "--commit"]);
    let mut ask = None;
    while serving.left().is_none() {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        assert!(poll(&mut [PollFd::new(serving.as_fd(), PollFlags::POLLIN)], timeout).unwrap() > 0);
        while let Some(event) = serving.process().unwrap() {
            if let Event::Release = event {
                ask = Some(place.spawn(&["hold", "--reason", "incident 6", "--for", "1h"]));
            }
        }
        if ask.is_some() && serving.status().hold.is_some() && serving.status().phase == Phase::HandingOver {
            serving.released().unwrap();
        }
    }
    assert!(matches!(serving.drain(), Ok(Drained::Done(_))));
    let hold = place.status_where(|status| status.generation == 2).hold.unwrap();
    assert_eq!(hold.reason, "incident 6");
    assert!(hold.left_ms.is_some_and(|left| left > 3_000_000 && left <= 3_600_000), "{hold:?}");
    // Its answer was on the way when the owner left.
    assert_eq!(ask.unwrap().code(), 0);
    assert_eq!(place.run(&["stop"]).code, 0);
    assert_eq!(next.code(), 0);
}

/// Who drains hears what its successor is told, and goes on with it should that one die.
#[test]
fn a_hold_goes_on_in_a_predecessor_that_takes_back() {
    let service = Service::start();
    let _in_flight = service.hold();
    eventually(|| (service.status().in_flight == 1).then_some(()));
    let mut second = service.keeper(&[]);
    // The first drains, and hears what its successor is told.
    service.json(&["hold", "--reason", "incident 9", "--for", "1h"]);
    assert_eq!(service.json(&["status"])["generation"], 2);
    second.signal(Signal::SIGKILL);
    let again = service.place.status_where(|status| status.generation == 3);
    let hold = again.hold.unwrap();
    assert_eq!(hold.reason, "incident 9");
    assert!(hold.left_ms.is_some_and(|left| left > 3_000_000 && left <= 3_600_000), "{hold:?}");
    assert_eq!(hold.by.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(service.run(&["handoff", "--commit"]).code, 1);

    let mut client = Client::connect(&service.place.socket, PATIENCE).unwrap();
    client.hold("another", Some(Duration::MAX)).unwrap();
    let left = client.status().unwrap().hold.unwrap().left_ms;
    assert!(left.is_none_or(|left| left > u64::MAX / 2), "{left:?}");
    assert!(service.json(&["status"])["hold"]["until"].is_null(), "later than any calendar");
    assert_eq!(service.run(&["status"]).code, 0);
    client.lift().unwrap();
    assert_eq!(client.status().unwrap().hold, None);
}

#[test]
fn a_hold_needs_a_reason_or_a_lift() {
    let service = Service::start();
    let wrong: [&[&str]; 5] = [
        &["hold"],
        &["hold", "--reason", ""],
        &["hold", "--reason", "x", "--lift"],
        &["hold", "--lift", "--for", "1s"],
        &["hold", "--for", "1s"],
    ];
    for arguments in wrong {
        assert_eq!(service.run(arguments).code, 2, "{arguments:?}");
    }
    service.json(&["hold", "--reason", "x"]);
    assert_eq!(service.run(&["stop"]).code, 0, "a stop is no takeover");
    assert_eq!(service.run(&["hold", "--lift"]).code, 3);
}
