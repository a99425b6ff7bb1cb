//! `wire.md` is true: its vectors are what this crate reads and writes, and its tables name the fields that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{Refusal, Who};
use crate::history::{Cause, Side, StepTime, TakeoverRecord};
use crate::hold::{Hold, SetBy};
use crate::manifest::{Entry, FileIdentity, Kind, SocketIdentity, StateKind};
use crate::protocol::Deadlines;
use crate::protocol::message::*;
use crate::protocol::predecessor::{self, Predecessor};
use crate::protocol::successor::Successor;
use crate::status::{DrainStatus, ListenerStatus, Phase, ProbationStatus, Status, TakeoverStatus};
use crate::wire::{Assembler, Fault, Frame, Header, MAX_BODY, OPTIONAL, decode_body};

const WIRE: &str = include_str!("../wire.md");

/// The message that each vector of `wire.md` stands for, by the vector's name.
fn samples() -> BTreeMap<&'static str, Message> {
    let who = Who { pid: 4711, app_version: "2.1.0".to_owned() };
    let web = Entry {
        name: "web".to_owned(),
        kind: Kind::TcpListener,
        address: "127.0.0.1:8080".to_owned(),
        requested: "127.0.0.1:8080".to_owned(),
        path: None,
        path_inode: None,
        backlog: Some(4096),
        file: None,
        socket: Some(SocketIdentity {
            cookie: 4242,
            domain: 2,
            kind: 1,
            listening: true,
            local: "127.0.0.1:8080".to_owned(),
            network_namespace: Some(1),
        }),
        retired: true,
    };
    let admin = Entry {
        name: "admin".to_owned(),
        kind: Kind::UnixListener,
        address: "/run/shop/admin.sock".to_owned(),
        requested: "/run/shop/admin.sock".to_owned(),
        path: Some(b"/run/shop/admin.sock".to_vec()),
        path_inode: Some((25, 1234)),
        backlog: Some(128),
        file: None,
        socket: Some(SocketIdentity {
            cookie: 4243,
            domain: 1,
            kind: 1,
            listening: true,
            local: "/run/shop/admin.sock".to_owned(),
            network_namespace: Some(1),
        }),
        retired: false,
    };
    let spool = Entry {
        name: "spool".to_owned(),
        kind: Kind::Raw,
        address: String::new(),
        requested: String::new(),
        path: None,
        path_inode: None,
        backlog: None,
        file: Some(FileIdentity { device: 1, inode: 77, kind: 0o100_000 }),
        socket: None,
        retired: false,
    };
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        nonce: 0x0123_4567_89ab_cdef,
        pid: 4711,
        app_version: "2.1.0".to_owned(),
        wants: Wants::Takeover,
        network_namespace: Some(1),
        state: true,
        history: true,
        drain_links: false,
        probation_ms: None,
        hold: false,
        replaces: false,
    };
    let offer = Offer {
        version: 1,
        generation: 7,
        entries: 3,
        descriptors: 7,
        pid: 4200,
        app_version: "2.0.9".to_owned(),
        release_ms: 10_000,
        commit_ms: 2000,
        stall_ms: 60_000,
        warm_up_ms: 600_000,
        backlog: Some(128),
        path_inode: Some((25, 1233)),
        state: Some(StateKind { schema: "counter".to_owned(), version: 3 }),
        window: Some(506),
        probation_ms: None,
        hold: false,
    };
    let busy = Refusal {
        code: "busy".to_owned(),
        message: "another successor is at it".to_owned(),
        who: Some(who.clone()),
        since_ms: Some(1500),
        retry_after_ms: Some(1000),
    };
    let ready = Ready {
        adopted: 2,
        bound: vec!["metrics".to_owned()],
        dropped: vec!["spool".to_owned()],
        missing: vec!["old".to_owned()],
    };
    let state = State { schema: "counter".to_owned(), version: 3, length: 9, checksum: Some(0xcbf4_3926) };
    let side = |generation, who: &Who| Some(Side { generation, pid: who.pid, app_version: who.app_version.clone() });
    let record = TakeoverRecord {
        began: 1_764_000_000_000,
        outcome: "failed".to_owned(),
        from: side(Some(7), &Who { pid: 4200, app_version: "2.0.9".to_owned() }),
        to: side(None, &who),
        steps: vec![
            StepTime { step: "offered".to_owned(), at_ms: 0 },
            StepTime { step: "sending".to_owned(), at_ms: 2 },
        ],
        took_ms: 5002,
        cause: Some(Cause { code: "deadline".to_owned(), message: "the successor did not answer in time".to_owned() }),
        count: 1,
        last: 1_764_000_000_000,
    };
    let hold = Hold {
        reason: "disk full".to_owned(),
        left_ms: Some(600_000),
        since: 1_764_000_000_000,
        by: SetBy { pid: 4300, uid: 1000 },
        suspended: false,
    };
    let suspended = Hold { suspended: true, ..hold.clone() };
    let asked = Hold { since: 0, by: SetBy::default(), ..hold.clone() };
    let status = Status {
        generation: 7,
        pid: 4200,
        app_version: "2.0.9".to_owned(),
        phase: Phase::HandingOver,
        since: 1_764_000_000_000,
        in_flight: 3,
        left_ms: None,
        takeover: Some(TakeoverStatus {
            who: who.clone(),
            step: "warming-up".to_owned(),
            progress: "loading 40%".to_owned(),
            since_ms: 1500,
            step_since_ms: 40,
        }),
        predecessor: Some(DrainStatus {
            who: Who { pid: 4100, app_version: "2.0.8".to_owned() },
            in_flight: Some(1),
            left_ms: Some(12_000),
            ..DrainStatus::default()
        }),
        drainers: Vec::new(),
        probation: None,
        hold: None,
        keepers: Vec::new(),
        listener_count: 1,
        listeners: Vec::new(),
    };
    let listener = ListenerStatus {
        name: "web".to_owned(),
        kind: "tcp-listener".to_owned(),
        address: "127.0.0.1:8080".to_owned(),
        accept_queue: Some(0),
        accept_queue_limit: Some(4096),
        foreign_network_namespace: Some(2),
    };
    let probation = Some(60_000);
    let on_probation = ProbationStatus { who: who.clone(), since_ms: 1500, left_ms: Some(58_500), overdue: false };
    let back =
        TakeBack { nonce: 0x0123_4567_89ab_cdef, reason: "check failed".to_owned(), lost: vec!["metrics".to_owned()] };
    let drain = DrainStatus {
        who: Who { pid: 4000, app_version: "2.0.7".to_owned() },
        generation: Some(6),
        in_flight: Some(1),
        left_ms: Some(12_000),
        oldest_ms: Some(48_000),
    };
    let steered =
        Draining { in_flight: 2, left_ms: Some(58_500), oldest_ms: Some(61_000), obeyed: Some(0x0123_4567_89ab_cdef) };
    let keeper = Who { pid: 4300, app_version: "ctl 0.1.0".to_owned() };
    let keeping = Hello { wants: Wants::Hold, replaces: true, state: false, history: false, ..hello.clone() };
    BTreeMap::from([
        ("hello-drain-links", Hello { drain_links: true, ..hello.clone() }.into()),
        ("draining-steered", steered.into()),
        ("drainer", Drainer { drain: drain.clone(), forced: None }.into()),
        ("drainer-gone", Drainer { drain: drain.clone(), forced: Some(true) }.into()),
        ("steer", Steer { number: 0x0123_4567_89ab_cdef, order: Order::Extend, by_ms: Some(30_000) }.into()),
        ("ask-extend-drain", Ask { by_ms: Some(30_000), ..Ask::from(Question::ExtendDrain) }.into()),
        ("ask-finish-drain", Ask { generation: Some(6), ..Ask::from(Question::FinishDrain) }.into()),
        ("status-drainers", Status { generation: 8, drainers: vec![drain], ..Status::default() }.into()),
        ("hello-hold", Hello { hold: true, ..hello.clone() }.into()),
        ("offer-hold", Offer { hold: true, ..offer.clone() }.into()),
        ("status-hold", Status { generation: 8, hold: Some(hold.clone()), ..Status::default() }.into()),
        ("status-suspended", Status { generation: 8, hold: Some(suspended), ..Status::default() }.into()),
        ("hello-probation", Hello { probation_ms: probation, ..hello.clone() }.into()),
        ("offer-probation", Offer { probation_ms: probation, ..offer.clone() }.into()),
        ("owning-probation", Owning { generation: 8, probation_ms: probation }.into()),
        ("take-back", back.into()),
        ("ask-confirm", Ask::from(Question::Confirm).into()),
        ("ask-rollback", Ask { reason: "check failed".to_owned(), ..Ask::from(Question::Rollback) }.into()),
        ("ask-probation", Ask { probation_ms: probation, ..Ask::from(Question::Probation) }.into()),
        ("status-probation", Status { generation: 8, probation: Some(on_probation), ..Status::default() }.into()),
        ("hello", Message::from(hello.clone())),
        ("hello-holder", keeping.into()),
        ("status-keepers", Status { generation: 8, keepers: vec![keeper], ..Status::default() }.into()),
        ("hello-rehearsal", Hello { wants: Wants::Rehearsal, state: false, history: false, ..hello }.into()),
        ("refused", busy.into()),
        ("offer", offer.into()),
        ("entries", Entries { entries: [web, admin, spool].map(Arc::new).to_vec() }.into()),
        ("room", Room { descriptors: 7 }.into()),
        ("descriptors", Message::Descriptors(7)),
        ("ack", Ack { descriptors: 7 }.into()),
        ("progress", Progress { text: "loading 40%".to_owned() }.into()),
        ("ready", ready.into()),
        ("state", state.into()),
        ("changed", Changed {}.into()),
        ("history", History { takeovers: vec![record] }.into()),
        ("held", Held { hold: Some(hold) }.into()),
        ("released", Released { nonce: 0x0123_4567_89ab_cdef }.into()),
        ("owning", Owning { generation: 8, probation_ms: None }.into()),
        ("confirmed", Confirmed {}.into()),
        ("draining", Draining { in_flight: 2, left_ms: Some(28_500), ..Draining::default() }.into()),
        ("bye", Bye { forced: false, in_flight: 0, stays: false }.into()),
        ("abort", Abort(Refusal::new("cancelled", "the successor was cancelled")).into()),
        ("ask-status", Ask::from(Question::Status).into()),
        ("ask-watch", Ask::from(Question::Watch).into()),
        ("ask-stop", Ask::from(Question::Stop).into()),
        ("ask-history", Ask::from(Question::History).into()),
        ("ask-hold", Ask { hold: Some(asked), ..Ask::from(Question::Hold) }.into()),
        ("ask-lift", Ask::from(Question::Lift).into()),
        ("status", status.into()),
        ("listeners", Listeners { listeners: vec![listener] }.into()),
        ("done", Done {}.into()),
        ("unknown-optional", Message::Unknown(200)),
    ])
}

/// The fenced blocks of `wire.md` that hold bytes: a name in the first line, then hexadecimal digits.
fn vectors() -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for block in WIRE.split("```hex\n").skip(1) {
        let (name, digits) = block.split_once('\n').unwrap();
        let digits: String =
            digits.split("```").next().unwrap().chars().filter(|digit| !digit.is_whitespace()).collect();
        let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
        assert!(found.insert(name.trim().to_owned(), bytes.collect()).is_none(), "{name} twice");
    }
    found
}

/// Reads one frame, whatever its sequence number says.
fn frame(bytes: &[u8]) -> Frame {
    let header = Header::decode(bytes[..16].try_into().unwrap()).unwrap();
    let body = bytes[16..].to_vec();
    assert_eq!(header.body as usize, body.len());
    Frame { header, body }
}

#[test]
fn each_vector_is_read_and_written_again_byte_by_byte() {
    let (vectors, samples) = (vectors(), samples());
    let names = |keys: Vec<String>| keys.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(
        names(vectors.keys().cloned().collect()),
        names(samples.keys().map(ToString::to_string).collect()),
        "the vectors of wire.md"
    );
    for (name, message) in samples {
        let bytes = &vectors[name];
        let frame = frame(bytes);
        assert_eq!(Message::decode(&frame).unwrap_or_else(|fault| panic!("{name}: {fault}")), message, "{name}");
        let mut again = Header { kind: message.kind(), ..frame.header }.encode().to_vec();
        if name != "unknown-optional" {
            again.extend(message.body());
            assert_eq!(frame.header.flags, 0, "{name}");
        } else {
            again.extend(&frame.body);
            assert_eq!(frame.header.flags, OPTIONAL);
        }
        assert_eq!(hex(&again), hex(bytes), "{name}");
    }
}

/// What is decoded with the optional flag set and is not `Unknown` is known; all of that has a vector and a heading.
#[test]
fn every_kind_has_a_vector_a_heading_and_a_row() {
    let covered: BTreeMap<u8, &str> = samples().values().map(|message| (message.kind(), message.word())).collect();
    for kind in 0..=u8::MAX {
        let header = Header { kind, flags: OPTIONAL, descriptors: 0, body: 0, sequence: 0 };
        let known = !matches!(Message::decode(&Frame { header, body: Vec::new() }), Ok(Message::Unknown(_)));
        if known {
            let word = covered.get(&kind).unwrap_or_else(|| panic!("kind {kind} has no vector"));
            assert!(WIRE.contains(&format!("\n### {kind} `{word}`\n")), "no heading for {kind} {word}");
            assert!(WIRE.contains(&format!("\n| {kind} | `{word}` |")), "no row for {kind} {word}");
        }
    }
}

/// The two blocks of a takeover and its answer are one stream: numbered from 0 in each direction.
#[test]
fn the_hello_and_the_offer_are_the_first_of_their_streams() {
    let vectors = vectors();
    for streams in [&["hello"][..], &["offer", "entries", "descriptors"], &["ask-status"], &["status", "listeners"]] {
        let bytes: Vec<u8> = streams.iter().flat_map(|name| vectors[*name].clone()).collect();
        let (mut assembler, mut at, mut frames) = (Assembler::default(), 0, 0);
        while at < bytes.len() {
            let space = assembler.space();
            let count = space.len().min(bytes.len() - at);
            space[..count].copy_from_slice(&bytes[at..at + count]);
            at += count;
            frames += usize::from(assembler.advance(count).unwrap().is_some());
        }
        assert_eq!(frames, streams.len());
    }
}

/// MessagePack, as far as a test needs it: maps by key, with the bytes of each value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Map(Vec<(String, Vec<u8>, Value)>),
    List(Vec<Value>),
    Plain,
}

/// A second reader, written from the description alone.
fn parse(bytes: &mut &[u8]) -> Value {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(count);
        *bytes = tail;
        head
    }
    fn length(bytes: &mut &[u8], width: usize) -> usize {
        take(bytes, width).iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }
    fn map(bytes: &mut &[u8], count: usize) -> Value {
        let mut fields = Vec::new();
        for _ in 0..count {
            let marker = take(bytes, 1)[0];
            assert_eq!(marker & 0xe0, 0xa0, "a key is a short string");
            let key = String::from_utf8(take(bytes, usize::from(marker & 0x1f)).to_vec()).unwrap();
            let before = *bytes;
            let value = parse(bytes);
            fields.push((key, before[..before.len() - bytes.len()].to_vec(), value));
        }
        Value::Map(fields)
    }
    fn list(bytes: &mut &[u8], count: usize) -> Value {
        Value::List((0..count).map(|_| parse(bytes)).collect())
    }
    let marker = take(bytes, 1)[0];
    let skip = match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => 0,
        0x80..=0x8f => return map(bytes, usize::from(marker & 0x0f)),
        0x90..=0x9f => return list(bytes, usize::from(marker & 0x0f)),
        0xa0..=0xbf => usize::from(marker & 0x1f),
        0xc4 | 0xd9 => length(bytes, 1),
        0xcc | 0xd0 => 1,
        0xcd | 0xd1 => 2,
        0xce | 0xd2 => 4,
        0xcf | 0xd3 => 8,
        0xde => {
            let count = length(bytes, 2);
            return map(bytes, count);
        }
        0xdc => {
            let count = length(bytes, 2);
            return list(bytes, count);
        }
        other => panic!("marker {other:#x}"),
    };
    take(bytes, skip);
    Value::Plain
}

/// A row of a table of fields.
#[derive(Debug)]
struct Row {
    field: String,
    required: bool,
}

/// The tables of fields, by the name that the heading above them gives in backticks.
fn tables() -> BTreeMap<String, Vec<Row>> {
    let mut found: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let (mut heading, mut inside) = (String::new(), false);
    for line in WIRE.lines() {
        if line.starts_with("###") {
            heading = line.split('`').nth(1).unwrap_or_default().to_owned();
        }
        if line.starts_with("| field |") {
            inside = true;
            found.entry(heading.clone()).or_default();
        } else if inside && line.starts_with("| `") {
            let cells: Vec<&str> = line.split(" | ").collect();
            let field = cells[0].trim_start_matches("| ").trim_matches('`').to_owned();
            found.get_mut(&heading).unwrap().push(Row { field, required: cells[2] == "required" });
        } else if !line.starts_with('|') {
            inside = false;
        }
    }
    found
}

fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Map(fields) => fields.iter().map(|(key, _, _)| key.clone()).collect(),
        _ => panic!("not a map: {value:?}"),
    }
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    match value {
        Value::Map(fields) => &fields.iter().find(|(key, _, _)| key == name).unwrap().2,
        Value::List(items) => {
            let has = |item: &&Value| keys(item).iter().any(|key| key == name);
            field(items.iter().find(has).unwrap(), name)
        }
        Value::Plain => panic!("no field {name} in a plain value"),
    }
}

fn sample(name: &str) -> Value {
    let body = samples()[name].body();
    let mut rest = body.as_slice();
    let value = parse(&mut rest);
    assert!(rest.is_empty());
    value
}

#[test]
fn each_table_names_the_fields_that_are_written_in_their_order() {
    let tables = tables();
    // What is nil is left out in some, so it takes several of them to see all fields.
    let check = |table: &str, value: &Value| {
        let values = if let Value::List(items) = value { &items[..] } else { std::slice::from_ref(value) };
        let rows = tables.get(table).unwrap_or_else(|| panic!("no table for {table}"));
        let named: Vec<String> = rows.iter().map(|row| row.field.clone()).collect();
        for value in values {
            let keys = keys(value);
            assert!(keys.is_sorted_by_key(|key| named.iter().position(|name| name == key)), "{table}: {keys:?}");
        }
        let written: BTreeSet<String> = values.iter().flat_map(keys).collect();
        assert_eq!(written, named.into_iter().collect(), "{table}");
    };
    let mut seen = BTreeSet::new();
    let mut written: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (name, message) in samples() {
        let empty = matches!(message, Message::Confirmed(_) | Message::Changed(_) | Message::Done(_));
        if !empty && !matches!(message, Message::Unknown(_) | Message::Descriptors(_)) {
            written.entry(message.word()).or_default().push(sample(name));
        }
    }
    for (word, values) in written {
        check(word, &Value::List(values));
        seen.insert(word.to_owned());
    }
    let (refused, entries, status, listeners) =
        (sample("refused"), sample("entries"), sample("status"), sample("listeners"));
    let (on_probation, draining) = (sample("status-probation"), sample("status-drainers"));
    let (history, held, suspended) = (sample("history"), sample("held"), sample("status-suspended"));
    let record = field(&history, "takeovers");
    let takeover = field(&status, "takeover");
    let offer = sample("offer");
    let nested = [
        ("who", field(&refused, "who")),
        ("state-kind", field(&offer, "state")),
        ("entry", field(&entries, "entries")),
        ("file", field(field(&entries, "entries"), "file")),
        ("socket", field(field(&entries, "entries"), "socket")),
        ("takeover", takeover),
        ("drain", field(&draining, "drainers")),
        ("probation", field(&on_probation, "probation")),
        ("hold", field(&suspended, "hold")),
        ("set-by", field(field(&held, "hold"), "by")),
        ("listener", field(&listeners, "listeners")),
        ("record", record),
        ("side", field(record, "from")),
        ("step", field(record, "steps")),
        ("cause", field(record, "cause")),
    ];
    for (table, value) in nested {
        check(table, value);
        seen.insert(table.to_owned());
    }
    assert_eq!(seen, tables.keys().cloned().collect(), "tables of things that are not sent");
}

/// A field that the tables call required is missed, and no other.
#[test]
fn a_missing_field_is_an_error_only_where_the_table_says_so() {
    let tables = tables();
    for (name, message) in samples() {
        let Some(rows) = tables.get(message.word()) else { continue };
        let Value::Map(fields) = sample(name) else { panic!("{name} is not a map") };
        let is_written = |row: &&Row| fields.iter().any(|(key, _, _)| *key == row.field);
        for row in rows.iter().filter(is_written) {
            let mut body = map_of(fields.len() - 1);
            for (key, value, _) in fields.iter().filter(|(key, _, _)| *key != row.field) {
                body.push(0xa0 | key.len() as u8);
                body.extend(key.as_bytes());
                body.extend(value);
            }
            let header =
                Header { kind: message.kind(), flags: 0, descriptors: 0, body: body.len() as u32, sequence: 0 };
            let read = Message::decode(&Frame { header, body });
            assert_eq!(read.is_err(), row.required, "{name} without {}: {read:?}", row.field);
        }
    }
}

fn decode(kind: u8, body: &[u8]) -> Result<Message, Fault> {
    let header = Header { kind, flags: 0, descriptors: 0, body: body.len() as u32, sequence: 0 };
    Message::decode(&Frame { header, body: body.to_vec() })
}

/// How a map of so many fields begins.
fn map_of(count: usize) -> Vec<u8> {
    match count as u16 {
        few @ 0..=15 => vec![0x80 | few as u8],
        many => [&[0xde][..], &many.to_be_bytes()].concat(),
    }
}

/// A map of a newer version, with one more field.
fn extended(body: &[u8], value: &[u8]) -> Vec<u8> {
    let (count, fields) = match body {
        [0xde, high, low, fields @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), fields),
        _ => (usize::from(body[0] & 0x0f), &body[1..]),
    };
    let mut longer = map_of(count + 1);
    longer.extend(fields);
    longer.extend(b"\xa5newer");
    longer.extend(value);
    longer
}

#[test]
fn unknown_fields_are_ignored_whatever_they_hold() {
    let values: [&[u8]; 8] = [
        b"\xc0",
        b"\x93\x01\xa1x\xc4\x02\xff\xff",
        b"\x82\xa1a\x01\x02\x03",
        b"\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x01\x05\x00",
        b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xda\x00\x02\xff\xfe",
    ];
    for (name, message) in samples() {
        let body = message.body();
        if body.is_empty() {
            continue;
        }
        for value in values {
            assert_eq!(decode(message.kind(), &extended(&body, value)).as_ref(), Ok(&message), "{name} {value:x?}");
        }
    }
}

#[test]
fn nesting_ends_at_the_limit_that_is_written_down() {
    let body = samples()["released"].body();
    let nested = |depth: usize| extended(&body, &[vec![0x91; depth - 1], vec![0xc0]].concat());
    // The body's own map is the first level.
    let deepest = (1..32).take_while(|depth| decode(10, &nested(*depth)).is_ok()).count();
    assert!(WIRE.contains(&format!("nested {deepest} deep")), "the limit is {deepest}");
    assert_eq!(decode(10, &nested(deepest + 1)), Err(Fault::Body("released")));
}

#[test]
fn a_body_is_a_map_and_never_a_list_of_positions() {
    assert_eq!(decode(5, b"\x91\x07"), Err(Fault::Body("room")));
    assert_eq!(decode(5, b"\x07"), Err(Fault::Body("room")));
    assert!(decode_body::<Room>("room", b"\x81\xabdescriptors\x07").is_ok());
    assert!(decode_body::<Room>("room", b"\xde\x00\x01\xabdescriptors\x07").is_ok(), "map 16");
    assert!(decode_body::<Room>("room", b"\xdf\x00\x00\x00\x01\xabdescriptors\x07").is_ok(), "map 32");
}

#[test]
fn lists_and_names_have_limits() {
    let list = |count: u16| {
        let mut body = b"\x81\xa5bound\xdc".to_vec();
        body.extend(count.to_be_bytes());
        body.extend(vec![0xa0; usize::from(count)]);
        decode(9, &body)
    };
    assert!(list(4096).is_ok());
    assert_eq!(list(4097), Err(Fault::Body("ready")));
    let offer = samples()["offer"].clone();
    let Message::Offer(offer) = offer else { panic!() };
    let read = |offer: Offer| decode(3, &Message::from(offer).body());
    let fault = Err(Fault::Body("offer"));
    assert!(read(Offer { entries: 1_000_000, descriptors: 1_000_004, ..offer.clone() }).is_ok());
    assert_eq!(read(Offer { entries: 1_000_001, descriptors: 1_000_005, ..offer.clone() }), fault);
    assert_eq!(read(Offer { entries: 5, descriptors: 4, ..offer.clone() }), fault);
    assert_eq!(read(Offer { generation: u64::MAX, ..offer }), fault, "no generation comes after it");
}

/// A status or a refusal passes on what somebody else has said. It must fit a frame whatever that was.
#[test]
fn what_is_passed_on_fits_a_frame() {
    let long = "é".repeat(30_000);
    let who = Who { pid: 1, app_version: long.clone() };
    let mut owner = Predecessor::new(1, 0, false, Deadlines::default(), Who::default(), 128);
    let mut out = Vec::new();
    let hello = Hello { min_version: 1, max_version: 1, nonce: 1, app_version: long.clone(), ..Hello::default() };
    owner.handle(predecessor::Input::Ready, &mut out);
    for message in [
        Message::from(hello.clone()),
        Room { descriptors: 4 }.into(),
        Ack { descriptors: 4 }.into(),
        Progress { text: long.clone() }.into(),
    ] {
        owner.handle(predecessor::Input::Message(1, message), &mut out);
    }
    owner.handle(predecessor::Input::Message(2, hello.into()), &mut out);
    let refused = out.iter().find_map(|output| match output {
        predecessor::Output::Refuse(2, why) => Some(Message::Refused(why.clone()).body().len()),
        _ => None,
    });
    assert!(refused.unwrap() < 4096);
    let (who_takes_over, _, progress) = owner.takeover().unwrap();
    assert!(who_takes_over.app_version.len() <= 1024 && progress.len() <= 1024);
    assert!(progress.starts_with('é'));
    assert!(Successor::hello(1, who, Wants::Takeover, None).app_version.len() <= 1024);
}

#[test]
fn a_report_with_the_longest_names_fits_a_frame() {
    let names: Vec<String> = (0..5000).map(|name| format!("{name:0255}")).collect();
    let report = Ready { adopted: 9, bound: names.clone(), dropped: names.clone(), missing: names }.cut();
    let body = Message::from(report.clone()).body();
    assert!(body.len() < MAX_BODY, "{}", body.len());
    assert_eq!(decode(9, &body), Ok(report.into()));
    let short: Vec<String> = (0..5000).map(|name| name.to_string()).collect();
    assert_eq!(Ready { bound: short, ..Ready::default() }.cut().bound.len(), 256);
}

/// All that is kept of the longest takeovers goes into one frame.
#[test]
fn the_longest_history_fits_a_frame() {
    let long = "é".repeat(30_000);
    let side = Some(Side { generation: Some(u64::MAX), pid: u32::MAX, app_version: long.clone() });
    let record = TakeoverRecord {
        began: u64::MAX,
        outcome: long.clone(),
        from: side.clone(),
        to: side,
        steps: vec![StepTime { step: long.clone(), at_ms: u64::MAX }; 100],
        took_ms: u64::MAX,
        cause: Some(Cause { code: long.clone(), message: long }),
        count: u32::MAX,
        last: u64::MAX,
    };
    let kept = crate::history::History::of(vec![record; 100]);
    let body = Message::from(History { takeovers: kept.records().to_vec() }).body();
    assert!(kept.records().len() == 32 && body.len() < MAX_BODY, "{}", body.len());
    assert!(decode(20, &body).is_ok());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
