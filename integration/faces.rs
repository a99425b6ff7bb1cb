//! The ways to wait: blocking, mio, tokio, and a descriptor that is polled by hand. All in this one process: every
//! generation has a lock of its own.

use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use heirloom::{Drained, Event, Handoff, PredecessorEnd, Reason, Serving};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::puppet::{PATIENCE, Scene};

fn handoff(scene: &Scene, version: &str) -> Handoff {
    Handoff::at(scene.control()).app_version(version)
}

/// A blocking start with one listener.
fn serve(scene: &Scene, version: &str) -> (Serving, Arc<std::net::TcpListener>) {
    let mut starting = handoff(scene, version).start().unwrap();
    let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
    (starting.ready().unwrap(), web)
}

/// The loop of a program that knows nothing of probations.
#[test]
fn blocking_accept_waits_while_its_process_stands_by() {
    let scene = Scene::new();
    let (mut first, web) = serve(&scene, "1");
    let address = web.local_addr().unwrap();
    let serving = thread::spawn(move || {
        while let Some((mut stream, _)) = first.accept(&web).unwrap() {
            stream.write_all(first.generation().to_string().as_bytes()).unwrap();
        }
        assert_eq!(first.left(), Some(Reason::Stopped));
        assert!(matches!(first.drain().unwrap(), Drained::Done(_)));
    });
    let mut starting = handoff(&scene, "2").probation(Duration::from_secs(600)).start().unwrap();
    let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
    let mut second = starting.ready().unwrap();
    assert!(second.probation().is_some());
    let mut clients = Vec::new();
    for _ in 0..10 {
        let client = thread::spawn(move || ask(address));
        let (mut stream, _) = second.accept(&web).unwrap().unwrap();
        stream.write_all(b"2").unwrap();
        clients.push(client);
    }
    assert!(clients.into_iter().all(|client| client.join().unwrap() == "2"), "the one that stands by accepts nothing");
    second.give_back("test").unwrap();
    assert_eq!(second.wait().unwrap(), Event::Leave(Reason::RolledBack));
    assert!(matches!(second.drain().unwrap(), Drained::Done(_)));
    assert_eq!(ask(address), "3");
    let mut client = heirloom::Client::connect(scene.control(), PATIENCE).unwrap();
    client.stop().unwrap();
    serving.join().unwrap();
}

fn ask(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    line
}

fn readable(stage: &impl AsFd, within: Duration) -> bool {
    let mut waiting = [PollFd::new(stage.as_fd(), PollFlags::POLLIN)];
    poll(&mut waiting, PollTimeout::try_from(within).unwrap()).unwrap() == 1
}

#[test]
fn blocking_accept_serves_until_a_successor_owns_and_drain_waits_for_the_leases() {
    let scene = Scene::new();
    let (mut first, web) = serve(&scene, "1");
    let address = web.local_addr().unwrap();
    let (told, tells) = channel();
    let serving = thread::spawn(move || {
        let mut last = None;
        while let Some((mut stream, _)) = first.accept(&web).unwrap() {
            last = Some(first.lease());
            stream.write_all(b"1").unwrap();
        }
        assert_eq!(first.left(), Some(Reason::Successor));
        let lease = last.unwrap();
        assert!(lease.draining());
        told.send(()).unwrap();
        // Another thread ends what is in flight while this one drains.
        let ending = thread::spawn(move || drop(lease));
        let Drained::Done(summary) = first.drain().unwrap() else { panic!("resumed") };
        assert_eq!((summary.forced, summary.in_flight), (false, 0));
        ending.join().unwrap();
    });
    assert_eq!(ask(address), "1");
    let (mut second, web) = serve(&scene, "2");
    tells.recv_timeout(PATIENCE).unwrap();
    serving.join().unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = second.accept(&web).unwrap().unwrap();
        stream.write_all(b"2").unwrap();
        second
    });
    assert_eq!(ask(address), "2");
    let second = answering.join().unwrap();
    assert_eq!(second.generation(), 2);
    let Drained::Done(_) = second.drain().unwrap() else { panic!("resumed") };
}

#[test]
fn blocking_accept_ends_when_a_stop_is_asked_from_another_thread() {
    let scene = Scene::new();
    let (mut first, web) = serve(&scene, "1");
    let address = web.local_addr().unwrap();
    let waiting = TcpStream::connect(address).unwrap();
    let stopper = first.stopper();
    let stopping = thread::spawn(move || stopper.stop());
    // What waits in the queue is served before the end.
    let mut served = 0;
    while first.accept(&web).unwrap().is_some() {
        served += 1;
    }
    assert_eq!((served, first.left()), (1, Some(Reason::Stopped)));
    stopping.join().unwrap();
    drop(waiting);
    let Drained::Done(summary) = first.drain().unwrap() else { panic!("resumed") };
    assert!(!summary.forced);
}

#[test]
fn a_blocking_drain_resumes_when_its_successor_is_gone() {
    let scene = Scene::new();
    let (mut first, web) = serve(&scene, "1");
    let address = web.local_addr().unwrap();
    let (leaves, left) = channel();
    let draining = thread::spawn(move || {
        assert!(first.accept(&web).unwrap().is_none());
        let _lease = first.lease();
        leaves.send(()).unwrap();
        let Drained::Resumed(mut again) = first.drain().unwrap() else { panic!("not resumed") };
        let (mut stream, _) = again.accept(&web).unwrap().unwrap();
        stream.write_all(again.generation().to_string().as_bytes()).unwrap();
        again
    });
    let (second, _) = serve(&scene, "2");
    left.recv_timeout(PATIENCE).unwrap();
    // As a crash would: without a word.
    drop(second);
    assert_eq!(ask(address), "3");
    assert!(draining.join().unwrap().is_owner());
}

#[test]
fn a_blocking_start_is_cancelled_from_another_thread() {
    let scene = Scene::new();
    let first = handoff(&scene, "1").start().unwrap();
    let mut second = handoff(&scene, "2");
    let stopper = second.stopper().unwrap();
    let starting = thread::spawn(move || second.start().map(drop));
    stopper.stop();
    assert_eq!(starting.join().unwrap().unwrap_err().code(), "cancelled");
    drop(first);
    assert!(!scene.control().exists());
}

#[test]
fn wait_answers_the_control_socket() {
    let scene = Scene::new();
    let mut first = handoff(&scene, "1").start().unwrap();
    let path = scene.control();
    let asking = thread::spawn(move || {
        let mut client = heirloom::Client::connect(path, PATIENCE).unwrap();
        client.status().unwrap().phase
    });
    while !asking.is_finished() {
        first.wait(Duration::from_millis(20)).unwrap();
    }
    assert_eq!(asking.join().unwrap(), heirloom::Phase::Starting);
}

#[test]
fn a_descriptor_polled_by_hand_is_readable_when_there_is_something_to_do_and_not_before() {
    let scene = Scene::new();
    let (mut first, _) = serve(&scene, "1");
    assert_eq!(first.process().unwrap(), None);
    assert!(!readable(&first, Duration::ZERO));
    let path = scene.control();
    let asking = thread::spawn(move || heirloom::Client::connect(path, PATIENCE).unwrap().status().unwrap().generation);
    while !asking.is_finished() {
        readable(&first, Duration::from_millis(20));
        assert_eq!(first.process().unwrap(), None);
    }
    assert_eq!(asking.join().unwrap(), 1);
    first.stopper().stop();
    assert!(readable(&first, Duration::ZERO));
    assert_eq!(first.process().unwrap(), Some(Event::Leave(Reason::Stopped)));
    let mut draining = first.begin_drain().unwrap();
    assert_eq!(draining.in_flight(), 0);
    assert!(draining.process().unwrap());
    assert!(matches!(draining.drained(), Ok(Drained::Done(_))));
}

/// A value that is asked too early gives itself back.
#[test]
fn stages_that_are_not_over_give_themselves_back() {
    let scene = Scene::new();
    let first = handoff(&scene, "1").start().unwrap();
    let mut second = handoff(&scene, "2").begin().unwrap();
    assert!(!second.process().unwrap());
    let second = second.started().unwrap_err();
    drop(second);
    let mut serving = first.ready().unwrap();
    let lease = serving.lease();
    serving.stop().unwrap();
    assert_eq!(serving.wait().unwrap(), Event::Leave(Reason::Stopped));
    let mut draining = serving.begin_drain().unwrap();
    assert!(!draining.process().unwrap());
    let mut draining = draining.drained().unwrap_err();
    assert_eq!(draining.in_flight(), 1);
    drop(lease);
    assert!(readable(&draining, PATIENCE));
    assert!(draining.process().unwrap());
    assert!(matches!(draining.drained(), Ok(Drained::Done(_))));
}

mod with_mio {
    use super::*;
    use ::mio::{Events, Interest, Poll, Token};

    const HANDOFF: Token = Token(0);
    const WEB: Token = Token(1);

    fn wait(poll: &mut Poll, events: &mut Events) {
        poll.poll(events, Some(PATIENCE)).unwrap();
        assert!(!events.is_empty(), "no event");
    }

    /// Every stage is registered in turn; a takeover, and the resume after it, come as events.
    #[test]
    fn every_stage_is_a_source_of_events() {
        let scene = Scene::new();
        let (owner, _) = serve(&scene, "0");
        let old = thread::spawn(move || {
            let mut owner = owner;
            assert_eq!(owner.wait().unwrap(), Event::Leave(Reason::Successor));
            let Drained::Done(_) = owner.drain().unwrap() else { panic!("resumed") };
        });
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(16);

        let mut joining = handoff(&scene, "1").begin().unwrap();
        poll.registry().register(&mut joining, HANDOFF, Interest::READABLE).unwrap();
        while !joining.process().unwrap() {
            wait(&mut poll, &mut events);
        }
        poll.registry().deregister(&mut joining).unwrap();
        let mut starting = joining.started().unwrap();
        let mut web = heirloom::mio::Listener(starting.tcp_listener("web", "127.0.0.1:0").unwrap());
        let address = web.local_addr().unwrap();
        poll.registry().register(&mut starting, HANDOFF, Interest::READABLE).unwrap();
        starting.process().unwrap();
        poll.registry().deregister(&mut starting).unwrap();
        let mut committing = starting.begin_ready().unwrap();
        poll.registry().register(&mut committing, HANDOFF, Interest::READABLE).unwrap();
        while !committing.process().unwrap() {
            wait(&mut poll, &mut events);
        }
        poll.registry().deregister(&mut committing).unwrap();
        let mut serving = committing.serving().unwrap();
        old.join().unwrap();

        poll.registry().register(&mut serving, HANDOFF, Interest::READABLE).unwrap();
        poll.registry().register(&mut web, WEB, Interest::READABLE).unwrap();
        let client = thread::spawn(move || ask(address));
        while !client.is_finished() {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            for event in &events {
                match event.token() {
                    HANDOFF => assert_eq!(serving.process().unwrap(), None),
                    _ => {
                        while let Ok((mut stream, _)) = web.accept() {
                            stream.write_all(b"mio").unwrap();
                        }
                    }
                }
            }
        }
        assert_eq!(client.join().unwrap(), "mio");

        let path = scene.control();
        let next = thread::spawn(move || Handoff::at(path).start().and_then(heirloom::Starting::ready));
        let left = loop {
            if let Some(event) = serving.process().unwrap() {
                break event;
            }
            wait(&mut poll, &mut events);
        };
        assert_eq!(left, Event::Leave(Reason::Successor));
        poll.registry().deregister(&mut web).unwrap();
        poll.registry().deregister(&mut serving).unwrap();
        let lease = serving.lease();
        let mut draining = serving.begin_drain().unwrap();
        poll.registry().register(&mut draining, HANDOFF, Interest::READABLE).unwrap();
        assert!(!draining.process().unwrap());
        // The successor dies.
        drop(next.join().unwrap().unwrap());
        while !draining.process().unwrap() {
            wait(&mut poll, &mut events);
        }
        let Ok(Drained::Resumed(mut again)) = draining.drained() else { panic!("not resumed") };
        assert!(again.is_owner());
        // Registered anew, a connection that has waited is reported.
        let waiting = TcpStream::connect(address).unwrap();
        poll.registry().register(&mut web, WEB, Interest::READABLE).unwrap();
        loop {
            wait(&mut poll, &mut events);
            assert_eq!(again.process().unwrap(), None);
            if events.iter().any(|event| event.token() == WEB) {
                break;
            }
        }
        assert!(web.accept().is_ok());
        drop((waiting, lease));
    }

    /// The next event of the handoff; connections that come meanwhile stay where they are.
    fn event(serving: &mut Serving, poll: &mut Poll, events: &mut Events) -> Event {
        loop {
            if let Some(event) = serving.process().unwrap() {
                return event;
            }
            wait(poll, events);
        }
    }

    /// The whole of a state.
    fn count(serving: &mut Serving) -> String {
        let mut text = String::new();
        serving.take_state("count", 1..=1).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn release_with(serving: &mut Serving, count: &str) {
        let mut snapshot = serving.snapshot().unwrap();
        snapshot.write_all(count.as_bytes()).unwrap();
        serving.released_with(snapshot).unwrap();
    }

    /// A probation comes as events, and so does its end: back, with the state as it is by then, and forwards.
    #[test]
    fn a_probation_comes_as_events_and_so_does_its_end() {
        let scene = Scene::new();
        let begin = |version: &str| handoff(&scene, version).state("count", 1).probation(Duration::from_secs(600));
        let mut starting = begin("1").start().unwrap();
        let mut web = heirloom::mio::Listener(starting.tcp_listener("web", "127.0.0.1:0").unwrap());
        let address = web.local_addr().unwrap();
        let mut first = starting.ready().unwrap();
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(16));
        poll.registry().register(&mut first, HANDOFF, Interest::READABLE).unwrap();
        poll.registry().register(&mut web, WEB, Interest::READABLE).unwrap();

        for (back, given, kept) in [(true, "41", "42"), (false, "42", "43")] {
            let (ready, is_ready) = channel();
            let joining = begin("2");
            let second = thread::spawn(move || {
                let mut starting = joining.start().unwrap();
                let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
                let mut second = starting.ready().unwrap();
                assert_eq!(count(&mut second), given);
                // The one connection of its probation.
                ready.send(()).unwrap();
                let (mut stream, _) = second.accept(&web).unwrap().unwrap();
                stream.write_all(b"2").unwrap();
                drop(stream);
                if !back {
                    second.confirm().unwrap();
                    return Some(second);
                }
                second.give_back("test").unwrap();
                assert_eq!(second.wait().unwrap(), Event::Release);
                release_with(&mut second, kept);
                assert_eq!(second.wait().unwrap(), Event::Leave(Reason::RolledBack));
                let Drained::Done(_) = second.drain().unwrap() else { panic!("resumed") };
                None
            });
            assert_eq!(event(&mut first, &mut poll, &mut events), Event::Release);
            release_with(&mut first, given);
            assert_eq!(event(&mut first, &mut poll, &mut events), Event::StandBy);
            assert!(first.stands_by() && !first.is_owner());
            poll.registry().deregister(&mut web).unwrap();
            is_ready.recv().unwrap();
            assert_eq!(ask(address), "2");
            let end = event(&mut first, &mut poll, &mut events);
            let second = second.join().unwrap();
            if !back {
                assert_eq!(end, Event::Leave(Reason::Successor));
                let Drained::Done(_) = first.drain().unwrap() else { panic!("resumed") };
                drop(second);
                return;
            }
            assert_eq!(end, Event::Resume);
            assert!(first.is_owner());
            assert_eq!(count(&mut first), kept);
            // Registered anew, a connection that has waited is reported.
            let client = thread::spawn(move || ask(address));
            poll.registry().register(&mut web, WEB, Interest::READABLE).unwrap();
            let mut stream = loop {
                wait(&mut poll, &mut events);
                assert_eq!(first.process().unwrap(), None);
                if let Ok((stream, _)) = web.accept() {
                    break stream;
                }
            };
            stream.write_all(b"1").unwrap();
            drop(stream);
            assert_eq!(client.join().unwrap(), "1");
        }
    }
}

mod with_tokio {
    use super::*;
    use ::tokio::io::{AsyncReadExt, AsyncWriteExt};
    use ::tokio::time::timeout;
    use heirloom::tokio::{Drained, Incoming, Leased, Life, Serving, TcpListener, start};

    async fn within<F: Future>(future: F) -> F::Output {
        timeout(PATIENCE, future).await.unwrap()
    }

    async fn serve(scene: &Scene, version: &str) -> (Serving, TcpListener) {
        let mut starting = within(start(handoff(scene, version))).await.unwrap();
        let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
        (within(starting.ready()).await.unwrap(), web)
    }

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = ::tokio::net::TcpStream::connect(address).await.unwrap();
        let mut line = String::new();
        within(stream.read_to_string(&mut line)).await.unwrap();
        line
    }

    /// Accepts until somebody else serves; answers with the generation.
    async fn accept_all(serving: &mut Serving, web: &TcpListener) {
        while let Some((mut stream, _)) = within(serving.accept(web)).await.unwrap() {
            let line = serving.generation().to_string();
            stream.write_all(line.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_takeover_between_two_tasks() {
        let scene = Scene::new();
        let (mut first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let old = tokio::spawn(async move {
            accept_all(&mut first, &web).await;
            assert!(matches!(within(first.drain()).await.unwrap(), Drained::Done(_)));
        });
        assert_eq!(ask(address).await, "1");
        let (mut second, web) = serve(&scene, "2").await;
        within(old).await.unwrap();
        let stopper = second.stopper();
        let new = tokio::spawn(async move {
            accept_all(&mut second, &web).await;
            assert!(matches!(within(second.drain()).await.unwrap(), Drained::Done(_)));
        });
        assert_eq!(ask(address).await, "2");
        stopper.stop();
        within(new).await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_start_leaves_nothing() {
        let scene = Scene::new();
        let first = within(start(handoff(&scene, "1"))).await.unwrap();
        {
            // Waits, because the first is still starting.
            let mut second = std::pin::pin!(start(handoff(&scene, "2")));
            let pending =
                std::future::poll_fn(|context| std::task::Poll::Ready(second.as_mut().poll(context).is_pending()));
            assert!(pending.await);
        }
        let mut serving = within(first.ready()).await.unwrap();
        assert_eq!(serving.generation(), 1);
        // The owner has seen the end of the other: nothing is at it.
        assert!(timeout(Duration::from_millis(100), serving.event()).await.is_err(), "no event");
        assert!(serving.inner().status().takeover.is_none());
    }

    #[tokio::test]
    async fn a_dropped_ready_leaves_the_predecessor_serving() {
        let scene = Scene::new();
        let mut starting = within(start(handoff(&scene, "1").exclusive(true))).await.unwrap();
        let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
        let mut first = within(starting.ready()).await.unwrap();
        let second = tokio::spawn(start(handoff(&scene, "2")));
        let second = loop {
            // Events come to the owner only while it is polled.
            tokio::select! {
                event = first.event() => panic!("{event:?}"),
                () = tokio::task::yield_now(), if second.is_finished() => break second.await.unwrap().unwrap(),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        };
        let ready = tokio::spawn(second.ready());
        assert_eq!(within(first.event()).await.unwrap(), Event::Release);
        ready.abort();
        assert!(ready.await.unwrap_err().is_cancelled());
        assert_eq!(within(first.event()).await.unwrap(), Event::Resume);
        first.inner().released().unwrap();
        assert!(first.inner().is_owner());
        let address = web.local_addr().unwrap();
        let asking = tokio::spawn(ask(address));
        let (mut stream, _) = within(first.accept(&web)).await.unwrap().unwrap();
        stream.write_all(b"still").await.unwrap();
        drop(stream);
        assert_eq!(asking.await.unwrap(), "still");
    }

    #[tokio::test]
    async fn a_drain_resumes_and_accepts_what_waits() {
        let scene = Scene::new();
        let (mut first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let lease = first.lease();
        let (leaves, left) = tokio::sync::oneshot::channel();
        let old = tokio::spawn(async move {
            accept_all(&mut first, &web).await;
            leaves.send(()).unwrap();
            let Drained::Resumed(mut again) = within(first.drain()).await.unwrap() else { panic!("not resumed") };
            let (mut stream, _) = within(again.accept(&web)).await.unwrap().unwrap();
            stream.write_all(again.generation().to_string().as_bytes()).await.unwrap();
            again
        });
        let (second, other) = serve(&scene, "2").await;
        within(left).await.unwrap();
        let asking = tokio::spawn(ask(address));
        drop((second, other));
        assert_eq!(within(asking).await.unwrap(), "3");
        assert_eq!(within(old).await.unwrap().generation(), 3);
        drop(lease);
    }

    /// Both in this process, whose end no generation in it will see.
    #[tokio::test]
    async fn the_end_of_the_predecessor_is_waited_for_and_no_longer_than_that() {
        let scene = Scene::new();
        let (mut first, _web) = serve(&scene, "1").await;
        let end = within(first.wait_for_predecessor(PATIENCE)).await.unwrap();
        assert_eq!(end, Some(PredecessorEnd::Absent));
        let ((mut second, _other), left) = tokio::join!(serve(&scene, "2"), within(first.event()));
        assert_eq!(left.unwrap(), Event::Leave(Reason::Successor));
        assert_eq!(within(second.wait_for_predecessor(Duration::from_millis(50))).await.unwrap(), None);
        assert_eq!(second.inner().predecessor().and_then(|drain| drain.generation), Some(1));
    }

    /// Whether a future is not ready at its first look.
    async fn waits(future: impl Future) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    /// A server with an accept loop of its own. It answers each connection with the generation, and keeps one open.
    async fn framework(mut incoming: Incoming<TcpListener>, life: Life) -> Vec<Leased<::tokio::net::TcpStream>> {
        let mut kept = Vec::new();
        while let Some((mut stream, _)) = incoming.accept().await.unwrap() {
            stream.write_all(format!("{}\n", life.generation()).as_bytes()).await.unwrap();
            kept.push(stream);
        }
        kept
    }

    async fn line(stream: &mut ::tokio::net::TcpStream) -> String {
        let mut byte = [0];
        let mut line = String::new();
        while within(stream.read(&mut byte)).await.unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0].into());
        }
        line
    }

    #[tokio::test]
    async fn what_waits_in_a_queue_is_accepted_before_a_stop_ends() {
        let scene = Scene::new();
        let (first, web) = serve(&scene, "1").await;
        let (life, mut incoming) = (first.life(), first.incoming(&web));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(::tokio::net::TcpStream::connect(web.local_addr().unwrap()).await.unwrap());
        }
        first.stopper().stop();
        let running = tokio::spawn(first.run());
        while life.left().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(waits(life.leaving()).await && waits(life.closing()).await, "somebody may still come");
        let mut kept = Vec::new();
        while let Some((stream, _)) = within(incoming.accept()).await.unwrap() {
            kept.push(stream);
        }
        assert_eq!(kept.len(), 3);
        within(life.leaving()).await;
        within(life.closing()).await;
        assert!(!running.is_finished());
        let (stream, lease) = kept.pop().unwrap().into_parts();
        drop((kept, stream));
        assert!(
            timeout(Duration::from_millis(50), async {
                while !running.is_finished() {
                    tokio::task::yield_now().await
                }
            })
            .await
            .is_err()
        );
        drop(lease);
        let summary = within(running).await.unwrap().unwrap();
        assert_eq!((summary.forced, summary.in_flight), (false, 0));
        assert!(within(incoming.accept()).await.unwrap().is_none());
    }

    /// The runtime has a descriptor once, and an accept that waits keeps it there.
    #[tokio::test]
    async fn an_incoming_that_is_dropped_is_missed_by_no_other_of_its_listener() {
        let scene = Scene::new();
        let (first, web) = serve(&scene, "1").await;
        let (mut one, mut other, dropped) = (first.incoming(&web), first.incoming(&web), first.incoming(&web));
        let mut waiting = std::pin::pin!(one.accept());
        assert!(waits(waiting.as_mut()).await);
        drop(dropped);
        let address = web.local_addr().unwrap();
        for _ in 0..2 {
            let _client = ::tokio::net::TcpStream::connect(address).await.unwrap();
            assert!(within(other.accept()).await.unwrap().is_some());
        }
        let _client = ::tokio::net::TcpStream::connect(address).await.unwrap();
        assert!(within(waiting).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_an_incoming_that_was_dropped() {
        let scene = Scene::new();
        let (first, web) = serve(&scene, "1").await;
        let incoming = first.incoming(&web);
        let life = first.life();
        let _client = ::tokio::net::TcpStream::connect(web.local_addr().unwrap()).await.unwrap();
        first.stopper().stop();
        let running = tokio::spawn(first.run());
        while life.left().is_none() {
            tokio::task::yield_now().await;
        }
        drop(incoming);
        assert!(!within(running).await.unwrap().unwrap().forced);
        within(life.closing()).await;
    }

    #[tokio::test]
    async fn an_incoming_waits_while_a_successor_serves_and_goes_on_when_it_has_died() {
        let scene = Scene::new();
        let (first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let (life, stopper) = (first.life(), first.stopper());
        let server = tokio::spawn(framework(first.incoming(&web), life.clone()));
        let running = tokio::spawn(first.run());
        let mut idle = ::tokio::net::TcpStream::connect(address).await.unwrap();
        assert_eq!(line(&mut idle).await, "1");

        let (mut second, other) = serve(&scene, "2").await;
        within(life.leaving()).await;
        assert_eq!(life.left(), Some(Reason::Successor));
        assert!(waits(life.closing()).await, "the idle connection may have its next request on the way");
        let asking = tokio::spawn(ask(address));
        let (mut stream, _) = within(second.accept(&other)).await.unwrap().unwrap();
        stream.write_all(b"two").await.unwrap();
        drop(stream);
        assert_eq!(within(asking).await.unwrap(), "two");

        // It waits in the queue when the successor is gone.
        let mut waiting = ::tokio::net::TcpStream::connect(address).await.unwrap();
        drop((second, other));
        assert_eq!(line(&mut waiting).await, "3");
        assert_eq!((life.left(), life.generation()), (None, 3));
        assert!(waits(life.leaving()).await);
        stopper.stop();
        assert_eq!(within(server).await.unwrap().len(), 2);
        assert!(!within(running).await.unwrap().unwrap().forced);
    }

    #[tokio::test]
    async fn an_incoming_waits_while_its_process_stands_by() {
        let scene = Scene::new();
        let (first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let (life, stopper) = (first.life(), first.stopper());
        let server = tokio::spawn(framework(first.incoming(&web), life.clone()));
        let running = tokio::spawn(first.run());
        let mut idle = ::tokio::net::TcpStream::connect(address).await.unwrap();
        assert_eq!(line(&mut idle).await, "1");

        let probation = handoff(&scene, "2").probation(Duration::from_secs(600));
        let mut starting = within(start(probation)).await.unwrap();
        let other = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
        let mut second = within(starting.ready()).await.unwrap();
        let asking = tokio::spawn(ask(address));
        let (mut stream, _) = within(second.accept(&other)).await.unwrap().unwrap();
        stream.write_all(b"two").await.unwrap();
        drop(stream);
        assert_eq!(within(asking).await.unwrap(), "two");
        assert!(waits(life.leaving()).await && life.left().is_none(), "it only stands by");

        second.inner().give_back("test").unwrap();
        assert_eq!(within(second.until_left()).await.unwrap(), Reason::RolledBack);
        assert!(!within(second.run()).await.unwrap().forced);
        let mut again = ::tokio::net::TcpStream::connect(address).await.unwrap();
        assert_eq!(line(&mut again).await, "3");
        stopper.stop();
        assert_eq!(within(server).await.unwrap().len(), 2);
        assert!(!within(running).await.unwrap().unwrap().forced);
    }

    /// The loop of a program that knows nothing of probations.
    #[tokio::test]
    async fn accept_waits_while_its_process_stands_by() {
        let scene = Scene::new();
        let (mut first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let old = tokio::spawn(async move {
            let (mut stream, _) = within(first.accept(&web)).await.unwrap().unwrap();
            stream.write_all(first.generation().to_string().as_bytes()).await.unwrap();
        });
        let probation = handoff(&scene, "2").probation(Duration::from_secs(600));
        let mut starting = within(start(probation)).await.unwrap();
        let other = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
        let mut second = within(starting.ready()).await.unwrap();
        assert!(second.inner().probation().is_some());
        let asking = tokio::spawn(ask(address));
        drop((second, other));
        assert_eq!(within(asking).await.unwrap(), "3");
        within(old).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_is_made_anew_where_it_has_to_be() {
        let scene = Scene::new();
        let (mut first, web) = serve(&scene, "1").await;
        let address = web.local_addr().unwrap();
        let lease = first.lease();
        let (leaves, left) = ::tokio::sync::oneshot::channel();
        let old = tokio::spawn(async move {
            assert_eq!(within(first.until_left()).await.unwrap(), Reason::Successor);
            leaves.send(()).unwrap();
            let Drained::Resumed(again) = within(first.drain()).await.unwrap() else { panic!("not resumed") };
            let server = tokio::spawn(framework(again.incoming(&web), again.life()));
            (again, server)
        });
        let (second, other) = serve(&scene, "2").await;
        within(left).await.unwrap();
        drop((second, other));
        let (again, server) = within(old).await.unwrap();
        let mut client = ::tokio::net::TcpStream::connect(address).await.unwrap();
        assert_eq!(line(&mut client).await, "3");
        // Dropped without a word, it is over for all that came of it.
        let life = again.life();
        drop(again);
        assert_eq!(within(server).await.unwrap().len(), 1);
        within(life.leaving()).await;
        within(life.closing()).await;
        drop(lease);
    }

    #[tokio::test]
    async fn an_accept_that_is_dropped_loses_no_connection_and_holds_no_lease() {
        let scene = Scene::new();
        let (mut first, web) = serve(&scene, "1").await;
        let mut incoming = first.incoming(&web);
        for _ in 0..3 {
            assert!(waits(incoming.accept()).await);
        }
        assert_eq!(first.inner().status().in_flight, 0);
        let _client = ::tokio::net::TcpStream::connect(web.local_addr().unwrap()).await.unwrap();
        let accepted = within(incoming.accept()).await.unwrap();
        assert!(accepted.is_some());
        assert_eq!(first.inner().status().in_flight, 1);
    }

    #[tokio::test]
    async fn the_control_socket_is_answered_during_a_warm_up() {
        let scene = Scene::new();
        let mut starting = within(start(handoff(&scene, "1"))).await.unwrap();
        let path = scene.control();
        let asking = tokio::task::spawn_blocking(move || {
            heirloom::Client::connect(path, PATIENCE).unwrap().status().unwrap().phase
        });
        let phase = within(starting.during(asking)).await.unwrap().unwrap();
        assert_eq!(phase, heirloom::Phase::Starting);
    }

    #[tokio::test]
    async fn exclusive_work_is_released_before_the_lock_moves() {
        let scene = Scene::new();
        let starting = within(start(handoff(&scene, "1").exclusive(true))).await.unwrap();
        let mut first = within(starting.ready()).await.unwrap();
        let path = scene.control();
        let second = tokio::task::spawn_blocking(move || Handoff::at(path).start().and_then(heirloom::Starting::ready));
        assert_eq!(within(first.event()).await.unwrap(), Event::Release);
        assert!(first.inner().is_owner());
        first.inner().released().unwrap();
        assert!(!first.inner().is_owner());
        assert_eq!(within(first.event()).await.unwrap(), Event::Leave(Reason::Successor));
        let second = within(second).await.unwrap().unwrap();
        assert!(second.is_owner());
        assert!(matches!(within(first.drain()).await.unwrap(), Drained::Done(_)));
    }
}

/// A client that says nothing for 5 s is closed; a successor that warms up has a deadline of its own, 60 s.
#[test]
fn a_successor_may_warm_up_in_silence_for_longer_than_a_client_may_be_silent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handoff.sock");
    let first = Handoff::at(&path).start().unwrap().ready().unwrap();
    let owner = thread::spawn(move || {
        let mut first = first;
        assert_eq!(first.wait().unwrap(), Event::Leave(Reason::Successor));
        first.drain().unwrap()
    });
    let mut second = Handoff::at(&path).start().unwrap();
    second.wait(Duration::from_millis(5500)).unwrap();
    let second = second.ready().unwrap();
    assert_eq!(second.generation(), 2);
    assert!(matches!(owner.join().unwrap(), Drained::Done(_)));
}

/// Both were told to stop, the one that drains first: it must not come back when the other is gone.
#[test]
fn a_process_that_is_stopped_while_it_drains_stays_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handoff.sock");
    let mut first = Handoff::at(&path).start().unwrap().ready().unwrap();
    let lease = first.lease();
    let successor = {
        let path = path.clone();
        thread::spawn(move || Handoff::at(&path).start().unwrap().ready().unwrap())
    };
    assert_eq!(first.wait().unwrap(), Event::Leave(Reason::Successor));
    let second = successor.join().unwrap();
    let stopper = first.stopper();
    let draining = thread::spawn(move || first.drain().unwrap());
    stopper.stop();
    assert!(matches!(second.drain().unwrap(), Drained::Done(_)), "nobody else is in flight");
    drop(lease);
    match draining.join().unwrap() {
        Drained::Done(_) => {}
        Drained::Resumed(mut again) => {
            assert_eq!(again.wait().unwrap(), Event::Leave(Reason::Stopped));
            assert!(matches!(again.drain().unwrap(), Drained::Done(_)));
        }
    }
}

/// The successor has the old control listener already, so it makes the path again when it owns.
#[test]
fn a_control_path_that_is_removed_during_a_takeover_is_made_again_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handoff.sock");
    let mut first = Handoff::at(&path).start().unwrap().ready().unwrap();
    let (started, has_started) = channel();
    let (removed, is_removed) = channel();
    let successor = {
        let path = path.clone();
        thread::spawn(move || {
            let starting = Handoff::at(&path).start().unwrap();
            started.send(()).unwrap();
            is_removed.recv().unwrap();
            starting.ready().unwrap()
        })
    };
    let remover = {
        let path = path.clone();
        thread::spawn(move || {
            has_started.recv().unwrap();
            std::fs::remove_file(path).unwrap();
            removed.send(()).unwrap();
        })
    };
    assert_eq!(first.wait().unwrap(), Event::Leave(Reason::Successor));
    remover.join().unwrap();
    let mut second = successor.join().unwrap();
    let asked = {
        let path = path.clone();
        thread::spawn(move || heirloom::Client::connect(path, PATIENCE).unwrap().stop().unwrap())
    };
    assert_eq!(second.wait().unwrap(), Event::Leave(Reason::Stopped));
    asked.join().unwrap();
    drop(second);
    assert!(matches!(first.drain().unwrap(), Drained::Done(_) | Drained::Resumed(_)));
}

/// A program may drain as soon as it has let go; the drain waits until the successor owns, and no longer.
#[test]
fn a_drain_that_is_begun_during_a_takeover_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handoff.sock");
    let mut first = Handoff::at(&path).exclusive(true).start().unwrap().ready().unwrap();
    let successor = {
        let path = path.clone();
        thread::spawn(move || Handoff::at(&path).start().unwrap().ready().unwrap())
    };
    assert_eq!(first.wait().unwrap(), Event::Release);
    first.released().unwrap();
    assert!(matches!(first.drain().unwrap(), Drained::Done(_)));
    assert_eq!(successor.join().unwrap().generation(), 2);
}
