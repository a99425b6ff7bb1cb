//! What people get wrong, and strangers do on purpose: each is named, and the owner serves on.

use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene, is_root, skip};
use crate::visitor::visit;

/// A user that is nobody's.
const STRANGER: u32 = 54_321;
/// Another.
const GUEST: u32 = 54_322;

/// How a start at this path fails at once.
#[track_caller]
fn refused(scene: &Scene, path: impl AsRef<std::path::Path>) -> Value {
    Puppet::new().refuse(scene.begin("1", json!({"path": path.as_ref()})))
}

/// How a claim fails in a start that is otherwise fine.
#[track_caller]
fn refused_claim(claim: Value) -> Value {
    let scene = Scene::new();
    let mut puppet = scene.warm("1", json!({}));
    let mut command = json!({"do": "claim"});
    crate::puppet::merge(&mut command, claim);
    let error = puppet.refuse(command);
    // A bad claim ends nothing: the start goes on.
    puppet.ask(json!({"do": "ready"}));
    puppet.event("serving");
    error
}

#[test]
fn a_path_that_is_too_long() {
    let scene = Scene::new();
    let error = refused(&scene, scene.path(&"x".repeat(108)));
    assert_eq!(error["code"], "path-too-long");
    assert!(error["hint"].as_str().unwrap().contains("107"));
    // One byte less than the limit works.
    let longest = scene.path(&"x".repeat(107 - scene.folder().as_os_str().len() - 1));
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", json!({"path": longest})));
    puppet.event("serving");
}

#[test]
fn a_path_without_a_folder() {
    let scene = Scene::new();
    let error = refused(&scene, scene.path("nowhere/handoff.sock"));
    assert_eq!(error["code"], "no-folder");
    assert!(error["hint"].as_str().unwrap().contains("mkdir"));
}

#[test]
fn something_else_is_at_the_path() {
    let scene = Scene::new();
    std::fs::write(scene.control(), "precious").unwrap();
    let error = refused(&scene, scene.control());
    assert_eq!(error["code"], "not-a-socket");
    assert_eq!(std::fs::read_to_string(scene.control()).unwrap(), "precious");
}

#[test]
fn a_symlink_is_at_the_path() {
    let scene = Scene::new();
    for target in [scene.path("dangling"), std::path::PathBuf::from("/dev/null")] {
        symlink(&target, scene.control()).unwrap();
        assert_eq!(refused(&scene, scene.control())["code"], "symlink");
        std::fs::remove_file(scene.control()).unwrap();
    }
    // As the lock file, too.
    symlink(scene.path("target"), scene.path("handoff.sock.lock")).unwrap();
    let mut puppet = Puppet::new();
    let answer = puppet.try_ask(scene.begin("1", json!({})));
    let error = if answer.get("error").is_some() { answer["error"].clone() } else { puppet.failure() };
    assert_eq!(error["code"], "symlink", "{error}");
    assert!(!scene.path("target").exists());
}

#[test]
fn a_socket_of_another_user_is_at_the_path() {
    if !is_root() {
        return skip("only root can give files away");
    }
    let scene = Scene::new();
    drop(std::os::unix::net::UnixListener::bind(scene.control()).unwrap());
    std::os::unix::fs::chown(scene.control(), Some(STRANGER), None).unwrap();
    assert_eq!(refused(&scene, scene.control())["code"], "not-ours");
    assert!(scene.control().exists());
}

#[test]
fn a_folder_that_others_can_write_to() {
    let scene = Scene::new();
    for mode in [0o777, 0o770, 0o1777] {
        std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(&scene, scene.control())["code"], "unsafe-folder", "{mode:o}");
    }
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", json!({"allow_shared_folder": true})));
    puppet.event("serving");
}

#[test]
fn a_folder_of_another_user() {
    if !is_root() {
        return skip("only root can give folders away");
    }
    let scene = Scene::new();
    std::os::unix::fs::chown(scene.folder(), Some(STRANGER), None).unwrap();
    assert_eq!(refused(&scene, scene.control())["code"], "unsafe-folder");
}

#[test]
fn a_name_twice() {
    let error = refused_claim(json!({"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}));
    assert_eq!(error["code"], "name-twice");
    let error = refused_claim(json!({"kind": "null", "name": "web"}));
    assert_eq!(error["code"], "name-twice");
}

#[test]
fn names_that_are_none() {
    for name in ["", "a\nb", "a\u{0}b", "\u{85}", &"x".repeat(256)] {
        let error = refused_claim(json!({"kind": "null", "name": name}));
        assert_eq!(error["code"], "bad-name", "{name:?}");
    }
    let scene = Scene::new();
    let mut puppet = scene.warm("1", json!({}));
    for name in ["x".repeat(255), "wéb 1/2".to_owned()] {
        puppet.ask(json!({"do": "claim", "kind": "null", "name": name}));
    }
}

#[test]
fn an_address_that_a_stranger_has() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let error = refused_claim(json!({"kind": "tcp", "name": "mine", "address": address}));
    assert_eq!(error["code"], "io");
    assert!(error["message"].as_str().unwrap().contains("mine"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("ss -ltnp"), "{error}");
}

#[test]
fn an_address_that_is_none() {
    let error = refused_claim(json!({"kind": "tcp", "name": "mine", "address": "not an address"}));
    assert_eq!(error["code"], "io");
    assert!(error["message"].as_str().unwrap().contains("mine"), "{error}");
}

#[test]
fn a_unix_address_that_is_too_long_or_in_use_or_something_else() {
    let scene = Scene::new();
    let long = scene.path(&"x".repeat(108));
    let error = refused_claim(json!({"kind": "unix", "name": "mine", "address": long}));
    assert_eq!(error["code"], "path-too-long", "{error}");
    let taken = scene.path("taken.sock");
    let _stranger = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let error = refused_claim(json!({"kind": "unix", "name": "mine", "address": taken}));
    assert_eq!(error["code"], "io", "{error}");
    let file = scene.path("file");
    std::fs::write(&file, "precious").unwrap();
    let error = refused_claim(json!({"kind": "unix", "name": "mine", "address": file}));
    assert!(error["code"] == "io" || error["code"] == "not-a-socket", "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn addresses_of_two_names_that_overlap() {
    let scene = Scene::new();
    let (_first, address) = scene.serve("1", json!({}));
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    // The predecessor has 127.0.0.1; the new version wants the wildcard for another name.
    let mut second = scene.warm("2", json!({}));
    for wide in ["0.0.0.0", "[::]", "127.0.0.1"] {
        let error = second.refuse(json!({
            "do": "claim", "kind": "tcp", "name": "all", "address": format!("{wide}:{port}"),
        }));
        assert_eq!(error["code"], "overlap", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("\"all\"") && message.contains("\"web\""), "{message}");
    }
    second.ask(json!({"do": "claim", "kind": "udp", "name": "dns", "address": format!("127.0.0.1:{port}")}));
}

#[test]
fn a_name_that_the_predecessor_has_as_another_kind() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({"claims": []}));
    let answer = second.try_ask(json!({"do": "claim", "kind": "udp", "name": "web", "address": "127.0.0.1:0"}));
    if answer.get("error").is_some() {
        assert_eq!(answer["error"]["code"], "other-kind", "{answer}");
    } else {
        // Bound anew, and said so.
        let report = second.ask(json!({"do": "report"}));
        assert_eq!(report["ok"]["entries"]["web"]["outcome"], "bound", "{report}");
        assert!(report["ok"]["entries"]["web"]["why"].as_str().unwrap().contains("tcp-listener"), "{report}");
    }
    second.ask(json!({"do": "drop"}));
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true);
}

#[test]
fn too_little_room_for_the_descriptors() {
    let scene = Scene::new();
    let (first, address) = scene.serve(
        "1",
        json!({"claims": [
            {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
            {"kind": "null", "name": "null", "count": 300},
        ]}),
    );
    let mut second = Puppet::new();
    second.ask(json!({"do": "limit", "soft": 64, "hard": 256}));
    let before = second.ask(json!({"do": "descriptors"}));
    second.ask(scene.begin("2", json!({})));
    let error = second.failure();
    assert_eq!(error["code"], "no-room", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("ulimit"), "{error}");
    assert_eq!(second.ask(json!({"do": "descriptors"})), before);
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn a_successor_of_another_user_finds_the_door_shut() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let Some(mut second) = Puppet::of_user(STRANGER) else { return };
    let answer = second.try_ask(scene.begin("2", json!({})));
    let error = if answer.get("error").is_some() { answer["error"].clone() } else { second.failure() };
    assert_eq!(error["code"], "denied", "{error}");
    assert!(error["message"].as_str().unwrap().contains("handoff.sock"), "{error}");
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn a_successor_whose_uid_is_not_on_the_list_is_a_stranger() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({"allow_uids": [GUEST]}));
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    // Past the access list, so that the credentials decide.
    std::fs::set_permissions(scene.control(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let Some(mut second) = Puppet::of_user(STRANGER) else { return };
    second.ask(scene.begin("2", json!({})));
    let error = second.failure();
    assert_eq!((&error["code"], &error["kind"]), (&json!("stranger"), &json!("Refused")), "{error}");
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn a_guest_on_the_list_takes_over_and_is_a_stranger_to_those_who_do_not_know_him() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"allow_uids": [GUEST]}));
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let Some(mut guest) = Puppet::of_user(GUEST) else { return };
    guest.ask(scene.begin("2", json!({"allow_uids": [0]})));
    guest.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, guest.pid());
    // Root itself does not take descriptors from just anybody.
    let mut third = Puppet::new();
    let answer = third.try_ask(scene.begin("3", json!({})));
    let error = if answer.get("error").is_some() { answer["error"].clone() } else { third.failure() };
    assert_eq!(error["code"], "stranger", "{error}");
    let mut fourth = Puppet::new();
    fourth.ask(scene.begin("4", json!({"allow_uids": [GUEST]})));
    fourth.event("serving");
    assert_eq!(guest.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, fourth.pid());
}

#[test]
fn a_predecessor_of_another_user_is_not_trusted() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    std::os::unix::fs::chown(scene.folder(), Some(STRANGER), None).unwrap();
    let Some(mut stranger) = Puppet::of_user(STRANGER) else { return };
    stranger.ask(scene.begin("1", json!({})));
    stranger.event("serving");
    assert_eq!(refused(&scene, scene.control())["code"], "unsafe-folder");
    let error = Puppet::new().refuse(scene.begin("2", json!({"allow_shared_folder": true})));
    assert_eq!(error["code"], "not-ours", "{error}");
    assert_eq!(stranger.ask(json!({"do": "is-owner"}))["ok"], true);
    let mut friend = Puppet::new();
    friend.ask(scene.begin("3", json!({"allow_uids": [STRANGER]})));
    friend.event("serving");
    assert_eq!(stranger.exit_code(), Some(0));
}

#[test]
fn a_removed_control_path_is_made_again() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    for _ in 0..3 {
        std::fs::remove_file(scene.control()).unwrap();
        // Followed by a question, so that the owner has looked at its folder.
        first.events();
        assert_eq!(scene.status().pid, first.pid());
        assert_eq!(std::fs::read_dir(scene.folder()).unwrap().count(), 2, "socket and lock file, nothing else");
    }
    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, second.pid());
    // The successor watches as well.
    std::fs::remove_file(scene.control()).unwrap();
    let mut second = second;
    second.events();
    assert_eq!(scene.status().pid, second.pid());
}

#[test]
fn something_else_in_place_of_the_control_path_is_left_alone() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mine = scene.path("mine");
    std::fs::write(&mine, "precious").unwrap();
    std::fs::rename(&mine, scene.control()).unwrap();
    first.events();
    assert_eq!(std::fs::read_to_string(scene.control()).unwrap(), "precious");
    assert_eq!(visit(&address).pid, first.pid());
    std::fs::remove_file(scene.control()).unwrap();
    first.events();
    assert_eq!(scene.status().pid, first.pid());
}

#[test]
fn an_idle_owner_wakes_for_nothing() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let (mut second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
    second.events();
    let switches = |pid: u32| -> u64 {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            total += line.unwrap().trim().parse::<u64>().unwrap();
        }
        total
    };
    // It answered a moment ago and goes to sleep now; once it sleeps, it sleeps on.
    assert!(second.is_silent_for(std::time::Duration::from_millis(300)));
    let before = switches(second.pid());
    assert!(second.is_silent_for(std::time::Duration::from_millis(1500)));
    assert_eq!(switches(second.pid()), before);
}
