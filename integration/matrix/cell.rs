//! One run: a takeover, or what may come after it, under load with one fault at one point, and what must hold afterwards.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use heirloom::Phase;
use serde_json::{Value, json};

use super::crowd::{Accepted, Crowd, Lost};
use super::fault::Fault;
use super::play::Play;
use super::player::Player;
use super::point::{Point, Side};
use crate::actor::EXITED;
use crate::puppet::{PATIENCE, Scene};
use crate::strace::Strace;
use crate::visitor;

/// How often a state is looked at that no event tells of.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// Longer than any run takes, in milliseconds.
const PROBATION: u64 = 600_000;
/// How long a successor is waited for that does not notice the end of its predecessor.
const NOTICED: Duration = Duration::from_millis(500);

/// What came of a run in which everything held.
pub(crate) enum Held {
    /// The fault came; in a word, how the run went.
    Reached(&'static str),
    /// The run was over before the call had been made so often.
    NotReached,
}

/// Runs a cell. Whatever does not hold is a panic, with what the processes said.
pub(crate) fn run(play: Play, point: Point, fault: Fault) -> Held {
    let mut cell = Cell::set_up(play);
    let strace = inject(cell.victim(point.side).thread, point, fault).unwrap();
    let lines = cell.perform(point.side, fault, strace);
    cell.reached |= cell.has_ended_by(point.side, fault);
    let reached = cell.reached;
    // What a filter hides is not to be concluded from.
    let sent = point.call.only.is_none().then(|| cell.has_sent(&lines));
    let how = cell.judge(point.side, fault, sent);
    if reached { Held::Reached(how) } else { Held::NotReached }
}

/// Injects a fault into one occurrence of a call of one thread, and shows what is sent with descriptors.
fn inject(thread: u64, point: Point, fault: Fault) -> Result<Strace, String> {
    let Point { call, occurrence, .. } = point;
    let mut arguments = vec![
        "-e".to_owned(),
        format!("trace={},sendmsg", call.name),
        format!("--inject={}:{}:when={occurrence}", call.name, fault.expression()),
    ];
    if let Some(only) = call.only {
        arguments.extend(["-P".to_owned(), only.to_owned()]);
    }
    Strace::attach(thread, &arguments)
}

/// Counts the calls that each side makes where nothing happens. Those of the puppet itself are in it, too.
pub(crate) fn count(play: Play, side: Side) -> Result<BTreeMap<String, u32>, String> {
    let mut cell = Cell::set_up(play);
    let strace = Strace::attach(cell.victim(side).thread, &["-y"])?;
    let lines = cell.perform(side, Fault::DelayEnter, strace);
    let sent = Some(cell.has_sent(&lines));
    cell.judge(side, Fault::DelayEnter, sent);
    let mut counts = BTreeMap::new();
    for line in lines {
        let Some((name, arguments)) = line.split_once('(').filter(|(name, _)| name.chars().all(is_of_a_name)) else {
            continue;
        };
        let only = super::point::CALLS.iter().find(|call| call.name == name).and_then(|call| call.only);
        if only.is_none_or(|only| arguments.split(',').next().is_some_and(|first| first.contains(only))) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(counts)
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
}

/// Whether a batch of descriptors has left: there is one, as the service has few.
fn has_sent(line: &str) -> bool {
    line.starts_with("sendmsg(") && line.contains("SCM_RIGHTS") && line.contains(") = 16")
}

/// The processes of a run and their clients.
struct Cell {
    play: Play,
    scene: Scene,
    players: Vec<Player>,
    address: String,
    /// The inode of the socket there.
    inode: u64,
    /// What the first owner's descriptors led to.
    owning: Vec<String>,
    crowd: Crowd,
    /// A connection that nobody accepts before the end.
    waiting: TcpStream,
    /// The fault has come.
    reached: bool,
}

const FIRST: usize = 0;
const SECOND: usize = 1;

impl Cell {
    /// An owner under load, and its successor: it has not begun, or is on probation.
    fn set_up(play: Play) -> Cell {
        let scene = Scene::new();
        std::fs::create_dir(scene.path("accepted")).unwrap();
        let mut first = Player::new(&scene, 1);
        first.begin(&scene, "1", json!({}));
        let serving = first.puppet.event("serving");
        let [address, queue] = ["web", "queue"].map(|name| serving["addresses"][name].as_str().unwrap().to_owned());
        let inode = first.state().unwrap()["inode"].as_u64().unwrap();
        let owning = first.kinds_at_rest();
        let mut second = Player::new(&scene, 2);
        if play != Play::Takeover {
            second.begin(&scene, "2", json!({"probation_ms": PROBATION}));
            let end = Instant::now() + PATIENCE;
            while !first.puppet.has_said("stand-by") || !second.puppet.has_said("serving") {
                assert!(Instant::now() < end && !second.failed(), "no probation");
                thread::sleep(LOOK);
            }
        }
        let waiting = TcpStream::connect(queue).unwrap();
        let crowd = Crowd::on(&address);
        crowd.flows(2);
        let mut players = vec![first, second];
        for player in &mut players {
            // Whatever it still had to do before the part that is looked at.
            player.state();
        }
        Cell { play, scene, players, address, inode, owning, crowd, waiting, reached: false }
    }

    /// Whether the descriptors have left the predecessor.
    fn has_sent(&self, lines: &[String]) -> bool {
        self.play != Play::Takeover || lines.iter().any(|line| has_sent(line))
    }

    fn victim(&mut self, side: Side) -> &mut Player {
        &mut self.players[index(side)]
    }

    /// What brings the part about that is looked at.
    fn begin(&mut self, side: Side) {
        let leaves = match self.play {
            Play::Takeover | Play::Confirm => Some(FIRST),
            Play::Rollback => Some(SECOND),
            Play::Death => None,
        };
        if let Some(leaves) = leaves.filter(|leaves| *leaves != index(side)) {
            // As long as it drains, it is the one that takes the service back.
            let player = &mut self.players[leaves];
            player.puppet.ask(json!({"do": "lease"}));
            player.lease = true;
        }
        let second = &mut self.players[SECOND];
        match self.play {
            // The start is short: after the deadline that passes first it is not tried again.
            Play::Takeover => second.begin(&self.scene, "2", json!({"start_ms": 3000})),
            Play::Confirm => second.order(json!({"do": "confirm"})),
            Play::Rollback => second.order(json!({"do": "give-back", "reason": "test"})),
            Play::Death => {
                second.puppet.kill();
                second.killed = true;
            }
        }
    }

    /// The part with its fault, until everybody has decided; gives what strace saw.
    fn perform(&mut self, side: Side, fault: Fault, mut strace: Strace) -> Vec<String> {
        let victim = index(side);
        self.begin(side);
        let mut over = Over::of(self.play);
        let stops = matches!(fault, Fault::Stop | Fault::Late | Fault::Pause);
        if !strace.says_or(fault.mark(), || over.look(&mut self.players)) || !stops {
            strace.until(|_| over.look(&mut self.players));
        }
        // A process that is stopped stays so when strace lets go of it.
        let lines = strace.leave();
        self.reached = lines.iter().any(|line| line.contains(fault.mark()));
        if stops && self.reached {
            // It may be on its way from the one stop to the other.
            let end = Instant::now() + PATIENCE;
            while !self.players[victim].is('T') {
                assert!(Instant::now() < end, "it does not stop");
                thread::sleep(LOOK);
            }
        } else if !stops || !self.players[victim].is('T') {
            return lines;
        }
        self.reached = true;
        match (fault, side) {
            (Fault::Pause, _) => {}
            (_, Side::Predecessor) => self.without_the_predecessor(),
            (_, Side::Successor) => self.without_the_successor(),
        }
        if fault == Fault::Stop {
            self.players[victim].puppet.kill();
            self.players[victim].killed = true;
            return lines;
        }
        self.players[victim].puppet.thaw();
        while !over.look(&mut self.players) {
            thread::sleep(LOOK);
        }
        lines
    }

    /// Whether a fault has ended its victim that strace had no time to tell of.
    fn has_ended_by(&mut self, side: Side, fault: Fault) -> bool {
        let victim = self.victim(side);
        fault.ends() && !victim.killed && victim.state().is_none() && !victim.puppet.end().success()
    }

    /// The predecessor is stopped: the successor comes to an end of its attempt, and where it owns, so does a third.
    fn without_the_predecessor(&mut self) {
        match self.play {
            Play::Takeover => {}
            // Whether it owns or waits for the lock, the other one serves; unless it has been told to leave, or is dead.
            Play::Confirm | Play::Rollback | Play::Death => {
                if !self.players[SECOND].killed
                    && self.players[SECOND].state().is_some_and(|it| it["stage"] == "serving")
                {
                    self.is_served();
                }
                return;
            }
        }
        let second = &mut self.players[SECOND];
        let end = Instant::now() + PATIENCE;
        while !second.failed() && !second.puppet.has_said("serving") {
            assert!(Instant::now() < end, "the successor of a stopped process neither owns nor gives up");
            thread::sleep(LOOK);
        }
        if !self.players[SECOND].gave_up {
            self.serves(SECOND);
            self.third();
        }
    }

    /// The successor is stopped: a third takes over, unless the stopped one owns already.
    fn without_the_successor(&mut self) {
        let mut third = Player::new(&self.scene, 3);
        third.begin(&self.scene, "3", json!({}));
        let end = Instant::now() + PATIENCE;
        loop {
            if third.puppet.has_said("serving") {
                break;
            }
            if third.failed() {
                // Busy with the stopped one.
                let failure = third.puppet.failure();
                assert_eq!((&failure["kind"], &failure["code"]), (&json!("Refused"), &json!("busy")), "{failure}");
                third.gave_up = false;
                thread::sleep(LOOK * 10);
                third.begin(&self.scene, "3", json!({}));
            }
            let state = self.players[FIRST].state();
            let leaves = state.is_none_or(|state| {
                let phase = &state["status"]["phase"];
                state["stage"] == "draining"
                    || state["status"]["takeover"]["step"] == "silent"
                    || phase == "standing-by"
            });
            if leaves && !third.puppet.has_said("serving") && !self.players[FIRST].puppet.has_said("resumed") {
                break;
            }
            assert!(Instant::now() < end, "nobody takes over beside a stopped successor");
            thread::sleep(LOOK);
        }
        self.players.push(third);
    }

    fn third(&mut self) {
        let mut third = Player::new(&self.scene, 3);
        third.begin(&self.scene, "3", json!({}));
        third.puppet.event("serving");
        self.players.push(third);
    }

    /// It owns, and a new connection is served.
    fn serves(&mut self, player: usize) {
        assert!(
            self.players[player].state().is_some_and(|state| state["owner"] == true),
            "it served, and does not own"
        );
        self.is_served();
    }

    /// A new connection is.
    fn is_served(&self) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        std::io::Write::write_all(&mut stream, crate::service::ONCE.as_bytes()).unwrap();
        visitor::answer(stream);
    }

    /// Everything that must hold now.
    fn judge(mut self, side: Side, fault: Fault, sent: Option<bool>) -> &'static str {
        let victim = index(side);
        self.players[victim].killed |= self.reached && fault.ends();
        self.players[..=SECOND].iter_mut().for_each(Player::end_lease);
        let owner = self.settle();
        self.ends_are_as_they_should_be(victim, fault);
        let Some(owner) = owner else {
            self.died_with_the_victim(side, sent);
            return self.start_anew();
        };
        let how = self.how(owner);

        let state = self.players[owner].state().unwrap();
        let address = state["address"].as_str().unwrap().to_owned();
        let inherited = state["inode"] == self.inode;
        if !inherited {
            self.died_with_the_victim(side, sent);
        }
        let status = self.scene.status();
        assert_eq!((status.pid, status.phase), (self.players[owner].puppet.pid(), Phase::Serving));

        // All clients, on connections new and kept, and what has waited in a queue all the time.
        if inherited {
            self.crowd.flows(2);
            self.players[owner].puppet.ask(json!({"do": "accept", "on": true}));
            let answer = visitor::answer(self.waiting.try_clone().unwrap());
            assert!(self.players.iter().any(|player| player.puppet.pid() == answer.pid), "{answer:?}");
        }
        let Cell { scene, mut players, crowd, owning, .. } = self;
        let lost = crowd.stop();
        if inherited {
            explain(&lost, &mut players);
        }

        // The survivor has what an owner had before, and those that gave up have what they had.
        let lacking = matches!(fault, Fault::Error(_));
        players[owner].settles(&owning, lacking);
        for player in players.iter_mut().filter(|player| player.gave_up && !player.killed) {
            let blank = player.blank.clone();
            player.settles(&blank, false);
        }
        players[owner].rests();

        // The next takeover, again under load.
        let crowd = Crowd::on(&address);
        crowd.flows(1);
        let mut next = Player::new(&scene, 4);
        next.begin(&scene, "4", json!({}));
        let serving = next.puppet.event("serving");
        next.state();
        assert_eq!(serving["addresses"]["web"], address.as_str());
        assert!(serving["generation"].as_u64() > Some(status.generation), "{serving}, after {status:?}");
        assert_eq!(players[owner].puppet.exit_code(), Some(0));
        crowd.flows(2);
        let lost = crowd.stop();
        assert!(lost.is_empty(), "in the next takeover: {}", words(&lost));
        next.settles(&owning, false);
        players.push(next);
        for player in &players {
            assert!(!player.puppet.log().contains("panicked"), "a panic");
        }
        if inherited { how } else { "bound anew" }
    }

    /// The one loss that no protocol can mend: the process that was killed was the only one that had the listeners. A
    /// predecessor, before they had left it, or after a successor of a process that was only stopped had given up; or a
    /// successor, after the predecessor had left.
    fn died_with_the_victim(&mut self, side: Side, sent: Option<bool>) {
        assert!(self.players[index(side)].killed, "nobody was killed, and the listeners are gone");
        let alone = match (self.play, side) {
            (Play::Takeover, Side::Predecessor) => sent.is_none_or(|sent| !sent) || self.players[SECOND].gave_up,
            (_, Side::Predecessor) => self.players[SECOND].killed || self.players[SECOND].state().is_none(),
            (_, Side::Successor) => self.players[FIRST].state().is_none(),
        };
        assert!(alone, "the listeners are gone, though another process had them");
    }

    /// Nobody is left: the next start is the first of a family.
    fn start_anew(self) -> &'static str {
        drop(self.crowd.stop());
        let mut next = Player::new(&self.scene, 4);
        next.begin(&self.scene, "4", json!({}));
        let serving = next.puppet.event("serving");
        let crowd = Crowd::on(serving["addresses"]["web"].as_str().unwrap());
        crowd.flows(2);
        let lost = crowd.stop();
        assert!(lost.is_empty(), "after a new start: {}", words(&lost));
        next.state();
        next.settles(&self.owning, false);
        "the last of its family died"
    }

    /// Waits until there is one owner and nobody is under way any more; `None` where nobody is left to own.
    fn settle(&mut self) -> Option<usize> {
        let end = Instant::now() + PATIENCE;
        loop {
            let states: Vec<Option<Value>> =
                self.players.iter_mut().map(|player| if player.killed { None } else { player.state() }).collect();
            let owners: Vec<usize> = (0..states.len())
                .filter(|at| states[*at].as_ref().is_some_and(|state| state["owner"] == true))
                .collect();
            let rests = |state: &Value| {
                state["stage"] == "idle" || (state["stage"] == "serving" && state["status"]["takeover"].is_null())
            };
            let stands_by = |state: &Value| state["status"]["phase"] == "standing-by";
            if owners.len() == 1 && states.iter().flatten().all(|state| rests(state) && !stands_by(state)) {
                let serving = states.iter().flatten().filter(|state| state["stage"] == "serving").count();
                assert_eq!(serving, 1, "one owns, and another serves: {states:?}");
                return Some(owners[0]);
            }
            if states.iter().flatten().all(|state| state["stage"] == "idle") {
                return None;
            }
            if let [owner] = owners[..]
                && states[owner].as_ref().is_some_and(|state| rests(state) && !state["status"]["probation"].is_null())
            {
                // It came to nothing, and the probation goes on: here it ends.
                self.players[owner].order(json!({"do": "confirm"}));
            }
            assert!(Instant::now() < end, "it never settles: {states:?}");
            thread::sleep(LOOK);
        }
    }

    /// How it went, in a word.
    fn how(&mut self, owner: usize) -> &'static str {
        let failed = self.players[SECOND].failed();
        if self.play != Play::Takeover {
            return ["the predecessor owns", "the successor owns", "a third owns"][owner.min(SECOND + 1)];
        }
        match owner {
            FIRST if failed => "the successor gave up",
            FIRST => "the predecessor serves on",
            SECOND => "the successor owns",
            _ => "a third owns",
        }
    }

    /// Whoever was not killed either lives, or has left with 0 after a drain.
    fn ends_are_as_they_should_be(&mut self, victim: usize, fault: Fault) {
        for (at, player) in self.players.iter_mut().enumerate() {
            if player.killed {
                let end = player.puppet.end();
                assert!(fault != Fault::Exit || at != victim || end.code() == Some(EXITED), "{end}");
            } else if player.state().is_none() {
                let end = player.puppet.end();
                assert!(end.success(), "number {} was not killed, and ended with {end}", at + 1);
            }
        }
    }
}

fn index(side: Side) -> usize {
    match side {
        Side::Predecessor => FIRST,
        Side::Successor => SECOND,
    }
}

/// Whether it has come to an end, one way or the other, as far as the two say so by themselves: a question would be a call
/// more.
struct Over {
    play: Play,
    /// When the one that leaves had left.
    left: Option<Instant>,
}

impl Over {
    fn of(play: Play) -> Over {
        Over { play, left: None }
    }

    fn look(&mut self, players: &mut [Player]) -> bool {
        let (first, second) = players.split_at_mut(SECOND);
        let (first, second) = (&mut first[FIRST], &mut second[0]);
        match self.play {
            Play::Takeover | Play::Confirm => {}
            Play::Rollback => return self.went_back(first, second),
            Play::Death => return first.puppet.is_over() || first.puppet.has_said("resume") && first.is('S'),
        }
        if second.failed() || second.puppet.is_over() || first.puppet.has_said("failed") {
            return true;
        }
        // On probation it has served all along.
        let leaves = self.play != Play::Confirm || first.puppet.has_said("leave") || first.puppet.is_over();
        let serves = leaves && second.puppet.has_said("serving");
        if serves && second.is('S') {
            first.end_lease();
        }
        if !serves || !first.puppet.is_over() {
            return false;
        }
        // The last that a successor does in a takeover is to notice that the predecessor has left.
        let left = *self.left.get_or_insert_with(Instant::now);
        (second.puppet.log().contains("predecessor gone") && second.is('S')) || left.elapsed() > NOTICED
    }

    fn went_back(&mut self, first: &mut Player, second: &mut Player) -> bool {
        // The rollback came to nothing, or one of the two did.
        if first.puppet.is_over() || second.puppet.has_said("resume") && second.is('S') {
            return true;
        }
        let back = first.puppet.has_said("resume");
        if back && first.is('S') {
            second.end_lease();
        }
        if !second.puppet.is_over() {
            return false;
        }
        let left = *self.left.get_or_insert_with(Instant::now);
        (back && first.puppet.log().contains("gave the service back is gone") && first.is('S'))
            || left.elapsed() > NOTICED
    }
}

/// Each loss must be that of a process that was killed, and had accepted it.
fn explain(lost: &[Lost], players: &mut [Player]) {
    let mut killed: Vec<Accepted> =
        players.iter().filter(|player| player.killed).map(|player| Accepted::of(&player.log)).collect();
    let unexplained: Vec<Lost> =
        lost.iter().filter(|lost| !killed.iter_mut().any(|accepted| accepted.explains(lost))).cloned().collect();
    assert!(unexplained.is_empty(), "lost: {}", words(&unexplained));
}

fn words(lost: &[Lost]) -> String {
    lost.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
