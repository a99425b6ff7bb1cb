//! An HTTP server that shellflip replaces: SIGUSR1 starts the next process. shellflip moves no listener itself; this one
//! is inherited, at a fixed number, as systemd would pass it.

mod http;

use std::env::args;
use std::net::TcpListener as StdListener;
use std::os::fd::AsRawFd;
use std::process::Command;

use ::shellflip::{RestartConfig, ShutdownCoordinator};
use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Where listenfd(1) and systemd expect it.
const PLACE: i32 = 3;

fn main() {
    // It calls LISTEN_PID "auto" for its child.
    ::shellflip::fixup_systemd_env();
    let mut passed = ListenFd::from_env();
    let Ok(Some(listener)) = passed.take_tcp_listener(0) else { return first() };
    listener.set_nonblocking(true).expect("a mode");
    assert_eq!(listener.as_raw_fd(), PLACE);
    // The next process has it, too.
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("to pass it on");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(listener));
}

/// Binds, and starts the first process that serves.
fn first() {
    let listener = StdListener::bind(args().nth(1).expect("an address")).expect("a listener");
    let mut command = Command::new("/proc/self/exe");
    command.args(args().skip(1)).env("LISTEN_FDS", "1").env_remove("LISTEN_PID");
    command.fd_mappings(vec![FdMapping { parent_fd: listener.into(), child_fd: PLACE }]).expect("a place");
    command.spawn().expect("a process");
}

async fn serve(listener: StdListener) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    std::fs::write(args().nth(2).expect("a pid file"), std::process::id().to_string()).expect("a pid file");
    let restart = RestartConfig {
        environment: vec![("LISTEN_FDS".into(), "1".into())],
        ..RestartConfig::default()
    };
    let mut replaced = std::pin::pin!(restart.try_into_restart_task().expect("to be ready"));
    let leaving = watch::Sender::new(false);
    let shutdown = ShutdownCoordinator::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let (handle, leaving) = (shutdown.handle(), leaving.subscribe());
                tokio::spawn(async move {
                    let _ = http::serve(stream, leaving).await;
                    drop(handle);
                });
            },
            result = &mut replaced => {
                result.expect("to be replaced");
                break;
            }
        }
    }
    drop(listener);
    leaving.send_replace(true);
    let _ = shutdown.shutdown_with_timeout(http::DRAIN.as_secs()).await;
}
