//! Nobody gets in who was not let in: users, groups, namespaces, folders and files that a stranger prepared.
//!
//! As root these tests become other users for real. `setpriv` and `unshare` are util-linux's, `strace` Debian's own; what
//! is missing is said aloud.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::ctl::stage::CTL;
use crate::puppet::{PATIENCE, PID_NAMESPACE, Puppet, Scene, is_root, skip};
use crate::starting::settled;
use crate::strace::Strace;
use crate::visitor::visit;

/// A user that is nobody's.
const STRANGER: u32 = 54_331;
/// A user that is let in.
const GUEST: u32 = 54_332;
/// A group that is let in.
const CREW: u32 = 54_333;
/// What an unmapped user reads as.
const OVERFLOW: u32 = 65_534;

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The error with which a start fails, at once or a little later.
#[track_caller]
fn failed(puppet: &mut Puppet, command: Value) -> Value {
    let answer = puppet.try_ask(command);
    if answer.get("error").is_some() { answer["error"].clone() } else { puppet.failure() }
}

/// A scene through whose folder everybody may go.
fn open_scene() -> Option<Scene> {
    if !is_root() {
        skip("only root can be another user");
        return None;
    }
    let scene = Scene::new();
    set_mode(scene.folder(), 0o711);
    Some(scene)
}

/// A puppet of this user, in these supplementary groups.
fn puppet_in(uid: u32, groups: &str) -> Option<Puppet> {
    let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    Puppet::through(&["setpriv", &user, &group, &groups])
}

/// Runs a program as another user.
fn run_as(uid: u32, program: &[&str]) -> Option<Output> {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}")).arg("--clear-groups");
    match command.args(program).stdin(Stdio::null()).current_dir("/").env_remove("HEIRLOOM_SOCKET").output() {
        Ok(output) => Some(output),
        Err(error) => {
            skip(&format!("setpriv: {error}"));
            None
        }
    }
}

/// Whether this user can open this file to write to it.
fn can_open(uid: u32, path: &Path) -> Option<bool> {
    let script = format!("exec 3<>'{}'", path.display());
    run_as(uid, &["sh", "-c", &script]).map(|output| output.status.success())
}

// Credentials before the first byte.

/// The door is left open on purpose, so that the credentials alone decide; a stranger talks before he is accepted.
#[test]
fn a_strangers_bytes_are_never_read() {
    let Some(scene) = open_scene() else { return };
    let (mut first, address) = scene.serve("1", json!({}));
    set_mode(scene.control(), 0o666);
    let before = first.ask(json!({"do": "descriptors"}));
    let Some(strace) = Strace::show(first.pid(), "accept4,recvmsg,recvfrom,recvmmsg,readv,getsockopt,sendto,close")
    else {
        return;
    };
    first.freeze();
    let Some(mut stranger) = Puppet::of_user(STRANGER) else { return };
    stranger.ask(json!({"do": "knock", "path": scene.control()}));
    first.thaw();
    let answer = stranger.ask(json!({"do": "heard"}));
    let answer = answer["ok"].as_str().unwrap();
    assert!(answer.contains("stranger") && answer.contains(&STRANGER.to_string()), "{answer}");
    first.ask(json!({"do": "nothing"}));
    let calls = strace.leave();
    let accepted = calls.iter().position(|call| call.contains("accept4(") && !call.contains("EAGAIN")).unwrap();
    let asked = calls.iter().position(|call| call.contains("SO_PEERCRED")).unwrap();
    assert!(asked > accepted, "{calls:#?}");
    for call in ["recvmsg(", "recvfrom(", "recvmmsg(", "readv("] {
        assert!(!calls.iter().any(|line| line.contains(call)), "{call}: {calls:#?}");
    }
    assert_eq!(settled(&mut first, &before), before);
    assert_eq!(visit(&address).pid, first.pid());
}

/// Who is let in keeps his place, however many strangers knock.
#[test]
fn strangers_push_nobody_out() {
    let Some(scene) = open_scene() else { return };
    let (_first, _) = scene.serve("1", json!({}));
    let mut friends: Vec<_> = (0..64).map(|_| scene.client()).collect();
    for friend in &mut friends {
        friend.watch().unwrap();
        friend.next(Some(PATIENCE)).unwrap().unwrap();
    }
    set_mode(scene.control(), 0o666);
    for _ in 0..10 {
        let answer = run_as(STRANGER, &[CTL, "--json", "--socket", scene.control().to_str().unwrap(), "status"]);
        let Some(answer) = answer else { return };
        assert!(String::from_utf8_lossy(&answer.stdout).contains("stranger"), "{answer:?}");
    }
    for friend in &mut friends {
        // Silence: nothing has changed, and nobody has hung up.
        assert_eq!(friend.next(Some(std::time::Duration::ZERO)).unwrap(), None);
    }
}

/// The path itself is as it should be, and a stranger listens there: only the credentials of the connection tell.
#[test]
fn a_successor_says_nothing_to_a_stranger_who_bound_the_path_first() {
    let Some(scene) = open_scene() else { return };
    set_mode(scene.folder(), 0o777);
    let Some(mut stranger) = Puppet::of_user(STRANGER) else { return };
    stranger.ask(json!({"do": "lurk", "path": scene.control()}));
    set_mode(scene.folder(), 0o711);
    // The path of a stranger is not even connected to.
    let mut second = Puppet::new();
    let before = second.ask(json!({"do": "descriptors"}));
    assert_eq!(failed(&mut second, scene.begin("2", json!({})))["code"], "not-ours");
    chown(scene.control(), Some(0), Some(0)).unwrap();
    let strace = Strace::show(second.pid(), "connect,sendto,sendmsg,recvmsg,recvfrom");
    for (wants, more) in [("takeover", json!({})), ("rehearsal", json!({"rehearsal": true}))] {
        stranger.tell(&json!({"do": "caught"}));
        let error = failed(&mut second, scene.begin("2", more));
        assert_eq!((&error["code"], &error["kind"]), (&json!("stranger"), &json!("Stranger")), "{wants}: {error}");
        assert!(error["message"].as_str().unwrap().contains(&STRANGER.to_string()), "{error}");
        assert!(error["hint"].is_string(), "{error}");
        assert_eq!(stranger.answer()["ok"], 0, "{wants}");
    }
    if let Some(strace) = strace {
        let calls = strace.leave();
        assert!(calls.iter().any(|call| call.contains("connect(")), "{calls:#?}");
        for call in ["sendto(", "sendmsg(", "recvmsg(", "recvfrom("] {
            assert!(!calls.iter().any(|line| line.contains(call)), "{call}: {calls:#?}");
        }
    }
    second.ask(json!({"do": "drop"}));
    assert_eq!(settled(&mut second, &before), before);
    // As a friend he would have been heard.
    stranger.tell(&json!({"do": "caught"}));
    second.ask(scene.begin("2", json!({"allow_uids": [STRANGER], "start_ms": 1000})));
    assert!(stranger.answer()["ok"].as_u64().unwrap() > 0);
}

// Users and groups.

#[test]
fn a_guest_is_let_in_by_an_access_list_and_a_stranger_is_not() {
    let Some(scene) = open_scene() else { return };
    let (mut first, _) = scene.serve("1", json!({"allow_uids": [GUEST], "allow_gids": [CREW]}));
    let lock = scene.path("handoff.sock.lock");
    assert_eq!((mode(scene.control()), mode(&lock)), (0o660, 0o660));
    for (uid, wanted) in [(GUEST, true), (STRANGER, false)] {
        // Who can open the lock file can hold its locks, and write to it.
        let Some(can) = can_open(uid, &lock) else { return };
        assert_eq!(can, wanted, "uid {uid}");
    }
    let Some(mut stranger) = Puppet::of_user(STRANGER) else { return };
    let error = failed(&mut stranger, scene.begin("2", json!({})));
    assert_eq!(error["code"], "denied", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("allow_uid"), "{error}");
    let Some(mut guest) = Puppet::of_user(GUEST) else { return };
    guest.ask(scene.begin("2", json!({})));
    guest.event("serving");
    assert_eq!(first.exit_code(), Some(0));
}

/// There the credentials decide alone, and the lock file stays shut.
#[test]
fn a_filesystem_without_access_lists() {
    let Some(scene) = open_scene() else { return };
    let list = json!({"allow_uids": [GUEST]});
    let mut first = Puppet::new();
    let Some(failing) = Strace::fail(first.pid(), "setxattr,fsetxattr", "EOPNOTSUPP", "1+") else { return };
    first.ask(scene.begin("1", list.clone()));
    first.event("serving");
    drop(failing);
    assert_eq!((mode(scene.control()), mode(scene.path("handoff.sock.lock"))), (0o666, 0o600));
    let Some(mut stranger) = Puppet::of_user(STRANGER) else { return };
    assert_eq!(failed(&mut stranger, scene.begin("2", json!({})))["code"], "stranger");
    let Some(mut guest) = Puppet::of_user(GUEST) else { return };
    guest.ask(scene.begin("2", list));
    guest.event("serving");
    assert_eq!(first.exit_code(), Some(0));
}

/// The owner of the moment says who may come; what an older list let in is shut out again.
#[test]
fn the_list_of_the_new_owner_holds() {
    let Some(scene) = open_scene() else { return };
    let (_first, _) = scene.serve("1", json!({}));
    let lock = scene.path("handoff.sock.lock");
    let lists = [(json!([GUEST]), 0o660, true), (json!([CREW]), 0o660, false), (json!([]), 0o600, false)];
    for (version, (list, wanted, guest)) in lists.into_iter().enumerate() {
        let (_owner, _) = scene.serve(&version.to_string(), json!({"allow_uids": list}));
        assert_eq!((mode(scene.control()), mode(&lock)), (wanted, wanted), "{list}");
        let Some(can) = can_open(GUEST, &lock) else { return };
        assert_eq!(can, guest, "{list}");
    }
}

#[test]
fn a_group_counts_whether_it_is_the_first_or_one_of_many() {
    let Some(scene) = open_scene() else { return };
    let (mut owner, address) = scene.serve("0", json!({"allow_gids": [CREW]}));
    let others: Vec<String> = (60_000..60_100).chain([CREW]).map(|gid| gid.to_string()).collect();
    for groups in [CREW.to_string(), others.join(",")] {
        let Some(mut member) = puppet_in(STRANGER, &groups) else { return };
        member.ask(scene.begin("member", json!({"allow_gids": [CREW], "allow_uids": [STRANGER]})));
        member.event("serving");
        assert_eq!(owner.exit_code(), Some(0));
        // The other way round: who listens is in the group as well.
        let mut next = Puppet::new();
        next.ask(scene.begin("root", json!({"allow_gids": [CREW]})));
        next.event("serving");
        assert_eq!(member.exit_code(), Some(0));
        assert_eq!(visit(&address).pid, next.pid());
        owner = next;
    }
    set_mode(scene.control(), 0o666);
    let Some(mut outsider) = puppet_in(STRANGER, "60000,60001") else { return };
    let error = failed(&mut outsider, scene.begin("x", json!({})));
    assert_eq!((&error["code"], &error["kind"]), (&json!("stranger"), &json!("Refused")), "{error}");
    assert_eq!(visit(&address).pid, owner.pid());
}

/// What every unmapped user reads as is nobody, even to itself.
#[test]
fn uid_65534_is_nobodys_friend() {
    let Some(scene) = open_scene() else { return };
    let (mut first, _) = scene.serve("1", json!({"allow_uids": [OVERFLOW], "allow_gids": [OVERFLOW]}));
    set_mode(scene.control(), 0o666);
    let Some(mut nobody) = Puppet::of_user(OVERFLOW) else { return };
    assert_eq!(failed(&mut nobody, scene.begin("2", json!({})))["code"], "stranger");
    first.kill();
    // As the owner, neither to its like nor to root.
    std::fs::remove_file(scene.control()).unwrap();
    std::fs::remove_file(scene.path("handoff.sock.lock")).unwrap();
    set_mode(scene.folder(), 0o777);
    let error = failed(&mut nobody, scene.begin("3", json!({"allow_shared_folder": true})));
    assert_eq!(error["code"], "not-ours", "its own lock file: {error}");
}

#[test]
fn an_owner_that_gave_up_root_is_taken_over_from_by_its_new_user() {
    let Some(scene) = open_scene() else { return };
    let list = json!({"allow_uids": [GUEST]});
    let (mut first, address) = scene.serve("1", list.clone());
    first.ask(json!({"do": "become", "uid": GUEST}));
    for version in ["2", "3"] {
        let Some(mut next) = Puppet::of_user(GUEST) else { return };
        next.ask(scene.begin(version, list.clone()));
        next.event("serving");
        assert_eq!(first.exit_code(), Some(0));
        assert_eq!(visit(&address).pid, next.pid());
        first = next;
    }
    // And so it is by root.
    let (last, _) = scene.serve("4", list);
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, last.pid());
}

#[test]
fn an_owner_that_gave_up_root_and_let_nobody_in_says_so() {
    let Some(scene) = open_scene() else { return };
    let (mut first, address) = scene.serve("1", json!({}));
    first.ask(json!({"do": "become", "uid": GUEST}));
    let Some(mut second) = Puppet::of_user(GUEST) else { return };
    let error = failed(&mut second, scene.begin("2", json!({})));
    // Who may not write to the folder of root is told that, or that the door is shut.
    assert_eq!(error["code"], "denied", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("allow_uid"), "{error}");
    assert_eq!(visit(&address).pid, first.pid());
    let (third, _) = scene.serve("3", json!({"allow_uids": [GUEST]}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

// Namespaces.

#[test]
fn root_of_a_user_namespace_is_who_it_is_outside() {
    let Some(scene) = open_scene() else { return };
    let (first, address) = scene.serve("1", json!({}));
    let wrapper = ["unshare", "--user", "--map-root-user"];
    let socket = scene.control();
    let status = [CTL, "--json", "--socket", socket.to_str().unwrap(), "status"];
    let Some(shut) = run_as(GUEST, &[&wrapper[..], &status].concat()) else { return };
    let text = String::from_utf8_lossy(&shut.stdout).into_owned();
    if text.is_empty() {
        return skip(&format!("unshare --user: {}", String::from_utf8_lossy(&shut.stderr)));
    }
    assert_eq!(shut.status.code(), Some(1), "{text}");
    assert!(text.contains("\"denied\""), "{text}");
    set_mode(scene.control(), 0o666);
    let refused = run_as(GUEST, &[&wrapper[..], &status].concat()).unwrap();
    let error = serde_json::from_slice::<Value>(&refused.stdout).unwrap()["error"].clone();
    assert_eq!((refused.status.code(), &error["code"]), (Some(1), &json!("stranger")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(&GUEST.to_string()), "{error}");
    // A successor in there sees an owner without a number, which is nobody's friend either.
    let uid = format!("--reuid={GUEST}");
    let gid = format!("--regid={GUEST}");
    let wrapper = [&["setpriv", &uid, &gid, "--clear-groups"][..], &wrapper].concat();
    let Some(mut second) = Puppet::through(&wrapper) else { return };
    let error = failed(&mut second, scene.begin("2", json!({"allow_shared_folder": true, "allow_uids": [OVERFLOW]})));
    assert_eq!(error["code"], "not-ours", "{error}");
    assert_eq!(visit(&address).pid, first.pid());
}

/// The owner is root of a namespace of its own: all but its own user have no number there.
#[test]
fn an_owner_in_a_user_namespace_knows_its_own_and_nobody_else() {
    let Some(scene) = open_scene() else { return };
    chown(scene.folder(), Some(GUEST), Some(GUEST)).unwrap();
    let (uid, gid) = (format!("--reuid={GUEST}"), format!("--regid={GUEST}"));
    let outside = ["setpriv", &uid, &gid, "--clear-groups"];
    let inside = [&outside[..], &["unshare", "--user", "--map-root-user"]].concat();
    let Some(mut first) = Puppet::through(&inside) else { return };
    first.ask(scene.begin("1", json!({"allow_uids": [OVERFLOW]})));
    let address = first.event("serving")["addresses"]["web"].as_str().unwrap().to_owned();
    set_mode(scene.control(), 0o666);
    let socket = scene.control();
    let status = [CTL, "--json", "--socket", socket.to_str().unwrap(), "status"];
    for (uid, wanted) in [(GUEST, "generation"), (STRANGER, "stranger"), (0, "stranger")] {
        let answer = run_as(uid, &status).unwrap();
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(text.contains(wanted), "uid {uid}: {text}");
    }
    // Its own user takes over from outside, and another one from inside.
    let Some(mut second) = Puppet::through(&outside) else { return };
    second.ask(scene.begin("2", json!({})));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    let Some(mut third) = Puppet::through(&inside) else { return };
    third.ask(scene.begin("3", json!({})));
    third.event("serving");
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).generation, 3);
}

#[test]
fn a_successor_in_a_child_pid_namespace_takes_over_and_its_death_is_noticed() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exit": false}));
    first.ask(json!({"do": "lease"}));
    let Some(mut second) = Puppet::through(&PID_NAMESPACE) else { return };
    second.ask(scene.begin("2", json!({})));
    second.event("serving");
    first.event("leave");
    // Its own number, which is true in there: not to be taken for one of this namespace.
    let answer = visit(&address);
    assert_ne!(answer.pid, second.pid());
    assert_eq!(scene.status().pid, answer.pid);
    second.kill();
    first.event("resumed");
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn an_owner_in_a_child_pid_namespace_hands_over_and_its_death_is_noticed() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let Some(mut first) = Puppet::through(&PID_NAMESPACE) else { return };
    first.ask(scene.begin("1", json!({"exit": false})));
    let address = first.event("serving")["addresses"]["web"].as_str().unwrap().to_owned();
    // The kernel has no number for whoever is outside, so nothing in there may depend on it.
    let mut second = scene.warm("2", json!({}));
    first.kill();
    let status = scene.status_where(|status| status.pid == second.pid());
    assert_eq!(status.generation, 2);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(visit(&address).pid, second.pid());
    // A stranger without a number is refused all the same, and the log does not call him process 0.
    let Some(mut third) = Puppet::through(&PID_NAMESPACE) else { return };
    third.ask(scene.begin("3", json!({})));
    third.event("serving");
    set_mode(scene.folder(), 0o711);
    set_mode(scene.control(), 0o666);
    let status = [CTL, "--json", "--socket", scene.control().to_str().unwrap(), "status"].map(str::to_owned);
    let Some(answer) = run_as(STRANGER, &status.each_ref().map(String::as_str)) else { return };
    assert!(String::from_utf8_lossy(&answer.stdout).contains("stranger"), "{answer:?}");
    third.logged("(pid unknown)");
}

// The socket, its mode, and descriptors that nobody asked for.

/// By what the process asks of the kernel: a look at the file might come too late to see a wider mode.
#[test]
fn the_mode_is_set_before_the_socket_is_bound() {
    for guests in [json!([]), json!([GUEST])] {
        let scene = Scene::new();
        let mut first = Puppet::new();
        let calls = "fchmod,chmod,fchmodat,?fchmodat2,bind,listen,setxattr,fsetxattr,lsetxattr,umask";
        let Some(strace) = Strace::show(first.pid(), calls) else { return };
        first.ask(scene.begin("1", json!({"allow_uids": guests})));
        first.event("serving");
        let calls = strace.leave();
        let path = scene.control().display().to_string();
        let at = |what: &dyn Fn(&str) -> bool| calls.iter().position(|call| what(call));
        let bound = at(&|call| call.contains("bind(") && call.contains(&path)).unwrap();
        let socket = calls[bound].split("bind(").nth(1).unwrap().split(['<', ',']).next().unwrap();
        let set = at(&|call| call.contains(&format!("fchmod({socket}<")) && call.contains("0600")).unwrap();
        let listening = at(&|call| call.contains(&format!("listen({socket}<"))).unwrap();
        assert!(set < bound && bound < listening, "{calls:#?}");
        // Nothing that goes by the path alone, which may lead elsewhere by then, and nothing for all threads.
        for call in ["fchmodat", "umask(", "lsetxattr("] {
            assert!(!calls.iter().any(|line| line.contains(call)), "{call}: {calls:#?}");
        }
        for call in [" chmod(", " setxattr("] {
            let by_name = |line: &String| line.contains(call) && !line.contains("\"/proc/self/fd/");
            assert!(!calls.iter().any(by_name), "{call}: {calls:#?}");
        }
    }
}

/// Since Linux 6.16 the kernel refuses them at the sender, from the moment of the connection.
#[test]
fn descriptors_for_the_owner_are_refused_at_the_sender() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    for owner in 1..3 {
        let before = first.ask(json!({"do": "descriptors"}));
        first.freeze();
        let stream = UnixStream::connect(scene.control()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let send = || {
            let numbers = [file.as_fd().as_raw_fd(); 3];
            let rights = [ControlMessage::ScmRights(&numbers)];
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None)
        };
        // Before it was accepted.
        let early = send();
        first.thaw();
        first.ask(json!({"do": "nothing"}));
        let late = send();
        if is_before_6_16() {
            skip("SO_PASSRIGHTS needs Linux 6.16");
        } else {
            assert_eq!((early, late), (Err(Errno::EPERM), Err(Errno::EPERM)), "owner {owner}");
        }
        drop(stream);
        assert_eq!(settled(&mut first, &before), before);
        assert_eq!(visit(&address).pid, first.pid());
        let (mut next, _) = scene.serve("next", json!({}));
        assert_eq!(first.exit_code(), Some(0));
        next.event("predecessor-gone");
        first = next;
    }
}

fn is_before_6_16() -> bool {
    let uname = nix::sys::utsname::uname().unwrap();
    let release = uname.release().to_str().unwrap().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 16)
}

// Folders and files that somebody else prepared.

#[test]
fn a_folder_on_the_way_that_others_can_rename() {
    let scene = Scene::new();
    let (open, folder) = (scene.path("open"), scene.path("open/folder"));
    std::fs::create_dir_all(&folder).unwrap();
    set_mode(&folder, 0o700);
    let control = folder.join("handoff.sock");
    for (mode, wanted) in [(0o777, Some("unsafe-folder")), (0o770, Some("unsafe-folder")), (0o1777, None)] {
        set_mode(&open, mode);
        let mut puppet = Puppet::new();
        let command = scene.begin("1", json!({"path": control}));
        match wanted {
            Some(code) => {
                let error = failed(&mut puppet, command.clone());
                assert_eq!(error["code"], code, "{mode:o}: {error}");
                assert!(error["message"].as_str().unwrap().contains(open.to_str().unwrap()), "{error}");
                assert!(error["hint"].as_str().unwrap().contains("chmod"), "{error}");
                puppet.ask(scene.begin("1", json!({"path": control, "allow_shared_folder": true})));
            }
            None => drop(puppet.ask(command)),
        }
        puppet.event("serving");
        puppet.ask(json!({"do": "stop"}));
        assert_eq!(puppet.exit_code(), Some(0));
    }
}

#[test]
fn a_folder_or_a_link_on_the_way_that_belongs_to_a_stranger() {
    let Some(scene) = open_scene() else { return };
    let (theirs, folder, link) = (scene.path("theirs"), scene.path("theirs/folder"), scene.path("link"));
    std::fs::create_dir_all(&folder).unwrap();
    symlink(&folder, &link).unwrap();
    let code = |path: &Path| {
        let mut puppet = Puppet::new();
        failed(&mut puppet, scene.begin("1", json!({"path": path.join("handoff.sock")})))
    };
    chown(&theirs, Some(STRANGER), None).unwrap();
    for way in [&folder, &link] {
        let error = code(way);
        assert_eq!(error["code"], "unsafe-folder", "{error}");
        assert!(error["message"].as_str().unwrap().contains(theirs.to_str().unwrap()), "{error}");
    }
    chown(&theirs, Some(0), None).unwrap();
    std::os::unix::fs::lchown(&link, Some(STRANGER), None).unwrap();
    let error = code(&link);
    assert_eq!(error["code"], "unsafe-folder", "{error}");
    assert!(error["message"].as_str().unwrap().contains(link.to_str().unwrap()), "{error}");
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", json!({"path": folder.join("handoff.sock")})));
    puppet.event("serving");
}

/// What a stranger can prepare in a folder where he may write: each is refused, and nothing is written to it.
#[test]
fn a_lock_file_that_somebody_else_made() {
    let scene = Scene::new();
    let lock = scene.path("handoff.sock.lock");
    let precious = scene.path("precious");
    std::fs::write(&precious, "").unwrap();
    set_mode(&precious, 0o640);
    type Trick<'a> = (&'a str, &'a dyn Fn());
    let tricks: [Trick<'_>; 5] = [
        ("not-a-plain-file", &|| nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap()),
        ("not-a-plain-file", &|| std::fs::create_dir(&lock).unwrap()),
        ("not-a-plain-file", &|| drop(std::os::unix::net::UnixListener::bind(&lock).unwrap())),
        ("symlink", &|| symlink(&precious, &lock).unwrap()),
        ("linked", &|| std::fs::hard_link(&precious, &lock).unwrap()),
    ];
    for shared in [false, true] {
        for (code, trick) in tricks {
            trick();
            let mut puppet = Puppet::new();
            let error = failed(&mut puppet, scene.begin("1", json!({"allow_shared_folder": shared})));
            assert_eq!(error["code"], code, "{error}");
            assert!(error["message"].as_str().unwrap().contains("handoff.sock.lock"), "{error}");
            assert!(error["hint"].is_string(), "{error}");
            assert!(!scene.control().exists());
            assert_eq!((std::fs::read(&precious).unwrap().len(), mode(&precious)), (0, 0o640), "{code}");
            if lock.is_dir() { std::fs::remove_dir(&lock).unwrap() } else { std::fs::remove_file(&lock).unwrap() }
        }
    }
}

#[test]
fn a_lock_file_of_a_stranger() {
    let Some(scene) = open_scene() else { return };
    let lock = scene.path("handoff.sock.lock");
    std::fs::write(&lock, "").unwrap();
    chown(&lock, Some(STRANGER), None).unwrap();
    for (list, shared) in [(json!([]), false), (json!([]), true), (json!([GUEST]), true)] {
        let mut puppet = Puppet::new();
        let error = failed(&mut puppet, scene.begin("1", json!({"allow_uids": list, "allow_shared_folder": shared})));
        assert_eq!(error["code"], "not-ours", "{error}");
    }
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", json!({"allow_uids": [STRANGER]})));
    puppet.event("serving");
}

/// A link in place of the socket, at a moment when the owner opens it to its guests, must lead nowhere.
#[test]
fn a_path_that_was_swapped_is_not_opened_to_guests() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let (aside, other) = (scene.path("aside"), scene.path("other.sock"));
    let _other = std::os::unix::net::UnixListener::bind(&other).unwrap();
    set_mode(&other, 0o600);
    std::fs::write(scene.path("precious"), "").unwrap();
    set_mode(scene.path("precious"), 0o600);
    let mut second = scene.warm("2", json!({"allow_uids": [GUEST]}));
    // In one step each: an owner whose path is gone makes it again.
    std::fs::hard_link(scene.control(), &aside).unwrap();
    symlink(scene.path("precious"), scene.path("swap")).unwrap();
    std::fs::rename(scene.path("swap"), scene.control()).unwrap();
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    first.event("leave");
    assert_eq!(mode(scene.path("precious")), 0o600);
    std::fs::hard_link(&other, scene.path("swap")).unwrap();
    std::fs::rename(scene.path("swap"), scene.control()).unwrap();
    let mut third = Puppet::new();
    // The way in is kept by another name.
    third.ask(scene.begin("3", json!({"allow_uids": [GUEST], "start_ms": 500})));
    let _ = third.first_of(&["failed", "serving"]);
    assert_eq!(mode(&other), 0o600);
    assert!(std::fs::symlink_metadata(&other).unwrap().file_type().is_socket());
    assert_eq!(visit(&address).pid, second.pid());
}

// What `ctl` says.

#[test]
fn each_refusal_has_a_code_a_message_and_a_hint() {
    let Some(scene) = open_scene() else { return };
    let (_first, _) = scene.serve("1", json!({}));
    let other = |name: &str| {
        let folder = scene.path(name);
        std::fs::create_dir(&folder).unwrap();
        folder.join("handoff.sock")
    };
    let (shared, theirs, file, link, foreign) =
        (other("shared"), other("theirs"), other("file"), other("link"), other("foreign"));
    set_mode(shared.parent().unwrap(), 0o777);
    chown(theirs.parent().unwrap(), Some(STRANGER), None).unwrap();
    std::fs::write(&file, "").unwrap();
    symlink(scene.control(), &link).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&foreign).unwrap());
    chown(&foreign, Some(STRANGER), None).unwrap();
    let control = scene.control();
    let cases = [
        (0, &shared, "unsafe-folder"),
        (0, &theirs, "unsafe-folder"),
        (0, &file, "not-a-socket"),
        (0, &link, "symlink"),
        (0, &foreign, "not-ours"),
        (STRANGER, &control, "denied"),
    ];
    for (uid, path, code) in cases {
        let Some(answer) = run_as(uid, &[CTL, "--json", "--socket", path.to_str().unwrap(), "handoff"]) else { return };
        assert_told(&answer, code);
    }
    set_mode(&control, 0o666);
    for command in ["handoff", "status", "stop"] {
        let answer = run_as(STRANGER, &[CTL, "--json", "--socket", control.to_str().unwrap(), command]).unwrap();
        assert_told(&answer, "stranger");
    }
}

#[track_caller]
fn assert_told(answer: &Output, code: &str) {
    let told: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let error = &told["error"];
    assert_eq!((&error["code"], answer.status.code()), (&json!(code), Some(1)), "{told}");
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{told}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.len() > 10), "{told}");
}

// Processes that are not what they seem.

/// It shares lock, epoll and listeners with its parent, and must neither act nor clear anything away.
#[test]
fn a_forked_child_without_exec_is_told_so_and_leaves_everything_as_it_is() {
    let scene = Scene::new();
    let unix = scene.path("app.sock");
    let (mut first, address) = scene.serve(
        "1",
        json!({"claims": [
            {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
            {"kind": "unix", "name": "local", "address": unix},
        ]}),
    );
    // One that watches may be silent for as long as it takes.
    let mut client = scene.client();
    client.watch().unwrap();
    client.next(Some(PATIENCE)).unwrap().unwrap();
    let before = first.ask(json!({"do": "descriptors"}));
    assert_eq!(first.ask(json!({"do": "fork"}))["ok"], true);
    assert_eq!(first.event("forked")["codes"], json!(["forked", "forked", "forked", "forked"]));
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true);
    assert_eq!(first.ask(json!({"do": "descriptors"})), before);
    assert!(scene.control().exists() && unix.exists());
    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(client.status().unwrap().pid, first.pid(), "he is not hung up on");
    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, second.pid());
}
