//! What systemd passes and is told, with a stand-in for it: a socket that receives what a service manager would. The units
//! themselves run under a real one in `.ci/systemd`.

use std::io::IoSliceMut;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::ctl::stage::eventually;
use crate::puppet::{PATIENCE, Puppet, ROLE, Scene, skip};
use crate::recorded::adopt;
use crate::visitor::{answer, answer_unix, is_listening, is_listening_unix, visit};

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One datagram.
#[derive(Debug)]
struct Word {
    text: String,
    descriptor: Option<OwnedFd>,
}

impl Manager {
    fn new(scene: &Scene, name: &str) -> Manager {
        let path = scene.path(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, path }
    }

    #[track_caller]
    fn word(&self) -> Word {
        self.try_word().expect("the manager was told nothing more")
    }

    fn try_word(&self) -> Option<Word> {
        let mut bytes = [0; 4096];
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
        let mut descriptors = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                descriptors.extend(numbers.into_iter().map(adopt));
            }
        }
        assert!(descriptors.len() <= 1, "more than one descriptor under one name");
        let length = message.bytes;
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        Some(Word { text, descriptor: descriptors.pop() })
    }

    /// The next word that is no status.
    #[track_caller]
    fn deed(&self) -> Word {
        loop {
            let word = self.word();
            if !word.text.starts_with("STATUS=") {
                return word;
            }
        }
    }

    /// The next word must be this.
    #[track_caller]
    fn hears(&self, text: &str) {
        assert_eq!(self.word().text, text);
    }

    /// The next word that is no status must be this.
    #[track_caller]
    fn does(&self, text: &str) {
        assert_eq!(self.deed().text, text);
    }

    /// Everything that waits, when nobody is left to say more.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| self.try_word()).map(|word| word.text).collect()
    }
}

/// A puppet with descriptors from 3 on, in a program that systemd would have started so.
fn passed(descriptors: Vec<OwnedFd>, names: Option<&str>, manager: Option<&Manager>) -> Puppet {
    passed_with(descriptors, names, manager, &[])
}

fn passed_with(
    descriptors: Vec<OwnedFd>,
    names: Option<&str>,
    manager: Option<&Manager>,
    variables: &[(&str, &str)],
) -> Puppet {
    Puppet::with(|command| {
        // Only the process itself knows its pid before the program runs.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "LISTEN_PID=${LISTEN_PID:-$$} exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args()).env(ROLE, "server");
        shell.env("LISTEN_FDS", descriptors.len().to_string());
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell.env_remove("LISTEN_FDNAMES").env_remove("NOTIFY_SOCKET").envs(variables.iter().copied());
        if let Some(names) = names {
            shell.env("LISTEN_FDNAMES", names);
        }
        if let Some(manager) = manager {
            shell.env("NOTIFY_SOCKET", &manager.path);
        }
        let mappings = (3..).zip(descriptors).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        shell.fd_mappings(mappings).unwrap();
        *command = shell;
    })
    .unwrap()
}

/// A puppet that is told where the manager is, and nothing else.
fn told(manager: &Manager, variables: &[(&str, &str)]) -> Puppet {
    Puppet::with(|command| {
        command.env("NOTIFY_SOCKET", &manager.path).envs(variables.iter().copied());
    })
    .unwrap()
}

/// Begins with systemd, and waits until it serves.
#[track_caller]
fn serve(puppet: &mut Puppet, scene: &Scene, version: &str, claims: Value) -> Value {
    puppet.ask(scene.begin(version, json!({"systemd": true, "claims": claims})));
    puppet.event("serving")
}

fn web(address: &str) -> Value {
    json!([{"kind": "tcp", "name": "web", "address": address}])
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[track_caller]
fn report(puppet: &mut Puppet) -> Value {
    puppet.ask(json!({"do": "report"}))["ok"]["entries"].clone()
}

/// Whether this process is in a unit itself, and its puppets with it.
fn in_a_unit() -> bool {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default().contains(".service")
}

/// A control group that looks like a unit's.
struct Unit(PathBuf);

impl Unit {
    fn new(name: &str) -> Option<Unit> {
        let hierarchy = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"]
            .into_iter()
            .find(|folder| PathBuf::from(folder).join("cgroup.procs").exists())?;
        let folder = PathBuf::from(hierarchy).join(format!("{name}-{}.service", std::process::id()));
        match std::fs::create_dir(&folder) {
            Ok(()) => Some(Unit(folder)),
            Err(error) => {
                skip(&format!("cannot make {}: {error}", folder.display()));
                None
            }
        }
    }

    fn takes(&self, puppet: &Puppet) {
        std::fs::write(self.0.join("cgroup.procs"), puppet.pid().to_string()).unwrap();
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Empty a moment after its last process has ended.
        let end = Instant::now() + PATIENCE;
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_life_is_told_in_order_and_its_entries_are_parked() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut puppet = told(&manager, &[]);
    let serving = serve(&mut puppet, &scene, "1", web("127.0.0.1:0"));
    manager.hears("STATUS=starting: generation 1, version 1");
    let parked = manager.word();
    assert_eq!(parked.text, "FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    let parked = TcpListener::from(parked.descriptor.unwrap());
    assert_eq!(json!(parked.local_addr().unwrap().to_string()), serving["addresses"]["web"]);
    manager.hears("READY=1");
    manager.hears("STATUS=serving: generation 1, version 1");

    // A name that the store does not allow.
    puppet.ask(json!({"do": "claim", "kind": "tcp", "name": "a:b", "address": "127.0.0.1:0"}));
    manager.hears("FDSTORE=1\nFDNAME=heirloom.a%3Ab\nFDPOLL=0");
    puppet.ask(json!({"do": "remove", "name": "a:b"}));
    manager.hears("FDSTOREREMOVE=1\nFDNAME=heirloom.a%3Ab");
    // A name that it has no room for.
    puppet.ask(json!({"do": "claim", "kind": "tcp", "name": "x".repeat(255), "address": "127.0.0.1:0"}));

    puppet.ask(json!({"do": "stop"}));
    puppet.event("drained");
    manager.hears("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000");
    manager.hears("STATUS=stopping: generation 1, version 1");
    assert_eq!(puppet.exit_code(), Some(0));
    // What is parked stays: systemd empties the store of a unit that stays stopped.
    assert_eq!(manager.rest(), Vec::<String>::new());
}

#[test]
fn who_is_not_asked_to_reads_nothing_and_says_nothing() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let (socket, address) = listener();
    let watched = [("WATCHDOG_USEC", "1000")];
    let mut puppet = passed_with(vec![socket.into()], Some("web"), Some(&manager), &watched);
    let error = {
        puppet.ask(scene.begin("1", json!({"claims": web(&address)})));
        puppet.failure()
    };
    // The descriptor is there, and nobody has touched it.
    assert_eq!(error["code"], "io", "{error}");
    let inheritable = puppet.ask(json!({"do": "inheritable"}))["ok"].clone();
    assert!(inheritable.as_array().unwrap().iter().any(|line| line.as_str().unwrap().starts_with("3 socket:")));
    assert_eq!(manager.rest(), Vec::<String>::new());
}

#[test]
fn a_warm_up_asks_for_time_and_a_rehearsal_says_nothing() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut first = told(&manager, &[]);
    first.ask(scene.begin("1", json!({"systemd": true, "ready": false})));
    first.event("started");
    // Two of these in a moment are one.
    first.ask(json!({"do": "progress", "text": "loading\nREADY=1"}));
    first.ask(json!({"do": "progress", "text": "loading on"}));
    manager.hears("STATUS=starting: generation 1, version 1");
    manager.hears("EXTEND_TIMEOUT_USEC=60000000");
    manager.hears("STATUS=starting: loading READY=1");
    first.ask(json!({"do": "ready"}));
    first.event("serving");
    assert!(manager.word().text.starts_with("FDSTORE=1"));
    manager.hears("READY=1");
    manager.hears("STATUS=serving: generation 1, version 1");
    let other = Manager::new(&scene, "other");
    let mut look = told(&other, &[]);
    look.ask(scene.begin("2", json!({"systemd": true, "rehearsal": true})));
    look.event("started");
    look.ask(json!({"do": "drop"}));
    assert_eq!(other.rest(), Vec::<String>::new());
}

#[test]
fn a_successor_in_another_unit_is_nobodys_main_process() {
    if in_a_unit() {
        return skip("the tests run in a unit, so all puppets do");
    }
    let scene = Scene::new();
    let (blue, green) = (Manager::new(&scene, "blue"), Manager::new(&scene, "green"));
    let mut old = told(&blue, &[]);
    serve(&mut old, &scene, "1", web("127.0.0.1:0"));
    old.ask(json!({"do": "lease"}));
    let mut new = told(&green, &[("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")]);
    serve(&mut new, &scene, "2", web("127.0.0.1:0"));
    old.event("leave");
    // Its own unit is told that it drains, and ends with it.
    while blue.word().text != "STATUS=draining: generation 1, version 1" {}
    green.hears("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    green.hears("READY=1");
    green.hears("STATUS=serving: generation 2, version 2");
    // It dies, and the old one is the main process of its unit, as it always was.
    new.kill();
    old.event("resumed");
    blue.hears("STATUS=serving: generation 3, version 1");
    assert_eq!(green.rest(), Vec::<String>::new(), "a watchdog of somebody else was served");
    old.ask(json!({"do": "end-lease"}));
    old.ask(json!({"do": "stop"}));
    blue.does("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000");
    assert_eq!(old.exit_code(), Some(0));
}

#[test]
fn a_stop_that_finds_a_drain_asks_for_the_time_that_is_left() {
    if in_a_unit() {
        return skip("the tests run in a unit, so all puppets do");
    }
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut old = told(&manager, &[]);
    serve(&mut old, &scene, "1", web("127.0.0.1:0"));
    old.ask(json!({"do": "lease"}));
    let (_new, _) = scene.serve("2", json!({}));
    old.event("leave");
    old.ask(json!({"do": "cancel"}));
    manager.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    manager.does("READY=1");
    let asked = manager.deed().text;
    let microseconds: u64 = asked.strip_prefix("EXTEND_TIMEOUT_USEC=").expect(&asked).parse().unwrap();
    assert!((5_000_000..=35_000_000).contains(&microseconds), "{asked}");
    old.ask(json!({"do": "end-lease"}));
    assert_eq!(old.exit_code(), Some(0));
}

/// More than the queue of a datagram socket holds: the owner serves meanwhile, and goes on when the manager does.
#[test]
fn a_manager_that_reads_later_hears_everything() {
    const MANY: usize = 1200;
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut puppet = told(&manager, &[]);
    let claims = json!([
        {"kind": "null", "name": "null", "count": MANY},
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
    ]);
    let serving = serve(&mut puppet, &scene, "1", claims);
    assert_eq!(visit(serving["addresses"]["web"].as_str().unwrap()).pid, puppet.pid());
    for number in 0..MANY {
        manager.does(&format!("FDSTORE=1\nFDNAME=heirloom.null-{number:04}\nFDPOLL=0"));
    }
    manager.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    manager.hears("READY=1");
}

/// More than is kept for a manager that reads nothing: that this process is ready is not among what is dropped.
#[test]
fn a_manager_hears_that_a_service_with_very_many_entries_is_ready() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut puppet = told(&manager, &[]);
    puppet.ask(json!({"do": "limit", "soft": 20_000, "hard": 20_000}));
    serve(&mut puppet, &scene, "1", json!([{"kind": "null", "name": "null", "count": 9000}]));
    puppet.logged("what it would be told is dropped");
    let mut parked = 0;
    loop {
        match manager.deed().text {
            text if text.starts_with("FDSTORE=1") => parked += 1,
            text => break assert_eq!(text, "READY=1"),
        }
    }
    assert!(parked > 8000 && parked < 9000, "{parked}");
}

#[test]
fn inside_one_unit_the_main_pid_follows_the_owner() {
    let Some(unit) = Unit::new("heirloom-inside") else { return };
    let scene = Scene::new();
    let (first, second) = (Manager::new(&scene, "first"), Manager::new(&scene, "second"));
    let mut old = told(&first, &[]);
    unit.takes(&old);
    serve(&mut old, &scene, "1", web("127.0.0.1:0"));
    first.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    first.does("READY=1");

    // An attempt that comes to nothing.
    let mut lost = told(&second, &[]);
    unit.takes(&lost);
    lost.ask(scene.begin("x", json!({"systemd": true, "ready": false})));
    lost.event("started");
    assert!(first.deed().text.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    lost.kill();
    first.does(&format!("READY=1\nMAINPID={}", old.pid()));

    // The owner takes back what a successor in its unit had, and says so.
    old.ask(json!({"do": "lease"}));
    let mut brief = told(&second, &[]);
    unit.takes(&brief);
    serve(&mut brief, &scene, "y", web("127.0.0.1:0"));
    assert!(first.deed().text.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    first.does(&format!("READY=1\nMAINPID={}", brief.pid()));
    first.does("BARRIER=1");
    second.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    second.does(&format!("READY=1\nMAINPID={}", brief.pid()));
    old.event("leave");
    brief.kill();
    old.event("resumed");
    first.does(&format!("READY=1\nMAINPID={}", old.pid()));
    first.does("FDSTOREREMOVE=1\nFDNAME=heirloom.web");
    first.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    old.ask(json!({"do": "end-lease"}));

    // One that succeeds, and was not started by systemd: the watchdog's variables name another process.
    let watched = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")];
    let mut new = told(&second, &watched);
    unit.takes(&new);
    serve(&mut new, &scene, "2", web("127.0.0.1:0"));
    assert!(first.deed().text.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    let main = format!("READY=1\nMAINPID={}", new.pid());
    first.does(&main);
    let barrier = first.deed();
    assert_eq!(barrier.text, "BARRIER=1");
    while second.deed().text != main {}
    for _ in 0..3 {
        second.does("WATCHDOG=1");
    }
    // Nothing is in flight, and it stays until the manager knows. After 5 s it would go all the same.
    old.event("leave");
    assert!(old.is_silent_for(Duration::from_millis(300)), "it left before the manager had read who follows");
    let before = Instant::now();
    drop(barrier);
    old.event("drained");
    assert!(before.elapsed() < Duration::from_secs(4), "it was the deadline that ended it");
    assert_eq!(old.exit_code(), Some(0));
    assert_eq!(first.rest(), Vec::<String>::new(), "who has left is silent");
    new.kill();
}

#[test]
fn a_watchdog_is_served_as_long_as_the_loop_runs() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let mut puppet = told(&manager, &[("WATCHDOG_USEC", "200000")]);
    serve(&mut puppet, &scene, "1", web("127.0.0.1:0"));
    manager.does("FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    manager.does("READY=1");
    let begin = Instant::now();
    for _ in 0..4 {
        manager.does("WATCHDOG=1");
    }
    // The first at once, the others at half the time each.
    assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}", begin.elapsed());
    puppet.freeze();
    while manager.socket.set_read_timeout(Some(Duration::from_millis(400))).is_ok() && manager.try_word().is_some() {}
    puppet.thaw();
    manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    manager.does("WATCHDOG=1");
}

#[test]
fn activation_is_taken_by_name_then_by_address_and_checked() {
    let scene = Scene::new();
    let (web_socket, web_address) = listener();
    let (second, second_address) = listener();
    let (other, other_address) = listener();
    let (wrong, wrong_address) = listener();
    let unix_path = scene.path("app.sock");
    let unix = UnixListener::bind(&unix_path).unwrap();
    let connection = TcpStream::connect(&web_address).unwrap();
    // It waits from before the start on.
    let waiting = TcpStream::connect(&web_address).unwrap();
    let descriptors = vec![
        web_socket.into(),
        second.into(),
        other.into(),
        wrong.into(),
        unix.into(),
        connection.try_clone().unwrap().into(),
    ];
    let mut puppet = passed(descriptors, Some("web:web:other.socket:admin:app:busy"), None);
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": web_address},
        {"kind": "tcp", "name": "web#1", "address": second_address},
        // Called otherwise by systemd: nobody else could bind that address.
        {"kind": "tcp", "name": "other", "address": other_address},
        {"kind": "tcp", "name": "admin", "address": "127.0.0.1:0"},
        {"kind": "udp", "name": "app", "address": "127.0.0.1:0"},
        {"kind": "tcp", "name": "busy", "address": "127.0.0.2:0"},
    ]);
    // "admin" is at another port of the same address: it is the same where any port will do.
    let serving = serve(&mut puppet, &scene, "1", claims);
    assert_eq!(serving["addresses"]["admin"], json!(wrong_address));
    let report = report(&mut puppet);
    let activated = |name: &str| json!({"outcome": "activated", "name": name});
    assert_eq!(report["web"], activated("web"));
    assert_eq!(report["web#1"], activated("web"));
    assert_eq!(report["other"], activated("other.socket"));
    assert_eq!(report["admin"], activated("admin"));
    let why = |name: &str| report[name]["why"].as_str().unwrap_or_default().to_owned();
    assert_eq!(why("app"), "the socket activation has unix stream", "{report}");
    assert_eq!(why("busy"), "the socket activation has a connection", "{report}");
    let pid = puppet.pid();
    assert_eq!(answer(waiting).pid, pid);
    assert_eq!(visit(&second_address).pid, pid);
    // As if it had made them itself.
    assert_eq!(puppet.ask(json!({"do": "socket", "name": "web"}))["ok"]["nonblocking"], true);
    let inheritable = puppet.ask(json!({"do": "inheritable"}))["ok"].clone();
    let sockets = inheritable.as_array().unwrap().iter().filter(|line| line.as_str().unwrap().contains("socket:"));
    assert_eq!(sockets.count(), 0, "{inheritable}");
    // What nobody claimed is closed.
    drop(connection);
    eventually(|| (!is_listening_unix(&unix_path)).then_some(()));
}

#[test]
fn descriptors_without_names_are_found_by_address() {
    let scene = Scene::new();
    let ((one, one_address), (two, two_address)) = (listener(), listener());
    for names in [None, Some("x")] {
        let copies = vec![one.try_clone().unwrap().into(), two.try_clone().unwrap().into()];
        let mut puppet = passed(copies, names, None);
        let claims = json!([
            {"kind": "tcp", "name": "one", "address": one_address},
            {"kind": "tcp", "name": "two", "address": two_address},
        ]);
        serve(&mut puppet, &scene, "1", claims);
        let report = report(&mut puppet);
        assert_eq!(report["one"], json!({"outcome": "activated", "name": names.unwrap_or("unknown")}));
        assert_eq!(report["two"], json!({"outcome": "activated", "name": "unknown"}));
        assert_eq!(visit(&two_address).pid, puppet.pid());
        puppet.ask(json!({"do": "stop"}));
        assert_eq!(puppet.exit_code(), Some(0));
    }
}

#[test]
fn descriptors_for_another_process_are_left_alone() {
    let scene = Scene::new();
    let (socket, address) = listener();
    let mut puppet = passed_with(vec![socket.into()], Some("web"), None, &[("LISTEN_PID", "1")]);
    serve(&mut puppet, &scene, "1", web("127.0.0.1:0"));
    assert_eq!(report(&mut puppet)["web"], json!({"outcome": "bound", "why": "first of its family"}));
    let inheritable = puppet.ask(json!({"do": "inheritable"}))["ok"].clone();
    assert!(inheritable.to_string().contains("3 socket:"), "{inheritable}");
    TcpStream::connect(address).unwrap();
}

/// The whole of it: parked, killed, and back with what waited meanwhile.
#[test]
fn a_crash_brings_everything_back_from_the_store() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let claims = json!([
        {"kind": "memfd", "name": "notes", "content": "all that I know"},
        {"kind": "unix", "name": "app", "address": scene.path("app.sock")},
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
    ]);
    let mut first = told(&manager, &[]);
    let serving = serve(&mut first, &scene, "1", claims);
    let address = serving["addresses"]["web"].as_str().unwrap().to_owned();
    let mut store = Vec::new();
    for name in ["app", "notes", "web"] {
        let word = manager.deed();
        assert_eq!(word.text, format!("FDSTORE=1\nFDNAME=heirloom.{name}\nFDPOLL=0"));
        store.push(word.descriptor.unwrap());
    }
    first.kill();
    let waiting = TcpStream::connect(&address).unwrap();
    let waiting_unix = UnixStream::connect(scene.path("app.sock")).unwrap();

    // systemd passes the store after the sockets; one of these has the name of an entry that the store has, too.
    let (fresh, _) = listener();
    store.insert(0, fresh.into());
    let claims = json!([
        {"kind": "memfd", "name": "notes", "content": "nothing"},
        {"kind": "unix", "name": "app", "address": scene.path("app.sock")},
        {"kind": "tcp", "name": "web", "address": address},
    ]);
    let mut second = passed(store, Some("web:heirloom.app:heirloom.notes:heirloom.web"), Some(&manager));
    let serving = serve(&mut second, &scene, "2", claims);
    assert_eq!(serving["generation"], 2);
    let report = report(&mut second);
    for name in ["app", "notes", "web"] {
        assert_eq!(report[name], json!({"outcome": "restored"}), "{report}");
    }
    assert_eq!(second.ask(json!({"do": "read", "name": "notes"}))["ok"], "all that I know");
    assert_eq!(answer(waiting).generation, 2);
    assert_eq!(answer_unix(waiting_unix).generation, 2);
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(!scene.path("app.sock").exists());
}

#[test]
fn what_the_store_has_and_nobody_wants_leaves_it() {
    let scene = Scene::new();
    let manager = Manager::new(&scene, "notify");
    let ((web_socket, web_address), (gone, _), (path, stale)) = (listener(), listener(), {
        let path = scene.path("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (path, listener)
    });
    let mut puppet = passed(
        vec![web_socket.into(), gone.into(), stale.into()],
        Some("heirloom.web:heirloom.gone:heirloom.app"),
        Some(&manager),
    );
    let port = web_address.rsplit(':').next().unwrap();
    let claims = json!([
        // Its address has changed, and overlaps the one before.
        {"kind": "tcp", "name": "web", "address": format!("0.0.0.0:{port}")},
        // Its path was removed: nobody could reach it.
        {"kind": "unix", "name": "app", "address": path},
    ]);
    serve(&mut puppet, &scene, "1", claims);
    let report = report(&mut puppet);
    assert_eq!(
        report["gone"],
        json!({"outcome": "dropped", "why": "the file descriptor store had it, and nobody claimed it"})
    );
    assert_eq!(report["web"]["why"], json!(format!("the file descriptor store has {web_address}")));
    let why = report["app"]["why"].as_str().unwrap().to_owned();
    assert!(why.ends_with("app.sock, which is not there any more"), "{why}");
    // At once, since the bind waits for it.
    manager.does("FDSTOREREMOVE=1\nFDNAME=heirloom.web");
    let mut words: Vec<String> = (0..4).map(|_| manager.deed().text).collect();
    words[..2].sort();
    assert_eq!(words[0], "FDSTOREREMOVE=1\nFDNAME=heirloom.app");
    assert_eq!(words[1], "FDSTOREREMOVE=1\nFDNAME=heirloom.gone");
    assert_eq!(words[2], "FDSTORE=1\nFDNAME=heirloom.app\nFDPOLL=0");
    assert_eq!(words[3], "FDSTORE=1\nFDNAME=heirloom.web\nFDPOLL=0");
    assert_eq!(visit(&format!("127.0.0.1:{port}")).pid, puppet.pid());
}

/// What a socket unit listens on stays there, whoever stops or does without it.
#[test]
fn the_path_of_a_socket_unit_is_left_alone() {
    for next in [None, Some(web("127.0.0.1:0"))] {
        let scene = Scene::new();
        let path = scene.path("app.sock");
        let unit = UnixListener::bind(&path).unwrap();
        let mut puppet = passed(vec![unit.try_clone().unwrap().into()], Some("app"), None);
        serve(&mut puppet, &scene, "1", json!([{"kind": "unix", "name": "app", "address": path}]));
        assert_eq!(report(&mut puppet)["app"], json!({"outcome": "activated", "name": "app"}));
        match next {
            None => drop(puppet.ask(json!({"do": "stop"}))),
            Some(claims) => {
                let (mut second, _) = scene.serve("2", json!({"claims": claims}));
                scene.status_where(|status| status.predecessor.is_none() && status.pid == second.pid());
                second.ask(json!({"do": "stop"}));
                assert_eq!(second.exit_code(), Some(0));
            }
        }
        assert_eq!(puppet.exit_code(), Some(0));
        UnixStream::connect(&path).unwrap();
        drop(unit);
    }
}

/// While nobody of the family lived another program has bound its own socket there.
#[test]
fn a_path_that_another_program_has_bound_during_a_crash_is_its_own() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let stored = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    let mut puppet = passed(vec![stored.into()], Some("heirloom.app"), None);
    serve(&mut puppet, &scene, "1", json!([{"kind": "unix", "name": "app", "address": path}]));
    puppet.logged("is not alone at");
    puppet.ask(json!({"do": "stop"}));
    assert_eq!(puppet.exit_code(), Some(0));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_live_predecessor_comes_before_the_store_and_the_activation() {
    let scene = Scene::new();
    let (socket, address) = listener();
    let copy = socket.try_clone().unwrap();
    let mut old = passed(vec![copy.into()], Some("web"), None);
    serve(&mut old, &scene, "1", web(&address));
    let (other, _) = listener();
    // The same socket twice, as systemd passes it to a second instance, and another one of the same name.
    let copies = vec![socket.try_clone().unwrap().into(), socket.try_clone().unwrap().into(), other.into()];
    let mut new = passed(copies, Some("web:heirloom.web:web"), None);
    drop(socket);
    serve(&mut new, &scene, "2", web(&address));
    assert_eq!(report(&mut new)["web"], json!({"outcome": "adopted"}));
    assert_eq!(old.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, new.pid());
    new.ask(json!({"do": "stop"}));
    new.event("drained");
    assert_eq!(new.exit_code(), Some(0));
    eventually(|| (!is_listening(&address)).then_some(()));
}

/// After a crash a socket unit passes its listener, and the store has the same one.
#[test]
fn all_of_a_kind_has_each_name_once() {
    let scene = Scene::new();
    let (socket, _) = listener();
    let mut puppet = passed(vec![socket.try_clone().unwrap().into(), socket.into()], Some("web:heirloom.web"), None);
    puppet.ask(scene.begin("1", json!({"systemd": true, "claims": [], "ready": false})));
    puppet.event("started");
    assert_eq!(puppet.ask(json!({"do": "inherited-of", "kind": "tcp-listener"}))["ok"], json!(["web"]));
    puppet.ask(json!({"do": "ready"}));
    puppet.event("serving");
    assert_eq!(report(&mut puppet)["web"], json!({"outcome": "restored"}));
}

#[test]
fn an_inherited_name_may_come_from_the_store() {
    let scene = Scene::new();
    let memfd = nix::sys::memfd::memfd_create("notes", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    std::fs::File::from(memfd.try_clone().unwrap()).write_all_at(b"all that I know", 0).unwrap();
    let (socket, address) = listener();
    let mut puppet = passed(vec![memfd, socket.into()], Some("heirloom.notes:web"), None);
    puppet.ask(scene.begin("1", json!({"systemd": true, "claims": [], "ready": false})));
    puppet.event("started");
    let found = puppet.ask(json!({"do": "inherited-of", "kind": "tcp-listener"}));
    assert_eq!(found["ok"], json!(["web"]));
    puppet.ask(json!({"do": "claim", "kind": "inherited", "name": "notes"}));
    assert_eq!(puppet.ask(json!({"do": "read", "name": "notes"}))["ok"], "all that I know");
    assert_eq!(puppet.ask(json!({"do": "claim", "kind": "inherited", "name": "nothing"}))["ok"], false);
    puppet.ask(json!({"do": "ready"}));
    puppet.event("serving");
    let report = report(&mut puppet);
    assert_eq!(report["notes"], json!({"outcome": "restored"}));
    assert_eq!(report["web"], json!({"outcome": "activated", "name": "web"}));
    TcpStream::connect(address).unwrap();
}

#[test]
fn systemd_socket_activate_starts_a_service() {
    let Ok(program) = which("systemd-socket-activate") else {
        return skip("systemd-socket-activate is not installed");
    };
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let mut puppet = Puppet::with(|command| {
        let mut activate = Command::new(program);
        activate.arg("-E").arg(format!("{ROLE}=server")).arg("--fdname=app").arg("-l").arg(&path);
        activate.arg(command.get_program()).args(command.get_args());
        activate.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        *command = activate;
    })
    .unwrap();
    // It starts the program when somebody connects.
    let end = Instant::now() + PATIENCE;
    let client = loop {
        match UnixStream::connect(&path) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::yield_now();
    };
    serve(&mut puppet, &scene, "1", json!([{"kind": "unix", "name": "app", "address": path}]));
    assert_eq!(report(&mut puppet)["app"], json!({"outcome": "activated", "name": "app"}));
    assert_eq!(answer_unix(client).pid, puppet.pid());
    // It hands over like any other.
    let mut next = Puppet::new();
    serve(&mut next, &scene, "2", json!([{"kind": "unix", "name": "app", "address": path}]));
    assert_eq!(report(&mut next)["app"], json!({"outcome": "adopted"}));
    assert_eq!(puppet.exit_code(), Some(0));
    assert_eq!(answer_unix(UnixStream::connect(&path).unwrap()).pid, next.pid());
}

/// Where a program is.
fn which(program: &str) -> Result<PathBuf, ()> {
    let path = std::env::var_os("PATH").ok_or(())?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists()).ok_or(())
}

#[test]
fn the_pid_file_names_the_owner_and_nobody_else() {
    let scene = Scene::new();
    let path = scene.path("app.pid");
    let named = || std::fs::read_to_string(&path).unwrap().trim().parse::<u32>().unwrap();
    let begin = |version: &str, ready: bool| scene.begin(version, json!({"pid_file": path, "ready": ready}));
    let mut old = Puppet::new();
    old.ask(begin("1", false));
    old.event("started");
    assert!(!path.exists(), "it does not serve yet");
    old.ask(json!({"do": "ready"}));
    old.event("serving");
    assert_eq!(named(), old.pid());
    old.ask(json!({"do": "lease"}));
    let mut new = Puppet::new();
    new.ask(begin("2", false));
    new.event("started");
    assert_eq!(named(), old.pid());
    new.ask(json!({"do": "ready"}));
    new.event("serving");
    assert_eq!(named(), new.pid());
    old.event("leave");
    new.kill();
    old.event("resumed");
    assert_eq!(named(), old.pid());
    let mut last = Puppet::new();
    last.ask(begin("3", true));
    last.event("serving");
    old.ask(json!({"do": "end-lease"}));
    assert_eq!(old.exit_code(), Some(0));
    assert_eq!(named(), last.pid(), "who leaves takes nothing along that is not his any more");
    last.ask(json!({"do": "stop"}));
    assert_eq!(last.exit_code(), Some(0));
    assert!(!path.exists());
    let left: Vec<_> = std::fs::read_dir(scene.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("app.pid")), "{left:?}");
}

/// One new name is lost to another program, after the point of no return: all else is as it should be.
#[test]
fn the_pid_file_names_an_owner_that_cannot_listen_on_what_is_new() {
    let scene = Scene::new();
    let path = scene.path("app.pid");
    let (mut first, address) = scene.serve("1", json!({"pid_file": path}));
    let (free, new) = listener();
    drop(free);
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": address},
        {"kind": "tcp", "name": "new", "address": new},
    ]);
    let mut second = scene.warm("2", json!({"pid_file": path, "claims": claims}));
    second.ask(json!({"do": "nothing"}));
    // Bound by the second, which does not listen yet.
    let _other = TcpListener::bind(&new).unwrap();
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(report(&mut second)["new"]["outcome"], "missing");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), second.pid().to_string());
}

#[test]
fn a_pid_file_that_cannot_be_written_fails_a_first_start() {
    let scene = Scene::new();
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", json!({"pid_file": scene.path("nowhere/app.pid")})));
    let error = puppet.failure();
    assert_eq!(error["code"], "io");
    assert!(error["message"].as_str().unwrap().contains("nowhere/app.pid"), "{error}");
}
