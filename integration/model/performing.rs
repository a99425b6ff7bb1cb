//! What the driver does with each thing that a machine wants, one system call at a time, and with what it reads.
//!
//! This follows `src/driver`: messages are queued and written at the end of a round, when no input is left; a connection
//! that breaks at a write is read to its end; an attempt that came to nothing closes its link, then the family's
//! descriptors, then the others.

use super::application::Told;
use super::kernel::{Batch, Link, LinkId, Packet, Pid, link_of, nonce_of};
use super::mutations::{self, Mutation};
use super::process::{Commit, Find, Key, Life, Op, Reclaim, Work};
use super::world::{Rules, World};
use crate::error::Who;
use crate::protocol::message::{Hello, Message, Wants};
use crate::protocol::predecessor::{self, Claim, Found};
use crate::protocol::starter::{self, Lease, Starter};
use crate::protocol::successor::{self, Failure, Lock, Successor};
use crate::protocol::{Deadlines, FAMILY_SLOTS};

/// How many entries go into one frame.
const PER_FRAME: u32 = 200;

impl World {
    /// Gives one input to its machine and lines up what comes of it.
    pub(super) fn feed(&mut self, rules: &Rules, pid: Pid, work: Work) {
        let mut ops = self.process_mut(pid).feed(work.clone());
        // To leave is decided here, when the machine says so, and by what the kernel had told it: not when the last
        // descriptor is closed.
        for op in &ops {
            match op {
                Op::Successor(successor::Output::Tells(successor::Notice::Failed(failure))) => {
                    let on_purpose = matches!(failure, Failure::GaveUp(why) if why.code == "stopping");
                    self.decide(pid, on_purpose);
                }
                Op::Predecessor(predecessor::Output::Tells(predecessor::Notice::Exit)) => self.decide_to_exit(pid),
                _ => {}
            }
        }
        mutations::outputs(rules.off, self, pid, &work, &mut ops);
        self.process_mut(pid).todo.extend(ops);
    }

    /// A process that drained leaves for good: somebody else must own, unless it was the last and asked to stop.
    fn decide_to_exit(&mut self, pid: Pid) {
        let followed = self.process(pid).followed || self.kernel.owner.is_some_and(|owner| owner != pid);
        if !followed && !self.process(pid).asked {
            self.broken.exits = true;
        }
        self.decide(pid, followed);
    }

    pub(super) fn perform(&mut self, rules: &Rules, pid: Pid, op: Op) {
        match op {
            Op::Starter(output) => self.perform_starter(rules, pid, output),
            Op::Successor(output) => self.perform_successor(rules, pid, output),
            Op::Predecessor(output) => self.perform_predecessor(rules, pid, output),
            Op::Find(find) => self.find(rules, pid, find),
            Op::Commit(commit) => self.commit(rules, pid, commit),
            Op::Reclaim(reclaim) => self.reclaim(rules, pid, reclaim),
            Op::Flush(link) => self.flush(rules, pid, link),
            Op::CloseFamily => {
                let process = self.process_mut(pid);
                process.lease = None;
                process.control = None;
                process.accepting = false;
                process.lock = false;
                self.kernel.close_lock(pid);
                if rules.off == Some(Mutation::LeaseUnlocked) {
                    self.kernel.lease = None;
                }
                self.collect();
            }
            Op::CloseService => {
                self.process_mut(pid).service = None;
                self.collect();
            }
            Op::Serve => self.serve(pid),
            Op::GoOn(input) => self.process_mut(pid).work.push_back(Work::Starter(input)),
            Op::End => self.end(pid),
        }
    }

    /// Writes the lock file, as the owner may.
    fn write(&mut self, pid: Pid, generation: u64, nonce: u64) {
        self.broken.acts |= self.kernel.owner != Some(pid);
        self.broken.goes_back |= generation < self.kernel.generation;
        self.kernel.generation = generation;
        self.kernel.nonce = nonce;
        self.offered = nonce;
        let at = generation as usize;
        if self.owners.len() <= at {
            self.owners.resize(at + 1, None);
        }
        let owner = self.owners[at].get_or_insert(pid);
        self.broken.fencing |= *owner != pid;
    }

    /// Byte 0, however it is asked for.
    fn take_owner(&mut self, pid: Pid) -> bool {
        let taken = self.kernel.take_owner(pid);
        self.process_mut(pid).followed = !taken;
        taken
    }

    /// A process has byte 0 and keeps it, whatever the file says.
    fn keep_owner(&mut self, pid: Pid, bare: bool) {
        let Some((from, to)) = self.gap.take() else { return };
        // Both are still at it, and a third one has it now. Without byte 1 that takes longer than a commit may.
        let hands_over = self.process(from).life == Life::Runs
            && self.process(from).predecessor.as_ref().is_some_and(|owner| owner.takeover().is_some());
        let stands_by = self.process(to).predecessor.as_ref().is_some_and(|owner| owner.stands_by_for().is_some());
        let takes_over = self.process(to).life == Life::Runs && (self.process(to).successor.is_some() || stands_by);
        self.broken.gap |= pid != from && pid != to && hands_over && takes_over && !bare;
    }

    // The starter.

    fn perform_starter(&mut self, rules: &Rules, pid: Pid, output: starter::Output) {
        match output {
            starter::Output::Connect => {
                let input = match self.kernel.path {
                    Some(control) if self.has_control(control) => {
                        let process = self.process_mut(pid);
                        let id = link_of(pid, process.attempts);
                        process.attempts += 1;
                        process.probe = Some(id);
                        self.kernel.links.push(Link {
                            id,
                            connector: pid,
                            acceptor: None,
                            unread: Default::default(),
                            open: [true, true],
                            cut: false,
                        });
                        self.kernel.links.sort_by_key(|link| link.id);
                        self.kernel.backlog.push((control, id));
                        starter::Input::Connected
                    }
                    _ => starter::Input::Unreachable,
                };
                self.process_mut(pid).answer(Work::Starter(input));
            }
            starter::Output::TakeLease => {
                let answer = if self.process(pid).app.wants == Wants::Rehearsal {
                    Lease::Busy { owned: true }
                } else if self.kernel.lease.is_some() {
                    let kernel = &self.kernel;
                    Lease::Busy { owned: kernel.owner.is_some() || !kernel.parties.is_empty() || kernel.bar.is_some() }
                } else {
                    self.kernel.lease = Some(pid);
                    self.process_mut(pid).lease = Some(pid);
                    Lease::Taken
                };
                self.process_mut(pid).answer(Work::Starter(starter::Input::Lease(answer)));
            }
            starter::Output::DropLease => {
                self.process_mut(pid).lease = None;
                self.collect();
            }
            starter::Output::TakeLock => self.process_mut(pid).first([Op::Find(Find::Bar)]),
            starter::Output::Join => self.join(rules, pid),
            starter::Output::HangUp => {
                if let Some(probe) = self.process_mut(pid).probe.take() {
                    self.kernel.close_end(probe, 0);
                }
            }
            starter::Output::Found => {
                // Whatever is at the path is replaced: nobody may be left who listens there, or thinks that he owns.
                let others = self.pids().any(|other| other != pid && self.process(other).believes());
                let listening = self.processes.iter().any(|process| process.control.is_some());
                self.broken.path |= others || listening;
                self.kernel.path = Some(pid);
                let process = self.process_mut(pid);
                process.control = Some(pid);
                process.accepting = true;
                process.app.told.push_back(Told::Started);
            }
            starter::Output::Fail(_) => {
                self.decide(pid, false);
                self.process_mut(pid).app.told.push_back(Told::Failed);
            }
            starter::Output::Arm(timer, _) => self.process_mut(pid).timers.arm(Key::Starter(timer)),
            starter::Output::Disarm(timer) => self.process_mut(pid).timers.disarm(Key::Starter(timer)),
        }
    }

    fn join(&mut self, rules: &Rules, pid: Pid) {
        let process = self.process_mut(pid);
        let Some(link) = process.probe.take() else { return };
        process.link = Some(link);
        process.listed = false;
        let who = Who { pid: u32::from(pid), app_version: String::new() };
        let hello = Successor::hello(nonce_of(link), who, process.app.wants, None);
        let hello = Hello { state: rules.state, probation_ms: rules.probation.then_some(60_000), ..hello };
        let deadlines = Deadlines::default();
        let mut out = Vec::new();
        process.successor = Some(Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out));
        // Performed at once, before what else the starter wants.
        process.first(out.into_iter().map(Op::Successor).collect::<Vec<_>>());
    }

    fn find(&mut self, rules: &Rules, pid: Pid, find: Find) {
        let going = match find {
            Find::Bar => self.kernel.bar(pid).then_some(Find::Take),
            Find::Take => self.take_owner(pid).then_some(Find::Write),
            Find::Write => {
                self.keep_owner(pid, false);
                let generation = self.kernel.generation + 1;
                self.write(pid, generation, 0);
                Some(Find::Leave)
            }
            Find::Leave => {
                self.kernel.leave(pid);
                let generation = self.kernel.generation;
                let process = self.process_mut(pid);
                process.lock = true;
                process.become_owner(pid, generation, rules);
                return process.answer(Work::Starter(starter::Input::Lock(true)));
            }
        };
        let process = self.process_mut(pid);
        match going {
            Some(next) => process.first([Op::Find(next)]),
            None => {
                process.answer(Work::Starter(starter::Input::Lock(false)));
                self.kernel.close_lock(pid);
            }
        }
        // The description is open while it is at it.
        self.process_mut(pid).lock = going.is_some();
    }

    // The successor.

    fn perform_successor(&mut self, rules: &Rules, pid: Pid, output: successor::Output) {
        let process = self.process_mut(pid);
        match output {
            successor::Output::Send(message) => {
                if let Some(link) = process.link {
                    process.send(link, Packet::Message(message));
                }
            }
            successor::Output::Keep(_) => process.listed = true,
            successor::Output::Reserve(_) => {
                process.answer(Work::Successor(successor::Input::Reserved(Ok(()))));
            }
            successor::Output::JoinTakeover => self.join_takeover(rules, pid),
            successor::Output::LeaveTakeover => self.kernel.leave(pid),
            successor::Output::TakeLock { generation, nonce, bare } => {
                if rules.off == Some(Mutation::EndOfFileIsDeath) && process.link.is_none() {
                    process.lock_answer(Lock::Taken { generation });
                } else if !process.lock {
                    process.lock_answer(Lock::Foreign);
                } else {
                    let ours = bare || self.is_offered(rules, generation, nonce);
                    let next = if ours { Commit::Take { generation, nonce, bare } } else { Commit::Overtaken };
                    self.process_mut(pid).first([Op::Commit(next)]);
                }
            }
            successor::Output::Record { generation } => {
                let attempt = process.successor.is_some().then(|| process.attempts.saturating_sub(1));
                let nonce = attempt.map_or(0, |nth| nonce_of(link_of(pid, nth)));
                let lost = rules.state && self.stateful && self.process(pid).state != Some(true);
                self.broken.stale |= self.offered != 0 && self.offered != nonce;
                self.broken.state |= lost;
                if rules.off != Some(Mutation::GenerationNotWritten) {
                    self.write(pid, generation, 0);
                }
                self.process_mut(pid).become_owner(pid, generation, rules);
            }
            successor::Output::Close => {
                if let Some(link) = process.link {
                    process.close_after_writing(link);
                }
            }
            successor::Output::Tells(notice) => self.successor_tells(pid, notice),
            successor::Output::Arm(timer, _) => process.timers.arm(Key::Successor(timer)),
            successor::Output::Disarm(timer) => process.timers.disarm(Key::Successor(timer)),
        }
    }

    fn join_takeover(&mut self, rules: &Rules, pid: Pid) {
        if rules.off != Some(Mutation::Byte1NotShared) {
            self.kernel.join(pid);
        }
    }

    /// Whether the file says what a successor was offered.
    fn is_offered(&self, rules: &Rules, generation: u64, nonce: u64) -> bool {
        let file = self.kernel.file();
        file == (generation, nonce) || file == (generation, 0) || rules.off == Some(Mutation::NothingCompared)
    }

    fn commit(&mut self, rules: &Rules, pid: Pid, commit: Commit) {
        let taken = Lock::Taken { generation: self.kernel.generation };
        let answer = match commit {
            Commit::Take { generation, nonce, bare } => match self.take_owner(pid) {
                true => Err(Commit::Compare { generation, nonce, bare }),
                false => Ok(Lock::Busy),
            },
            Commit::Compare { generation, nonce, bare } if bare || self.is_offered(rules, generation, nonce) => {
                self.keep_owner(pid, bare);
                if bare {
                    self.offered = 0;
                }
                Ok(taken)
            }
            Commit::Compare { .. } => Err(Commit::GiveBack),
            Commit::GiveBack => {
                self.kernel.owner = None;
                Ok(Lock::Unsettled)
            }
            Commit::Overtaken => {
                let owned = self.kernel.owner.is_some_and(|owner| owner != pid);
                self.process_mut(pid).followed = owned;
                let lets_go = owned || rules.off == Some(Mutation::OvertakenLetsGo);
                if lets_go { Ok(Lock::Foreign) } else { Err(Commit::Bar) }
            }
            Commit::Bar if rules.off == Some(Mutation::OvertakenTakesAll) || self.kernel.bar(pid) => {
                Err(Commit::TakeLast)
            }
            Commit::Bar => Ok(Lock::Unsettled),
            Commit::TakeLast if self.take_owner(pid) => {
                self.keep_owner(pid, false);
                self.offered = 0;
                Ok(taken)
            }
            Commit::TakeLast => Err(Commit::Rejoin),
            Commit::Rejoin => {
                self.kernel.join(pid);
                Ok(Lock::Unsettled)
            }
        };
        match answer {
            Ok(lock) => self.process_mut(pid).lock_answer(lock),
            Err(next) => self.process_mut(pid).first([Op::Commit(next)]),
        }
    }

    fn successor_tells(&mut self, pid: Pid, notice: successor::Notice) {
        let process = self.process_mut(pid);
        match notice {
            successor::Notice::Received { .. } => {
                let mut out = Vec::new();
                if let Some(starter) = &mut process.starter {
                    starter.joined(&mut out);
                }
                process.first(out.into_iter().map(Op::Starter).collect::<Vec<_>>());
                process.app.told.push_back(Told::Started);
            }
            successor::Notice::Owner { cold } => {
                process.accepting = process.control.is_some();
                if !cold {
                    process.first([Op::Serve]);
                }
            }
            // For a holder alone, of which the model has none.
            successor::Notice::Changed | successor::Notice::Ended(_) => {}
            successor::Notice::Failed(failure) => self.failed(pid, failure),
        }
    }

    /// Before anything was received the start goes on; afterwards the application is told.
    fn failed(&mut self, pid: Pid, failure: Failure) {
        let process = self.process_mut(pid);
        let starting = process.starter.as_ref().is_some_and(|starter: &Starter| !starter.is_over());
        let again = match failure {
            Failure::Refused(why) if starting => Some(starter::Input::Refused(why)),
            Failure::NotServed | Failure::Superseded if starting => Some(starter::Input::NotServed),
            Failure::Deadline(..) if starting && !process.listed => Some(starter::Input::Silent),
            _ => None,
        };
        process.timers.disarm_attempt();
        process.elder = None;
        process.successor = None;
        process.listed = false;
        process.state = None;
        let mut ops = Vec::new();
        if let Some(link) = process.link.take() {
            process.peers.insert(link);
            process.close_after_writing(link);
            ops.push(Op::Flush(link));
        }
        ops.extend([Op::CloseFamily, Op::CloseService]);
        match again {
            Some(input) => ops.push(Op::GoOn(input)),
            None => process.app.told.push_back(Told::Failed),
        }
        process.first(ops);
    }

    /// The application is ready, and this process owns: what did not come is bound, and listens.
    fn serve(&mut self, pid: Pid) {
        if self.process(pid).service.is_none() {
            // The address is in use: a second family beside a living one.
            self.broken.path |= self.service().is_some();
            self.process_mut(pid).service = Some(pid);
            self.process_mut(pid).had = Some(pid);
        }
        let process = self.process_mut(pid);
        process.owner(predecessor::Input::Ready);
        process.app.told.push_back(Told::Serving);
    }

    // The predecessor.

    fn perform_predecessor(&mut self, rules: &Rules, pid: Pid, output: predecessor::Output) {
        use predecessor::Output;
        let process = self.process_mut(pid);
        match output {
            Output::Send(peer, message) => process.send(peer as LinkId, Packet::Message(message)),
            Output::Refuse(peer, why) => {
                process.send(peer as LinkId, Packet::Message(Message::Refused(why)));
                process.close_after_writing(peer as LinkId);
            }
            Output::SendManifest(peer) => {
                let link = peer as LinkId;
                process.timers.disarm(Key::Peer(link));
                process.offered.insert(link);
                for first in (0..rules.entries).step_by(PER_FRAME as usize) {
                    process.send(link, Packet::Entries(PER_FRAME.min(rules.entries - first)));
                }
                if process.predecessor.as_ref().is_some_and(|owner| owner.is_heir(peer)) {
                    self.offered = nonce_of(link);
                }
            }
            Output::SendDescriptors { peer, first, count } => {
                let heir = process.predecessor.as_ref().is_some_and(|owner| owner.is_heir(peer));
                let total = rules.entries + if heir { FAMILY_SLOTS } else { 0 };
                let family = match (process.lease, process.control) {
                    (Some(lease), Some(control)) if heir && first == 0 => Some(Batch { elder: pid, lease, control }),
                    _ => None,
                };
                // The service's listener is the last of the entries.
                let service = process.service.filter(|_| first + u32::from(count) == total);
                process.send(peer as LinkId, Packet::Descriptors { count, family, service });
            }
            Output::SendState(peer, state) => {
                process.send(peer as LinkId, Packet::Message(state.into()));
                process.send(peer as LinkId, Packet::Descriptors { count: 1, family: None, service: None });
            }
            Output::Tell { .. } | Output::TellHistory(_) | Output::Await(_) | Output::Steer(..) | Output::Hold(_) => {}
            Output::EndProbation => self.kernel.leave(pid),
            Output::Close(peer) => process.close_after_writing(peer as LinkId),
            Output::JoinTakeover => self.join_takeover(rules, pid),
            Output::LeaveTakeover => self.kernel.leave(pid),
            Output::Record { generation, nonce } => self.write(pid, generation, nonce),
            Output::StopControl => process.accepting = false,
            Output::StartControl => process.accepting = process.control.is_some(),
            Output::Unlock => self.unlock(rules, pid),
            Output::Claim(claim) => self.claim(rules, pid, claim),
            Output::Tells(notice) => self.predecessor_tells(rules, pid, notice),
            Output::Arm(timer, _) => process.timers.arm(Key::Predecessor(timer)),
            Output::Disarm(timer) => process.timers.disarm(Key::Predecessor(timer)),
            // Of holders alone, of which there are none here.
            Output::ArmHolder(..) | Output::ArmHolding(..) | Output::DisarmHolder(_) => {}
        }
    }

    fn unlock(&mut self, rules: &Rules, pid: Pid) {
        self.broken.acts |= self.kernel.owner != Some(pid);
        self.kernel.owner = None;
        self.stateful = rules.state;
        let process = self.process(pid);
        let heir = process
            .peers
            .iter()
            .chain(process.link)
            .find(|link| process.predecessor.as_ref().is_some_and(|owner| owner.is_heir(u64::from(*link))));
        self.offered = heir.map_or(0, nonce_of);
        let other_end = |link: &Link| if link.connector == pid { link.acceptor } else { Some(link.connector) };
        self.gap = heir.and_then(|link| self.kernel.link(link)).and_then(other_end).map(|other| (pid, other));
    }

    fn claim(&mut self, rules: &Rules, pid: Pid, claim: Claim) {
        let generation = self.process(pid).generation();
        if rules.off == Some(Mutation::ResumeWithoutTheLock) {
            return self.process_mut(pid).claim_answer(Found::Free(generation));
        }
        if !self.process(pid).lock {
            return self.process_mut(pid).claim_answer(Found::Held);
        }
        let file = self.kernel.file();
        let next = match claim {
            Claim::StandBy(nonce) => Reclaim::TakeBack { nonce },
            Claim::Bare => Reclaim::Take { claim, file: None },
            Claim::Exclusive if rules.off == Some(Mutation::NoPatience) => Reclaim::Take { claim, file: None },
            Claim::Exclusive => self.before_byte_1(rules, file),
            Claim::Shared if file.0 == generation => Reclaim::Take { claim, file: None },
            Claim::Shared => Reclaim::Leave { file },
        };
        self.process_mut(pid).first([Op::Reclaim(next)]);
    }

    /// Where a takeover of others is under way, it has its time.
    fn before_byte_1(&self, rules: &Rules, file: (u64, u64)) -> Reclaim {
        let waits = file.1 != 0 && rules.off != Some(Mutation::TakeoverNotAwaited);
        if waits { Reclaim::Look } else { Reclaim::Bar { file } }
    }

    fn reclaim(&mut self, rules: &Rules, pid: Pid, reclaim: Reclaim) {
        let generation = self.process(pid).generation();
        let next = match reclaim {
            Reclaim::Leave { file } => {
                self.kernel.leave(pid);
                self.before_byte_1(rules, file)
            }
            Reclaim::Bar { file } if self.kernel.bar(pid) => {
                Reclaim::Take { claim: Claim::Exclusive, file: Some(file) }
            }
            Reclaim::Bar { .. } => Reclaim::Look,
            Reclaim::Look => {
                let owned = self.kernel.owner.is_some_and(|owner| owner != pid);
                let found = if owned { Found::Held } else { Found::Barred };
                self.process_mut(pid).followed = owned;
                return self.process_mut(pid).claim_answer(found);
            }
            Reclaim::Take { claim, file } => match (self.take_owner(pid), file) {
                (taken, Some(file)) => Reclaim::Unbar { taken, file },
                (true, None) => Reclaim::Compare { claim, file: None },
                (false, None) => return self.process_mut(pid).claim_answer(Found::Held),
            },
            Reclaim::TakeBack { nonce } if self.take_owner(pid) => Reclaim::CompareBack { nonce },
            Reclaim::TakeBack { .. } => Reclaim::IsParty,
            Reclaim::CompareBack { nonce } => {
                let file = self.kernel.file();
                if file == (generation + 1, nonce) || file == (generation + 1, 0) {
                    self.keep_owner(pid, false);
                    let found = if file.1 == nonce { Found::Returned(file.0) } else { Found::Free(file.0) };
                    return self.process_mut(pid).claim_answer(found);
                }
                self.kernel.owner = None;
                return self.process_mut(pid).claim_answer(Found::Over);
            }
            // What the file says is read right after; only the one on probation writes to it.
            Reclaim::IsParty if self.kernel.is_party_elsewhere(pid) && self.kernel.generation == generation + 1 => {
                return self.process_mut(pid).claim_answer(Found::Held);
            }
            Reclaim::IsParty => Reclaim::IsOwned,
            Reclaim::IsOwned => {
                let owned = self.kernel.owner.is_some_and(|owner| owner != pid);
                self.process_mut(pid).followed = owned;
                return self.process_mut(pid).claim_answer(if owned { Found::Over } else { Found::Held });
            }
            Reclaim::Unbar { taken, file } => {
                self.kernel.leave(pid);
                if !taken {
                    return self.process_mut(pid).claim_answer(Found::Held);
                }
                Reclaim::Compare { claim: Claim::Exclusive, file: Some(file) }
            }
            Reclaim::Compare { claim: Claim::Shared, .. } if self.kernel.generation != generation => Reclaim::GiveBack,
            Reclaim::Compare { file: Some(file), .. }
                if file != self.kernel.file() && rules.off != Some(Mutation::ChangeUnnoticed) =>
            {
                Reclaim::GiveBack
            }
            Reclaim::Compare { claim, .. } => {
                self.keep_owner(pid, claim == Claim::Bare);
                let mut found = self.kernel.generation;
                if rules.off == Some(Mutation::ResumeKeepsTheGeneration) {
                    found = generation;
                }
                return self.process_mut(pid).claim_answer(Found::Free(found));
            }
            Reclaim::GiveBack => {
                self.kernel.owner = None;
                return self.process_mut(pid).claim_answer(Found::Barred);
            }
        };
        self.process_mut(pid).first([Op::Reclaim(next)]);
    }

    fn predecessor_tells(&mut self, rules: &Rules, pid: Pid, notice: predecessor::Notice) {
        let holds = self.kernel.owner == Some(pid);
        let newest = self.kernel.generation;
        let process = self.process_mut(pid);
        let told = match notice {
            predecessor::Notice::Release => Told::Release,
            predecessor::Notice::StandBy => Told::StandBy,
            predecessor::Notice::Resume => {
                process.app.draining = false;
                self.broken.acts |= !holds;
                Told::Resume
            }
            predecessor::Notice::Leave(reason) => {
                let followed = newest > process.generation();
                self.broken.leaves |= reason != predecessor::Reason::Stopped && !followed;
                Told::Leave(reason)
            }
            predecessor::Notice::Cancelled => Told::Failed,
            predecessor::Notice::Replaced => return,
            predecessor::Notice::Exit => {
                process.accepting = false;
                let last_words: Vec<Op> = process.outgoing.iter().map(|(link, _)| Op::Flush(*link)).collect();
                process.first(last_words.into_iter().chain([Op::CloseService]).collect::<Vec<_>>());
                if rules.off == Some(Mutation::PathRemovedAtExit) {
                    self.kernel.path = None;
                }
                Told::Exit
            }
        };
        self.process_mut(pid).app.told.push_back(told);
    }
}
