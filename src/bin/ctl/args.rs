//! The command line: one table, from which clap makes the parser, `--help`, the completions and the man page.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::check;
use crate::failure::Failure;
use crate::time;

/// See and steer a service that is replaced while it runs
///
/// A service that hands its listeners over has a control socket. This program talks to the process that owns the
/// service: it shows who that is and what it holds, rehearses a takeover, starts a new version beside the old one,
/// waits for a change, steers what an
/// old version still has to finish, and ends the service.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, max_term_width = 100, after_long_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Global {
    /// Control socket of the service
    #[arg(long, value_name = "PATH", global = true, env = "HEIRLOOM_SOCKET", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from), value_hint = ValueHint::AnyPath)]
    socket: Option<PathBuf>,

    /// How long to wait at most, such as 500ms, 5s or 2m
    ///
    /// Unless told otherwise: `status`, `history`, `drain`, `confirm`, `hold` and `rescue` 5s, `rollback` 30s,
    /// `handoff`, `keep`, `wait` and `stop` 1m, `check` 2m, `upgrade` 10m; `status --watch` has no limit.
    #[arg(long, value_name = "DURATION", global = true, value_parser = time::parse)]
    timeout: Option<Duration>,

    /// Print one JSON object with stable keys instead of text; errors too, as {"error": {"code", "message", "hint"}}
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log to stderr what happens; twice: each message; the default is warnings, and nothing with --json
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl Global {
    /// The control socket. There is no default: the wrong service would be worse than none.
    pub(crate) fn socket(&self) -> Result<&Path, Failure> {
        // An empty variable is as good as none.
        let given = self.socket.as_deref().filter(|path| !path.as_os_str().is_empty());
        given.ok_or_else(|| Failure::usage("no control socket given").hint("use --socket PATH, or set HEIRLOOM_SOCKET"))
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn timeout_or(&self, default: Duration) -> Duration {
        self.timeout.unwrap_or(default)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Check(CheckArgs),

    /// End the probation of the new version forwards: it stays, and the old one finishes what it has in flight and goes
    ///
    /// A version on probation has its predecessor stand by. Without a word it is confirmed when its time has passed.
    #[command(after_long_help = "\
With --json: confirmed, owner {generation, pid, app_version}.

Exit codes: 0 done; 1 refused, as where no probation is under way; 3 nobody listens; 4 no answer in time.")]
    Confirm,

    Drain(DrainArgs),
    Handoff(HandoffArgs),
    History(HistoryArgs),
    Rollback(RollbackArgs),
    Hold(HoldArgs),
    Rescue(RescueArgs),
    Keep(KeepArgs),
    Status(StatusArgs),
    Upgrade(UpgradeArgs),
    Wait(WaitArgs),

    /// Ask the owner to leave without a successor, and wait until it has
    ///
    /// The owner finishes what it has in flight, up to its drain deadline, and nobody serves any more: an older process
    /// that still drains, and that the owner knows of, would serve again for want of an owner, and is asked to leave as
    /// well. Without a successor the listeners end with it, unless ctl keep holds them: then connections wait for the
    /// next start, and a second stop, to the keeper, ends all. A takeover that the owner can no longer call off is
    /// finished first, and an owner on probation gives the service back: then somebody else serves, and the exit code
    /// is 1.
    #[command(after_long_help = "\
With --json: stopped, owner {generation, pid, app_version}, came_back [the same of each that drained before it] and keeper, \
where there are any.

Exit codes: 0 the service has ended; 1 refused, or somebody else serves; 3 nobody listened; 4 it was still leaving when \
the time was over (--timeout, 1m unless told otherwise, for each that is asked).")]
    Stop,

    /// Print completions for a shell
    ///
    /// For bash: ctl completions bash > ~/.local/share/bash-completion/completions/ctl
    Completions {
        /// For which shell
        shell: Shell,
    },

    /// Print the manual page
    ///
    /// To read it: ctl man > ctl.1 && man ./ctl.1
    Man,
}

/// Misbehave towards the owner in every known way, and tell whether it survived, stayed owner, and how long it was busy
///
/// A successor that dies, closes or aborts at each step of a takeover; frames that are broken or come out of turn;
/// peers that stall; floods of connections and questions. After each case the owner has to be the same process, own the
/// same generation, and serve. Where it is not, the check ends at once. The commit is never reached: no lock is taken,
/// no connection of a client is accepted, and nothing is said that makes an owner leave.
///
/// What the service notices: while a case goes on that asks for a takeover (milliseconds; twice 5s), a real one would
/// be refused as busy; the owner's log has a line or more for each case, and its history some of them. An application
/// that has exclusive work is told to release it eight times, and to resume milliseconds after it has; that work rests
/// in between, as in any takeover that fails. When 64 connections are held at once, the owner drops whoever has been
/// silent for longest: a `status --watch` elsewhere has to connect anew, and for that moment the owner has up to 128
/// descriptors more. Clients of the service notice nothing.
///
/// With --gentle every case is left out that the application or another control client could notice: those after the
/// successor was ready, and the 64 connections at once.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl check --list                          every case, and what it does
  ctl check --gentle                        only what nobody but the owner's control socket can notice
  ctl check --only die-released --json      one case, for a program

With --json: owner {generation, pid, app_version}, cases [{name, what, ok, survived, stayed_owner, busy, answered_within, \
note}], ok. BUSY is how long no real takeover could have begun, ANSWERED how long a status asked for meanwhile took at \
most. With --list: cases [{name, what, gentle}].

Exit codes: 0 all went well; 1 something did not, or the check was refused, interrupted or overtaken; 3 nobody listens.")]
pub(crate) struct CheckArgs {
    /// Leave out what the application or another control client could notice
    #[arg(long, conflicts_with = "only")]
    pub(crate) gentle: bool,

    /// Try this case only; may be repeated
    #[arg(long, value_name = "CASE", value_parser = check::names(), hide_possible_values = true)]
    pub(crate) only: Vec<String>,

    /// Print the cases, and try none
    #[arg(long)]
    pub(crate) list: bool,
}

/// Rehearse a takeover: receive, check and show the listeners, and change nothing; or take over with --commit
///
/// Without --commit this is a takeover that stops before it counts. Every descriptor is received and compared with what
/// the manifest says of it; the service does not notice. With --commit, ctl becomes the owner: it keeps all listeners,
/// accepts nothing, and clients wait in the queues until the next successor serves them. So a service can be down for a
/// moment without one refused connection. It leaves when a successor takes over, or on SIGTERM, SIGINT or SIGHUP.
///
/// With --commit and a CMD, any program that knows socket activation takes part: CMD is started as a child of ctl once
/// ctl owns, and finds the listeners at descriptor 3 and up, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES in its
/// environment. The sockets are in non-blocking mode, which processes share: a program that expects blocking sockets has
/// to be ready for that. SIGTERM, SIGINT and SIGHUP are passed on to CMD. When a successor takes over, CMD is sent SIGTERM
/// and may finish what it has in flight until the drain deadline, then it is killed; should the successor die meanwhile,
/// CMD is started again. When CMD ends by itself, ctl leaves as well.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl handoff                                     what would a successor get, and is it sound?
  ctl handoff --commit                            keep the listeners while there is no program for them
  ctl handoff --commit -- /usr/bin/app --flag     a program that knows socket activation takes over

Exit codes: 0 done; 1 refused, failed, or a check failed (the old one still serves); 3 nobody listens. \
With CMD: the exit code of CMD, or 128 and the number of the signal that ended it.")]
pub(crate) struct HandoffArgs {
    /// Print this entry only; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "commit")]
    pub(crate) name: Vec<String>,

    /// Take over for real: own and keep all listeners
    #[arg(long)]
    pub(crate) commit: bool,

    /// How long CMD may finish what it has in flight once a successor serves
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = time::parse, requires = "commit")]
    pub(crate) drain: Duration,

    /// Accept a folder of the control socket that other users can write to, such as an `emptyDir` of Kubernetes
    #[arg(long)]
    pub(crate) allow_shared_folder: bool,

    /// Program that gets the listeners by socket activation, and its arguments
    #[arg(last = true, value_name = "CMD", requires = "commit")]
    pub(crate) command: Vec<OsString>,
}

/// Refuse takeovers during an incident, with a reason; or allow them again with --lift
///
/// The owner refuses whoever wants to take over, and tells him the reason; `ctl upgrade` and `ctl handoff --commit` give
/// up with it. A takeover that is under way is called off, unless the new version has said that it is ready: then it is
/// finished, and the new owner goes on with the hold. `ctl handoff` still rehearses, and `ctl stop` still ends the
/// service. `ctl status` shows the hold.
///
/// It is kept by the owner and goes on in whoever owns after it. With the last process of the service it is forgotten:
/// one that starts anew knows nothing of it. Where `ctl keep` runs beside the service it outlives a crash as well: the
/// keeper lets the next start in, since nobody serves, and has it go on with the hold. `ctl rescue` goes on with it as
/// well: without a CMD it lets the next start in, and with one it serves, and refuses takeovers.
///
/// The time of --for is counted as time that passes, so that a clock that is set does not move its end. A further hold
/// takes the place of the one before; one that is set while a keeper owns bars the next start.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl hold --reason 'database migration' --for 30m
  ctl hold --lift

With --json: hold {reason, since, until, by {pid, uid}, suspended}, or null where there is none now.

Exit codes: 0 done; 1 refused; 3 nobody listens; 4 no answer in time, so that the outcome is unknown.")]
pub(crate) struct HoldArgs {
    /// Why, for whoever is refused; of 1024 bytes at most, what is beyond is cut
    #[arg(long, value_name = "TEXT", required_unless_present = "lift", conflicts_with = "lift")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) reason: Option<String>,

    /// When it ends by itself; without this it lasts until it is lifted
    #[arg(long = "for", value_name = "DURATION", value_parser = time::parse, requires = "reason", conflicts_with = "lift")]
    pub(crate) within: Option<Duration>,

    /// Allow takeovers again
    #[arg(long)]
    pub(crate) lift: bool,
}

/// Take the service away from an owner that is stopped or wedged: the last resort
///
/// An owner that answers is never touched: use `ctl upgrade` or `ctl stop` then. Where it does not answer in --timeout,
/// this shows which process it is, in what state, and what it has. Nothing is changed without --yes.
///
/// With --yes its descriptors are copied and checked, it is killed (SIGKILL), and ctl owns as the next generation: without
/// a CMD it keeps all listeners until a successor takes over; with a CMD that is started and gets them by socket
/// activation, as with `ctl handoff --commit`. Connections that wait are not lost; those that the old process had accepted
/// are, and so is its state. From the kill on ctl holds the only copies of the listeners, as any owner does: it must not
/// be killed in turn before a successor serves.
///
/// It takes the right to trace that process: the same user, and where Yama restricts that (kernel.yama.ptrace_scope) or
/// the process is not dumpable, root or CAP_SYS_PTRACE. Linux 5.6 or newer.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl rescue                                what would be taken from whom, and who would be ended
  ctl rescue --yes                          keep the listeners until `ctl upgrade` or a plain start of a new version
  ctl rescue --yes -- /usr/bin/app --flag   a program that knows socket activation goes on

With --json: source {pid, state, app_version}, ends [{pid, state}], entries [{name, kind, address}]; with --yes what \
`handoff --commit` prints comes after it.

Exit codes: 0 done, or shown; 1 refused or failed; 3 nobody is left. With CMD: as `handoff --commit`.")]
pub(crate) struct RescueArgs {
    /// Do it: kill the owner, and own
    #[arg(long)]
    pub(crate) yes: bool,

    /// How long CMD may finish what it has in flight once a successor serves
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = time::parse, requires = "yes")]
    pub(crate) drain: Duration,

    /// Program that gets the listeners by socket activation, and its arguments
    #[arg(last = true, value_name = "CMD", requires = "yes")]
    pub(crate) command: Vec<OsString>,
}

/// Keep the listeners beside the owner, so that connections wait while the service is down
///
/// A small process that gets everything the owner has, follows changes of it and of the owner, and accepts nothing. While
/// an owner lives nobody notices it. When none does any more, after a crash or `ctl stop`, connections wait in the queues,
/// none is refused, and after 2s to 5s it owns, in the phase holding: the next process of the service that starts takes
/// over, with the same listeners. Then it follows that one. It runs until SIGTERM, SIGINT or SIGHUP, or until another one is
/// started with --replace; `ctl stop` ends it while it owns, and with it the service.
///
/// Up to four may keep the same service. While one owns, a signal to end it loses the connections that wait, unless
/// another one keeps them, too. One that has owned and finds no place beside the next owner keeps what it has, and asks
/// again every 10s.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl --socket /run/shop/handoff.sock keep             beside the service, as a unit or a container of its own
  ctl --socket /run/shop/handoff.sock keep --replace   a new version of ctl in place of the one that keeps
  ctl --socket /run/shop/handoff.sock keep --wait      where it may be started before the service, as in a pod

With --json: one object a line: event (following, holding, stopped, replaced; with --wait nobody, while nobody listens \
yet), generation, entries (a number), waiting (connections in the queues, while it owns).

Exit codes: 0 it was told to leave, or replaced; 1 refused or failed; 3 nobody listens. --timeout is for the first answer.")]
pub(crate) struct KeepArgs {
    /// In place of those that keep the listeners now: they leave once this one has everything
    #[arg(long)]
    pub(crate) replace: bool,

    /// Where nobody listens yet, wait for the first start of the service, for as long as it takes
    #[arg(long)]
    pub(crate) wait: bool,

    /// User who may take part beside this one and root, as the service itself allows him; may be repeated
    #[arg(long, value_name = "UID")]
    pub(crate) allow_uid: Vec<u32>,

    /// Group that may take part, as the service itself allows it; may be repeated
    #[arg(long, value_name = "GID")]
    pub(crate) allow_gid: Vec<u32>,

    /// Accept a folder of the control socket that other users can write to, such as an `emptyDir` of Kubernetes
    #[arg(long)]
    pub(crate) allow_shared_folder: bool,
}

/// Show who serves, since when, what it holds, and whether a takeover or a drain is under way
///
/// QUEUE is how many connections wait to be accepted, and how many may wait; the kernel tells it for TCP alone.
#[derive(Debug, Args)]
#[command(after_long_help = "\
With --json: generation, pid, app_version, phase, since, in_flight, left, takeover {pid, app_version, step, progress, \
for, step_for}, predecessor {pid, app_version, generation, in_flight, oldest, left}, drainers [the same], probation {pid, app_version, for, left, overdue}, hold {reason, since, until, by {pid, uid}, suspended}, keepers [{pid, app_version}], listeners [{name, kind, address, accept_queue_length, \
accept_queue_limit, foreign_network_namespace}]. Times are RFC 3339 in UTC, durations like 1m30s; null is unknown or absent.

Phases: starting, serving, handing-over, standing-by, draining, holding, stopping.

Exit codes: 0 done; 1 refused; 3 nobody listens, or nobody is left to watch; 4 no answer in time.")]
pub(crate) struct StatusArgs {
    /// Print a line at each change, also across changes of the owner, until --timeout, Ctrl-C or the end of the service
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Show what became of the last takeovers: when, from whom to whom, how far each came, and why one came to nothing
///
/// The newest is the last. Kept are 32 at most, of which 8 may have been refused and 8 have failed; what was refused or
/// failed again and again in the same way is one line, with how often. They are handed on from generation to generation,
/// in memory: when the service ends, or all of its processes die, the next history begins with a cold-start.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Outcomes: taken-over; refused, before anything was offered; failed, and the old one served on; cold-start, nobody had \
served; resumed, the predecessor took the service back; stopped. A later version may have others.

Steps, each with the time since the begin: offered, sending, warming-up, releasing, released, silent, owning, serving, \
then drained where the predecessor said so, or gone where it went without a word. A start begins with starting.

With --json: takeovers [{began, outcome, from {generation, pid, app_version}, to {generation, pid, app_version}, took, \
steps [{step, at_ms}], cause {code, message}, count, last}]. Times are RFC 3339 in UTC, durations like 1m30s; null is \
unknown or absent.

Exit codes: 0 done; 1 refused, by an owner that keeps no history, too; 3 nobody listens; 4 no answer in time.")]
pub(crate) struct HistoryArgs {
    /// Show the newest N alone
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// End the probation of the new version backwards: the old one, which stands by, serves again
///
/// As in a takeover no client notices, and an application that hands its state on gets it back as it is now. Waits until
/// the old version owns the service; the new one then finishes what it has in flight and goes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
With --json: rolled_back, from {generation, pid, app_version}, to {generation, pid, app_version}.

Exit codes: 0 the old version serves; 1 refused, or it came to nothing, and the new one still serves; 3 nobody listens; \
4 no answer in time, so that the outcome is unknown.")]
pub(crate) struct RollbackArgs {
    /// Why: for the logs of both versions
    #[arg(long, value_name = "TEXT", default_value = "asked by ctl rollback")]
    pub(crate) reason: String,
}

/// Start a new version beside the old one, and wait until it owns the service
///
/// CMD runs in a session of its own, without a terminal or any inherited file, with HEIRLOOM_SOCKET in its environment
/// and its output in the log, or in the journal where that of ctl goes there; it outlives ctl. It must stay in the
/// foreground and take the service over by itself. Where it does not (it exits, somebody else takes over, the time is
/// over, Ctrl-C), ctl ends what it started, shows the end of its log, and says what is true of the service now: the old
/// version goes on as if nothing had been.
///
/// With --probation the old version stands by for so long, whatever CMD asks for: it keeps everything, and serves again
/// at once should the new one die. ctl does not wait for its end: `ctl confirm` and `ctl rollback` end it before its
/// time. (--timeout is for the time until the new version owns.) With --check as well, ctl stays: it runs the check
/// each second, 10s at most each time, until the time has passed and the new version is confirmed. When the check fails
/// once, or on Ctrl-C, ctl gives the service back to the old version; a new version that does not even answer is ended.
/// The check sees HEIRLOOM_SOCKET; its exit code and its last line on stderr are in the reason.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  ctl --socket /run/shop/handoff.sock upgrade -- /opt/shop-2.1/bin/shop --port 443
  ctl upgrade --log /var/log/shop.log --timeout 2m --json -- ./shop
  ctl upgrade --probation 5m -- ./shop      then ctl confirm, ctl rollback, or neither
  ctl upgrade --probation 30s --check 'curl -fsS http://127.0.0.1:8080/health' -- ./shop

With --json: upgraded, from {generation, pid, app_version}, to {generation, pid, app_version}, steps [{step, at_ms}] in \
milliseconds since CMD was started, log (null where the output goes to the journal), probation {pid, app_version, for, left, overdue} or null, checks: how often the \
check went well.

Exit codes: 0 the new version serves; 1 it does not, and the old one still serves, or serves again; 3 nobody listens: start the first \
version directly; 4 nobody answered in the end, so that the outcome is unknown.")]
pub(crate) struct UpgradeArgs {
    /// How long the old version stands by once the new one owns, 24h at most
    #[arg(long, value_name = "DURATION", value_parser = time::of_a_probation)]
    pub(crate) probation: Option<Duration>,

    /// Shell command that tells by its exit code whether the new version is as it should be
    #[arg(long, value_name = "CMD", requires = "probation")]
    pub(crate) check: Option<OsString>,

    /// File to which the output of CMD is appended [default: the journal, where systemd runs ctl and its own output goes
    /// there; otherwise the path of the control socket with .log after it]
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Program of the new version, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Wait until the service is where it should be: for scripts and container hooks
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("what").required(true), after_long_help = "\
Examples:
  ctl wait --ready --timeout 30s      after the start of the first version, or as a readiness probe
  ctl wait --ready --here --timeout 1s  as the health check of one container beside another
  ctl wait --generation 7             until a takeover has happened
  ctl wait --drained                  until the old version has finished and gone

Exit codes: 0 it is so; 1 it was not so in time; 3 in time nobody listened at all. The last status is printed on success.")]
pub(crate) struct WaitArgs {
    /// Until an owner has this generation, or a later one
    #[arg(long, value_name = "N", group = "what")]
    pub(crate) generation: Option<u64>,

    /// Until no predecessor of the owner is left that stands by or finishes what it had in flight
    #[arg(long, group = "what")]
    pub(crate) drained: bool,

    /// Until an owner serves, or a keeper holds the listeners for the next one; it need not listen yet
    #[arg(long, group = "what")]
    pub(crate) ready: bool,

    /// And the owner is a process that this pid namespace has: in a container, that it is this one that serves
    ///
    /// Beside another container with the same control socket, what is asked is whether the new one serves by now. Where
    /// containers share a pid namespace nothing can be told apart by it.
    #[arg(long)]
    pub(crate) here: bool,
}

/// See and steer old versions that finish what they had in flight
///
/// A version that was replaced goes on until nothing is in flight any more, or until its drain deadline. The owner knows
/// its predecessor and, where several takeovers came in a row, those before it; it passes on to them what is asked here.
/// An owner that was asked to stop drains as well, and is steered in the same way.
#[derive(Debug, Args)]
#[command(
    disable_help_subcommand = true,
    after_long_help = "\
Examples:
  ctl drain status                      who drains, and what is it waiting for?
  ctl drain extend 5m                   the large download may finish
  ctl drain finish --generation 6       end what generation 6 has in flight

With --json: drainers [{pid, app_version, generation, in_flight, oldest, left}], oldest being for how long the oldest of \
what is in flight has been going on; `extend`: extended, the duration; `finish`: finished. null is unknown or absent.

Exit codes: 0 done; 1 refused, for `extend` and `finish` also where nobody drains; 3 nobody listens; 4 no answer in \
time: one that drains may be stopped, and obeys when it goes on."
)]
pub(crate) struct DrainArgs {
    #[command(subcommand)]
    pub(crate) command: DrainCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrainCommand {
    /// Show who drains, how much is in flight, since when, and until when it may go on; an empty list where nobody does
    Status,
    /// Move the drain deadline
    Extend {
        /// By how much it moves, such as 30s or 5m
        #[arg(value_name = "DURATION", value_parser = time::parse)]
        by: Duration,
        /// Only that of this generation; of all that drain unless told otherwise
        #[arg(long, value_name = "N")]
        generation: Option<u64>,
    },
    /// End the drain now, with whatever is still in flight
    Finish {
        /// Only that of this generation; of all that drain unless told otherwise
        #[arg(long, value_name = "N")]
        generation: Option<u64>,
    },
}

const AFTER_HELP: &str = "\
Examples:
  export HEIRLOOM_SOCKET=/run/shop/handoff.sock
  ctl status                                who serves, and what is going on
  ctl status --watch --json                 the same after each change, for a program
  ctl history                               what became of the last takeovers
  ctl handoff                               rehearse a takeover; changes nothing
  ctl check                                 is the owner safe from whatever a broken successor may do?
  ctl upgrade -- /opt/shop-2.1/bin/shop     replace the program, or leave everything as it was
  ctl upgrade --probation 5m -- ./shop      the same, and the old one can take the service back
  ctl rollback                              now it does
  ctl hold --reason 'disk full' --for 2h    no takeover until that is over, or ctl hold --lift
  ctl wait --drained --timeout 30s          until the old version is gone
  ctl drain extend 5m                       an old version may take longer to finish
  ctl stop                                  end the service

Environment:
  HEIRLOOM_SOCKET    the control socket, where --socket is not given

Exit codes:
  0  done
  1  refused or failed; for `upgrade` and `handoff`, the old version still serves, for `rollback` the new one; `wait` was in vain
  2  wrong usage
  3  nobody listens at the control socket
  4  a deadline passed and the outcome is unknown

Data goes to stdout, everything else to stderr. `ctl COMMAND --help` tells more.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_belongs_to_a_commit() {
        assert!(Cli::try_parse_from(["ctl", "handoff", "--", "true"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "handoff", "--drain", "1s"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "handoff", "--commit", "--name", "web"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "handoff", "--commit", "--", "true"]).is_ok());
    }

    #[test]
    fn a_check_belongs_to_a_probation() {
        assert!(Cli::try_parse_from(["ctl", "upgrade", "--check", "true", "--", "true"]).is_err());
        let both = ["ctl", "upgrade", "--probation", "1m", "--check", "true", "--", "true"];
        assert!(Cli::try_parse_from(both).is_ok());
    }

    #[test]
    fn one_thing_is_waited_for() {
        assert!(Cli::try_parse_from(["ctl", "wait"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "wait", "--ready", "--drained"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "wait", "--here"]).is_err());
        assert!(Cli::try_parse_from(["ctl", "wait", "--generation", "3"]).is_ok());
        assert!(Cli::try_parse_from(["ctl", "wait", "--ready", "--here"]).is_ok());
    }
}
